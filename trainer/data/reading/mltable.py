"""Reads MLTable folders, whose file MLTable lists JSON lines files and how to read them."""

from __future__ import annotations

import codecs
import glob
import os
from collections.abc import Mapping
from typing import Any

from trainer import strict_yaml
from trainer.data.reading.data_file import DataFile
from trainer.data.reading.urls import UrlError, is_url, local_path, parent, resolve_path
from trainer.errors import Problem, ProblemsError

_TOP_LEVEL_KEYS = (
    "$schema",
    "type",
    "paths",
    "transformations",
    "metadata",
    "name",
    "version",
    "description",
)
_PATH_KEYS = ("file", "pattern", "folder")
_TRANSFORMATIONS = "read_json_lines and convert_column_types of image_url to stream_info"
_READ_OPTIONS = ("encoding", "invalid_lines", "include_path_column", "path_column")
_ENCODINGS = {
    "utf8": "utf-8",
    "utf8bom": "utf-8",
    "ascii": "ascii",
    "latin1": "latin-1",
    "iso88591": "latin-1",
    "windows1252": "cp1252",
    "utf16": "utf-16",
    "utf32": "utf-32",
}
"""MLTable's encoding name → Python's."""


def read(name: str, path: str, datastores: Mapping[str, str]) -> tuple[list[DataFile], list[Problem]]:
    """Return the data files that an MLTable lists, and what is wrong with it.

    Args:
        name: the folder, or the file MLTable in it, as the user gave it.
        path: its absolute path or URL.
        datastores: Azure datastore name → local directory or URL with its content.
    """
    if path.rsplit("/", 1)[-1] != "MLTable":
        name, path = os.path.join(name, "MLTable"), f"{path}/MLTable"
    if not is_url(path) and not os.path.isfile(path):
        there = sorted(glob.glob("*.jsonl", root_dir=os.path.dirname(path)))
        hint = f"the folder holds {', '.join(there[:3])}: give that file instead" if there else ""
        return [], [Problem(name, "", "must be in a folder given as data", "no such file", hint)]
    try:
        with open(local_path(path, refresh=True), "rb") as stream:
            content = strict_yaml.load(stream.read(), name)
    except UrlError as error:
        return [], [Problem(name, "", error.rule, error.got, error.hint)]
    except ProblemsError as error:
        return [], list(error.problems)
    if not isinstance(content, dict) or not isinstance(content.get("paths"), list) or not content["paths"]:
        return [], [Problem(name, "paths", "must be a list of {file: …}, {pattern: …} or {folder: …}")]
    return _Reader(name, path, datastores).read(content)


