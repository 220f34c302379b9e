"""Reads MLTable folders, whose file MLTable lists data files and how to read them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer import strict_yaml
from trainer.data.image_formats import suffixes
from trainer.data.reading.data_file import DataFile, read_lines
from trainer.data.reading.fetching import ask, local_path
from trainer.data.reading.file_report import first_of
from trainer.data.reading.other_formats import recognise_folder
from trainer.data.reading.table_formats import read_delimited, read_parquet, to_lines, with_types
from trainer.data.reading.table_rows import ColumnChange, Filter, Source, Values, parse, selected
from trainer.data.reading.table_transformations import Plan, read_transformations
from trainer.data.reading.urls import UrlError, is_url, parent, resolve_folder
from trainer.errors import Problem, ProblemsError, did_you_mean

_TOP_LEVEL_KEYS = (
    "$schema",
    "type",
    "paths",
    "transformations",
    "traits",
    "metadata",
    "name",
    "version",
    "description",
)
_PATH_KEYS = ("file", "pattern", "folder")
_FOLDER_PATTERNS = {
    "": ("**/*.jsonl",),
    "json lines": ("**/*.jsonl", "**/*.ndjson", "**/*.json"),
    "delimited text": ("**/*.csv", "**/*.tsv", "**/*.txt"),
    "Parquet": ("**/*.parquet",),
    "images": ("**/*",),
}
"""Format of the files → patterns of those in a folder; the first that matches any counts."""


def read(
    name: str, path: str, datastores: Mapping[str, str], label_key: str
) -> tuple[list[DataFile], list[Problem]]:
    """Return the data files that an MLTable lists, and what is wrong with it.

    Args:
        name: the folder, or the file MLTable in it, as the user gave it.
        path: its absolute path or URL.
        datastores: Azure datastore name → local directory or URL with its content.
        label_key: the column that holds the label.
    """
    if path.rsplit("/", 1)[-1] != "MLTable":
        name, path = os.path.join(name, "MLTable"), f"{path}/MLTable"
    if not is_url(path) and not os.path.isfile(path):
        hint = recognise_folder(Path(path).parent) if os.path.isdir(parent(path)) else ""
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
    return _Table(name, path, datastores, label_key).read(content)


class _Table:
    """Collects the files and problems of one MLTable."""

    def __init__(self, name: str, path: str, datastores: Mapping[str, str], label_key: str) -> None:
        self._name = name
        self._path = path
        self._folder = parent(path)
        self._datastores = datastores
        self._label_key = label_key
        self._problems: list[Problem] = []

    def read(self, content: dict[str, Any]) -> tuple[list[DataFile], list[Problem]]:
        for key in content:
            if key not in _TOP_LEVEL_KEYS:
                self._add(str(key), "is not a key of an MLTable and is ignored", warning=True)
        plan, problems = read_transformations(content.get("transformations"), self._name, self._label_key)
        self._problems += problems
        of_images = plan.partition is not None and not plan.format and not _lists_lines(content["paths"])
        patterns = _FOLDER_PATTERNS["images" if of_images else plan.format]
        paths: list[str] = []
        for index, entry in enumerate(content["paths"]):
            paths += self._expand(f"paths[{index}]", entry, patterns)
        if not all(problem.warning for problem in self._problems):
            has_lines = plan.format in ("", "json lines") and not of_images
            return [self._file(path, plan) for path in paths if has_lines], self._problems
        sources = [self._images(paths, plan)] if of_images else self._sources(paths, plan)
        return self._selected(sources, plan), self._problems

    def _add(
        self,
        field: str,
        rule: str,
        got: object = "",
        hint: str = "",
        *,
        where: str = "",
        warning: bool = False,
    ) -> None:
        self._problems.append(Problem(where or self._name, field, rule, str(got), hint, warning))

    def _file(self, path: str, plan: Plan) -> DataFile:
        return DataFile(self._name_of(path), path, plan.encoding, plan.drop_invalid, dropped=plan.dropped)

    def _name_of(self, path: str) -> str:
        """The name in messages of a file: as the user would write it, if it is in the table's folder."""
        inside = path.removeprefix(self._folder + "/")
        return path if inside == path else os.path.join(os.path.dirname(self._name), inside)

    # Files

    def _expand(self, field: str, entry: object, patterns: Sequence[str]) -> list[str]:
        """The sorted absolute paths or URLs of the files that one entry of `paths` lists."""
        if not isinstance(entry, dict) or len(entry) != 1 or next(iter(entry)) not in _PATH_KEYS:
            self._add(field, "must be {file: …}, {pattern: …} or {folder: …}", repr(entry))
            return []
        kind, value = next(iter(entry.items()))
        if not isinstance(value, str) or not value or "\0" in value:
            self._add(f"{field}.{kind}", "must be a path", repr(value))
            return []
        fixed, wildcards = _split_pattern(value) if kind == "pattern" else (value, "")
        try:
            path = resolve_folder(fixed + "/", self._folder, self._datastores)[0].rstrip("/") or "/"
            if kind == "file" or (kind == "pattern" and not wildcards):
                return [path]
            for pattern in [wildcards] if kind == "pattern" else patterns:
                if files := [file for file in _matching(path, pattern) if file != self._path]:
                    return files
            holds_images = kind == "folder" and bool(_images_of(_matching(path, "**/*")))
        except UrlError as error:
            self._add(f"{field}.{kind}", error.rule, error.got, error.hint)
            return []
        hint = ""
        if holds_images:
            hint = (
                "it holds images: if each class has a folder of its own, add the transformation "
                "extract_columns_from_partition_format: {partition_format: '/{label}/*'}"
            )
        what = "JSON lines file" if kind == "folder" and patterns[0].endswith(".jsonl") else "file"
        self._add(f"{field}.{kind}", f"must match at least one {what}", f"none for {value!r}", hint)
        return []

    def _images(self, paths: Sequence[str], plan: Plan) -> Source:
        """The rows of images whose class is in their path."""
        assert plan.partition is not None, "it makes a table of images"
        field = "extract_columns_from_partition_format"
        file = DataFile(f"{self._name} (images)", self._path, content=b"")
        if self._label_key not in plan.partition.columns:
            got = ", ".join(plan.partition.columns) or "no column"
            hint = "name the part of the path that is the class as target_column_name"
            self._add(f"{field}.partition_format", f"must have the column {self._label_key}", got, hint)
            return Source(file, {}, [])
        images = _images_of(dict.fromkeys(paths))
        others = set(paths) - set(images)
        if others:
            rule, hint = "a file that is no image is left out", first_of(len(others), "such files")
            self._add("paths", rule, self._name_of(min(others)), hint, warning=True)
        rows: list[tuple[int, Values]] = []
        unmatched: list[str] = []
        elsewhere = self._at_another_depth(images, plan, field)
        for path in images:
            values = plan.partition.values(path)
            if values is None:
                unmatched.append(path)
            elif path not in elsewhere:
                image_url = path.removeprefix(self._folder + "/")
                rows.append((len(rows) + 1, {**values, "Path": path, "image_url": image_url}))
        if unmatched:
            is_left_out = plan.ignores_other_paths
            rule = "an image that does not match is left out" if is_left_out else "must match each image"
            got, hint = self._name_of(unmatched[0]), first_of(len(unmatched), "such images")
            self._add(f"{field}.partition_format", rule, got, hint, warning=is_left_out)
        if not images:
            self._add("paths", "must list at least one image")
        return Source(file._replace(content=to_lines(rows, ("image_url", self._label_key))), {}, rows)

    def _at_another_depth(self, images: Sequence[str], plan: Plan, field: str) -> set[str]:
        """The images whose class would be the name of a folder at another depth than that of most; reported.

        Args:
            field: of the format, for messages.
        """
        assert plan.partition is not None, "it makes a table of images"
        parents: dict[int, dict[str, None]] = {}  # depth → the folders that hold those of the classes
        by_depth: dict[int, list[str]] = {}
        for path in images:
            if plan.partition.values(path) is not None:
                folders = plan.partition.folders_before(self._label_key, path)
                parents.setdefault(len(folders), {})["/".join(folders[-1:])] = None
                by_depth.setdefault(len(folders), []).append(path)
        usual = max(by_depth, key=lambda depth: len(by_depth[depth]), default=0)
        others = [path for depth in sorted(by_depth) if depth != usual for path in by_depth[depth]]
        if others:
            values = plan.partition.values(others[0]) or {}
            is_left_out = plan.ignores_other_paths
            rule, hint = (
                f"must find {self._label_key} in folders of one depth",
                "list them in another MLTable",
            )
            if is_left_out:
                rule, hint = f"an image with {self._label_key} at another depth is left out", ""
            elif len(parents[usual]) == 1 and plan.partition.text.startswith("/"):
                anchored = f"/{''.join(parents[usual])}{plan.partition.text}"
                hint = f"start the format with the folder of the classes: {anchored}"
            got = f"{values.get(self._label_key)!r} for {self._name_of(others[0])}"
            hint = "; ".join(filter(None, [first_of(len(others), "such images"), hint]))
            self._add(f"{field}.partition_format", rule, got, hint, warning=is_left_out)
        return set(others)

    def _sources(self, paths: Sequence[str], plan: Plan) -> list[Source]:
        """The files with their rows. A file that cannot be read is left for the caller to report."""
        sources: list[Source] = []
        header: list[str] | None = None
        for path in paths:
            columns = (plan.partition.values(path) or {}) if plan.partition is not None else {}
            file = self._file(path, plan)
            keys = [key for key in ("image_url", "image_details", self._label_key) if not file.drops(key)]
            try:
                if is_url(path):
                    local_path(path, refresh=True)
                if plan.format in ("", "json lines"):
                    sources.append(self._lines(file, columns))
                    continue
                if plan.format == "Parquet":
                    names, rows = read_parquet(path, None if plan.steps else keys)
                else:
                    names, rows = read_delimited(path, plan.delimited, header)
                    header = names if plan.delimited.header_in_first_file_only else None
            except (OSError, UrlError):
                sources.append(Source(file, columns))
                continue
            except (ValueError, NotImplementedError, ImportError) as error:
                self._add("", f"must be {plan.format or 'JSON lines'}", error, where=file.name)
                continue
            if repeated := {name for name in names if names.count(name) > 1}:
                self._add("", "must have each column once", ", ".join(sorted(repeated)), where=file.name)
                continue
            if lacking := {"image_url", self._label_key} - {*names, *columns}:
                rule = f"must have the column {' and '.join(sorted(lacking))}"
                self._add("", rule, f"the columns {', '.join(names)}", where=file.name)
                continue
            content = to_lines(((number, {**values, **columns}) for number, values in rows), keys)
            if plan.format == "delimited text" and plan.delimited.infers_types and plan.steps:
                rows = with_types(rows)
            sources.append(Source(file._replace(content=content), columns, rows))
        return sources

    def _lines(self, file: DataFile, columns: Values) -> Source:
        """A file of JSON lines, to which the label or image_url is added if they are in its path."""
        added = {key: columns[key] for key in ("image_url", self._label_key) if key in columns}
        if not added:
            return Source(file, columns)
        lines = [line for lines in read_lines(file) for line in lines]
        for index, line in enumerate(lines):
            if (values := parse(line)) is not None:
                lines[index] = to_lines([(1, {**values, **added})], [*values, *added])
            elif line.rstrip().endswith(b"}"):  # the reader is to report its error alone, not these keys, too
                lines[index] = line.rstrip()[:-1] + b", " + to_lines([(1, added)], list(added))[1:]
        return Source(file._replace(content=b"\n".join(lines)), columns)

    # Rows

    def _selected(self, sources: list[Source], plan: Plan) -> list[DataFile]:
        """The files with the rows that the transformations leave."""
        files = [source.file for source in sources]
        if all(isinstance(step, ColumnChange) for _, step in plan.steps):
            return files
        try:
            files = selected(sources, [step for _, step in plan.steps])
        except (OSError, UrlError, UnicodeError):
            return files  # the reader reports it
        for field, step in plan.steps:
            if isinstance(step, Filter) and step.columns:
                known = list(step.columns)
                for column in sorted(step.expression.columns - step.columns.keys()):
                    all_columns = f"the columns are {', '.join(known)}"
                    hint = did_you_mean(column, known, otherwise=all_columns, most=1)
                    self._add(field, "must name a column of the rows", repr(column), hint)
        has_rows = any(1 in (file.keep or b"") for file in files)
        if not has_rows and all(problem.warning for problem in self._problems):
            self._add("transformations", "must leave at least one row", "none")
        return files


