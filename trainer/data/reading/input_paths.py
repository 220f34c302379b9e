"""Turns the paths that a user gives into data files: .jsonl files directly, MLTables by what they list."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from urllib.parse import urlsplit

from trainer.data.reading import mltable
from trainer.data.reading.data_file import DataFile
from trainer.data.reading.fetching import local_path
from trainer.data.reading.other_formats import recognise
from trainer.data.reading.urls import UrlError, is_url, resolve_path
from trainer.errors import Problem
from trainer.files import describe_lookalike, without_prefix

PathLike: TypeAlias = str | os.PathLike[str]


def find_files(
    paths: Sequence[PathLike], datastores: Mapping[str, str], label_key: str
) -> tuple[list[DataFile], list[Problem]]:
    """Find the data files behind .jsonl files and MLTable folders.

    Args:
        datastores: Azure datastore name → local directory or URL with its content.
        label_key: the key or column that holds the label.

    Returns:
        The files in the order of the paths, and what is wrong with the paths.
    """
    files: list[DataFile] = []
    problems: list[Problem] = []
    for given in paths:
        name = without_prefix(os.fspath(given), Path.cwd())
        try:
            path = resolve_path(name, datastores)
        except UrlError as error:
            problems.append(Problem(name, "", error.rule, error.got, error.hint))
            continue
        if _is_mltable(path):
            listed, listing_problems = mltable.read(name, path, datastores, label_key)
            problems += listing_problems
        else:
            listed = [DataFile(name, path)]
        for file in listed:
            problem = _unusable(file)
            if problem is None and any((file.path, file.keep) == (other.path, other.keep) for other in files):
                problem = Problem(file.name, "", "must be given only once", hint="remove one of the two")
            if problem is None:
                files.append(file)
            else:
                problems.append(problem)
    return files, problems


def _is_mltable(path: str) -> bool:
    """Whether a path is an MLTable: its folder, or the file named MLTable in it."""
    if not is_url(path):
        return os.path.isdir(path) or os.path.basename(path) == "MLTable"
    name = PurePosixPath(urlsplit(path).path).name
    return name == "MLTable" or "." not in name


def _unusable(file: DataFile) -> Problem | None:
    """Why a data file cannot be read at all; None if it can."""
    if file.content is not None:
        return None
    if is_url(file.path):
        try:
            return _of_other_format(file, local_path(file.path, refresh=True))
        except UrlError as error:
            return Problem(file.name, "", error.rule, error.got, error.hint)
    if not os.path.exists(file.path):
        got = "a path that does not exist"
        hint = describe_lookalike(file.path)
        if file.name.startswith("azureml:"):
            hint = "azureml:NAME:VERSION is data registered with Azure; give the path of a copy"
        return Problem(file.name, "", "must be a .jsonl file or an MLTable folder", got, hint)
    if not os.path.isfile(file.path):
        return Problem(file.name, "", "must be a file", "something else, such as a pipe or a device")
    if not os.access(file.path, os.R_OK):
        return Problem(file.name, "", "must be readable", "no permission to read it")
    return _of_other_format(file, Path(file.path))


def _of_other_format(file: DataFile, path: Path) -> Problem | None:
    try:
        other = recognise(path, file.encoding)
    except OSError as error:
        return Problem(file.name, "", "must be readable", str(error))
    if other is None:
        return None
    return Problem(file.name, "", "must be JSON lines in the data schema", other.name, other.hint)