class _Reader:
    """Collects the files and problems of one MLTable."""

    def __init__(self, name: str, path: str, datastores: Mapping[str, str]) -> None:
        self._name = name
        self._folder = parent(path)
        self._datastores = datastores
        self._problems: list[Problem] = []

    def read(self, content: dict[str, Any]) -> tuple[list[DataFile], list[Problem]]:
        for key in content:
            if key not in _TOP_LEVEL_KEYS:
                self._add(str(key), "is not a key of an MLTable and is ignored", warning=True)
        encoding, drop_invalid = self._options(content.get("transformations"))
        files: list[DataFile] = []
        for index, entry in enumerate(content["paths"]):
            for found in self._expand(f"paths[{index}]", entry):
                inside = found.removeprefix(self._folder + "/")
                name = found if inside == found else os.path.join(os.path.dirname(self._name), inside)
                files.append(DataFile(name, found, encoding, drop_invalid))
        return files, self._problems

    def _add(self, field: str, rule: str, got: object = "", hint: str = "", warning: bool = False) -> None:
        self._problems.append(Problem(self._name, field, rule, str(got), hint, warning))

    def _options(self, transformations: object) -> tuple[str, bool]:
        """Return (encoding, are invalid lines dropped) of read_json_lines; reject other transformations."""
        encoding, drop_invalid = "utf-8", False
        if not isinstance(transformations, list | None):
            self._add("transformations", "must be a list", repr(transformations))
            return encoding, drop_invalid
        for index, entry in enumerate(transformations or []):
            field = f"transformations[{index}]"
            kind, options = next(iter(entry.items())) if isinstance(entry, dict) and entry else (entry, None)
            if kind == "read_json_lines" and isinstance(options, dict | None):
                encoding, drop_invalid = self._read_json_lines(f"{field}.{kind}", options or {})
            elif kind == "convert_column_types":
                self._convert_column_types(f"{field}.{kind}", options)
            else:
                self._add(field, f"must be a supported transformation: {_TRANSFORMATIONS}", repr(kind))
        return encoding, drop_invalid

    def _read_json_lines(self, field: str, options: dict[str, Any]) -> tuple[str, bool]:
        for key in options:
            if key not in _READ_OPTIONS:
                self._add(f"{field}.{key}", f"is not an option; the options are {', '.join(_READ_OPTIONS)}")
        invalid_lines = options.get("invalid_lines", "error")
        if invalid_lines not in ("error", "drop"):
            self._add(f"{field}.invalid_lines", "must be error or drop", repr(invalid_lines))
        named = str(options.get("encoding", "utf8"))
        encoding = _ENCODINGS.get(named.lower().replace("-", "").replace("_", ""), named)
        try:
            codecs.lookup(encoding)
        except LookupError:
            self._add(f"{field}.encoding", "must be a known encoding, such as utf8", repr(named))
            encoding = "utf-8"
        return codecs.lookup(encoding).name, invalid_lines == "drop"

    def _convert_column_types(self, field: str, options: object) -> None:
        """Accept image_url as stream_info, which changes nothing here; reject conversions of the data."""
        for entry in options if isinstance(options, list) else [options]:
            columns = entry.get("columns") if isinstance(entry, dict) else None
            column_type = entry.get("column_type") if isinstance(entry, dict) else None
            if isinstance(column_type, dict):  # the long form: {stream_info: {…}}
                column_type = next(iter(column_type), None)
            if columns not in ("image_url", ["image_url"]) or column_type != "stream_info":
                self._add(field, f"must be a supported transformation: {_TRANSFORMATIONS}", repr(entry))

    def _expand(self, field: str, entry: object) -> list[str]:
        """The sorted absolute paths or URLs of the files that one entry of `paths` lists."""
        if not isinstance(entry, dict) or len(entry) != 1 or next(iter(entry)) not in _PATH_KEYS:
            self._add(field, "must be {file: …}, {pattern: …} or {folder: …}", repr(entry))
            return []
        kind, value = next(iter(entry.items()))
        if not isinstance(value, str) or not value:
            self._add(f"{field}.{kind}", "must be a path", repr(value))
            return []
        if kind == "pattern" and not is_url(value):
            found = _matching(self._folder, value.removeprefix("./"))
        else:
            is_absolute = is_url(value) or os.path.isabs(value)
            inside = value if is_absolute else f"{self._folder}/{value.removeprefix('./')}"
            try:
                path = resolve_path(inside, self._datastores)
            except UrlError as error:
                self._add(f"{field}.{kind}", error.rule, error.got, error.hint)
                return []
            if kind == "file":
                return [path]
            found = _matching(path, "**/*.jsonl") if kind == "folder" else _matching(*path.rsplit("/", 1))
        if not found:
            self._add(f"{field}.{kind}", "must match at least one JSON lines file", f"none for {value!r}")
        return found


def _matching(folder: str, pattern: str) -> list[str]:
    """The sorted files in a local or remote folder that match a glob pattern."""
    if not is_url(folder):
        found = glob.glob(pattern, root_dir=folder, recursive=True)
        return sorted(path for name in found if os.path.isfile(path := os.path.join(folder, name)))
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(f"{folder}/{pattern}")
    return sorted(filesystem.unstrip_protocol(found) for found in filesystem.glob(path))
