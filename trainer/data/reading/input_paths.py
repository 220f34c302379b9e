"""From the paths a user names to data files: .jsonl files as they are, MLTable folders by what they name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from trainer.data.reading import mltable
from trainer.data.reading.data_file import DataFile
from trainer.data.reading.urls import UrlError, is_url, local_path, resolve_path
from trainer.errors import Problem


def find(
    paths: Sequence[str | os.PathLike[str]], datastores: Mapping[str, str]
) -> tuple[list[DataFile], list[Problem]]:
    """The JSON lines files behind .jsonl files and MLTable folders, and what is wrong with those paths."""
    files: list[DataFile] = []
    problems: list[Problem] = []
    for given in paths:
        name = os.fspath(given)
        try:
            path = resolve_path(name, datastores)
        except UrlError as error:
            problems.append(Problem(name, "", error.rule, error.got, error.hint))
            continue
        found, wrong = (
            mltable.read(name, path, datastores) if _is_mltable(path) else ([DataFile(name, path)], [])
        )
        problems += wrong
        for file in found:
            problem = _unusable(file)
            if problem is not None:
                problems.append(problem)
            elif any(file.path == other.path for other in files):
                problems.append(
                    Problem(file.name, "", "must be given only once", hint="remove one of the two")
                )
            else:
                files.append(file)
    return files, problems


def _is_mltable(path: str) -> bool:
    """Whether a path stands for an MLTable: its folder, or the file MLTable in it."""
    if not is_url(path):
        return os.path.isdir(path) or os.path.basename(path) == "MLTable"
    name = PurePosixPath(urlsplit(path).path).name
    return name == "MLTable" or "." not in name


def _unusable(file: DataFile) -> Problem | None:
    """Why a data file cannot be read at all."""
    if is_url(file.path):
        try:
            local_path(file.path, refresh=True)
        except UrlError as error:
            return Problem(file.name, "", error.rule, error.got, error.hint)
        return None
    if not os.path.exists(file.path):
        return Problem(
            file.name, "", "must be a .jsonl file or an MLTable folder", "a path that does not exist"
        )
    if not os.path.isfile(file.path):
        return Problem(file.name, "", "must be a file", "something else, such as a pipe or a device")
    if not os.access(file.path, os.R_OK):
        return Problem(file.name, "", "must be readable", "no permission to read it")
    return None