def _lists_lines(entries: Sequence[Any]) -> bool:
    """Whether paths name JSON lines files."""
    values = [value for entry in entries if isinstance(entry, dict) for value in entry.values()]
    return any(str(value).endswith(".jsonl") for value in values)


def _images_of(paths: Iterable[str]) -> list[str]:
    """The paths that have an image's suffix."""
    of_images = suffixes()
    return [path for path in paths if os.path.splitext(path)[1].lower() in of_images]


def _split_pattern(pattern: str) -> tuple[str, str]:
    """Split a glob pattern into the folder before its first wildcard and the rest; "" without wildcards."""
    parts = pattern.replace("\\", "/").split("/")
    is_web_address = pattern.lower().startswith(("http://", "https://"))  # it may end in a query
    wildcards = "*[" if is_web_address else "*[?"
    for index, part in enumerate(parts):
        if any(wildcard in part for wildcard in wildcards):
            return "/".join(parts[:index]) or ("/" if index else "."), "/".join(parts[index:])
    return pattern, ""


def _matching(folder: str, pattern: str) -> list[str]:
    """The sorted files in a local or remote folder that match a glob pattern."""
    if not is_url(folder):
        names = glob.glob(pattern, root_dir=folder, recursive=True)
        return sorted(path for name in names if os.path.isfile(path := os.path.join(folder, name)))
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(f"{folder}/{pattern}")
    names = ask(folder, lambda: filesystem.glob(path))
    return sorted(filesystem.unstrip_protocol(file) for file in names)
