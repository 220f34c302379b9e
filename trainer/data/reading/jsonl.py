"""Reads JSON lines into records and reports everything that is wrong with them, by file and line."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.reading import input_paths
from trainer.data.reading.data_file import DataFile, pick_lines, read_lines
from trainer.data.reading.line_errors import examine
from trainer.data.reading.record_builder import Columns, Mixed
from trainer.data.reading.records import Records, concatenate
from trainer.data.reading.schema import (
    FAST_ERRORS,
    FORMATS,
    Details,
    MultilabelLine,
    fast_reader,
    show,
    side_length,
)
from trainer.data.reading.urls import Resolver, UrlError
from trainer.errors import Problem
from trainer.tasks import Task


@dataclass(frozen=True, slots=True)
class Skipped:
    """A line that is not among the records, and why; `line` counts from 1."""

    file: DataFile
    line: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReadResult:
    """Attributes:
    records: the faultless lines.
    problems: errors and warnings, in the order of the input.
    skipped: the lines with errors, one entry a line, in the order of the input.
    is_complete: False if something beyond single lines could not be read: a file, an MLTable.
    files: `records.file_index` counts in these.
    """

    records: Records
    problems: list[Problem]
    skipped: list[Skipped]
    is_complete: bool
    files: tuple[DataFile, ...]


def read(
    paths: Sequence[str | os.PathLike[str]], task: Task, *, datastores: Mapping[str, str] | None = None
) -> ReadResult:
    """Read .jsonl files and MLTable folders, local or by URL, as one set of images.

    Coordinates up to 1e-6 outside [0, 1], as rounding leaves them, are clipped; class names given as
    integers become strings. Nothing is raised for wrong data: all of it is in the result.

    Args:
        datastores: Azure datastore name → local directory or URL with its content.
    """
    datastores = datastores or {}
    files, unusable = input_paths.find(paths, datastores)
    readers = [_FileReader(file, task, datastores) for file in files]
    parts = [reader.read() for reader in readers] or [Columns(task, "").finish(())[0]]
    records = concatenate(parts)
    reports = [reader.report for reader in readers]
    records = _without_duplicates(records, reports)
    problems = [*unusable, *(problem for report in reports for problem in report.in_order())]
    skipped = [
        Skipped(report.file, line, tuple(reasons))
        for report in reports
        for line, reasons in sorted(report.faults.items())
    ]
    is_complete = all(p.warning for p in unusable) and all(report.is_readable for report in reports)
    return ReadResult(records.without_unused_classes(), problems, skipped, is_complete, tuple(files))


def write_skipped(path: Path, skipped: Iterable[Skipped]) -> None:
    """Write lines left out as JSON lines {file, line, reasons, record}.

    `record` is the line as it was, as a JSON object or, where it is none, as text.
    """
    by_file: dict[DataFile, list[Skipped]] = defaultdict(list)
    for entry in skipped:
        by_file[entry.file].append(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as stream:
        for file, entries in by_file.items():
            texts = pick_lines(file, [entry.line for entry in entries])
            for entry in entries:
                text = texts[entry.line].decode("utf-8", errors="backslashreplace").rstrip("\r")
                line = {
                    "file": file.name,
                    "line": entry.line,
                    "reasons": entry.reasons,
                    "record": _json(text),
                }
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _json(text: str) -> Any:
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return text.encode("utf-8", errors="backslashreplace").decode()
    return content


class _Report:
    """What is wrong with one file: faults of single lines, and things counted over many."""

    def __init__(self, file: DataFile) -> None:
        self.file = file
        self.is_readable = True
        self.faults: dict[int, list[str]] = defaultdict(list)
        self._problems: list[tuple[int, Problem]] = []
        self._counted: dict[tuple[str, str, str, bool], list[Any]] = {}

    def where(self, line: int) -> str:
        return f"{self.file.name}:{line}"

    def fault(self, line: int, field: str, rule: str, got: str = "", hint: str = "") -> None:
        """A fault of one line, which then is left out."""
        self._problems.append((line, Problem(self.where(line), field, rule, got, hint)))
        self._note(line, field, rule, got)

    def count(self, line: int, field: str, rule: str, got: str = "", *, leave_out: bool = False) -> None:
        """A warning that many lines may share: shown once, with the first line and how many there are."""
        self._counted.setdefault((field, rule, "", True), [line, 0, got])[1] += 1
        if leave_out:
            self._note(line, field, rule, got)

    def count_fault(self, line: int, field: str, rule: str, got: str = "", hint: str = "") -> None:
        """The same for a fault: each line is left out."""
        self._counted.setdefault((field, rule, hint, False), [line, 0, got])[1] += 1
        self._note(line, field, rule, got)

    def unreadable(self, line: int, rule: str, got: str, hint: str = "") -> None:
        """The file as a whole cannot be read, or not from this line on."""
        self.is_readable = False
        where = self.where(line) if line else self.file.name
        self._problems.append((line, Problem(where, "", rule, got, hint)))

    def in_order(self) -> list[Problem]:
        problems = list(self._problems)
        for (field, rule, hint, warning), (line, count, got) in self._counted.items():
            lines = f"on {count:,} lines, here first" if count > 1 else ""
            text = "; ".join(part for part in (hint, lines) if part)
            problems.append((line, Problem(self.where(line), field, rule, got, text, warning)))
        return [problem for _, problem in sorted(problems, key=lambda entry: entry[0])]

    def _note(self, line: int, field: str, rule: str, got: str) -> None:
        self.faults[line].append(str(Problem("", field, rule, got)))


class _FileReader:
    """Reads one data file."""

    def __init__(self, file: DataFile, task: Task, datastores: Mapping[str, str]) -> None:
        self.report = _Report(file)
        self._file = file
        self._task = task
        self._columns = Columns(task, file.name)
        self._resolver = Resolver(file.base, datastores)
        self._fast = fast_reader(task)
        self._sizes: dict[tuple[object, ...], tuple[int, int]] = {}

    def read(self) -> Records:
        count = 0
        try:
            for lines in read_lines(self._file):
                if count == 0 and not self._are_json_lines(lines):
                    break
                self._read(lines, count + 1)
                self._columns.pack()
                count += len(lines)
        except UnicodeError as error:
            self.report.unreadable(
                0, f"must be encoded in {self._file.encoding}", str(error), "save it as UTF-8"
            )
        except (OSError, UrlError) as error:
            self.report.unreadable(0, "must be readable", str(error))
        records, mixed = self._columns.finish(self._resolver.folders)
        return self._without_mixed(records, mixed)

    def _are_json_lines(self, lines: Sequence[bytes]) -> bool:
        """Recognise other JSON by its first line, lest each line be reported."""
        for number, line in enumerate(lines, start=1):
            first = line.strip()
            got = (
                "a JSON array"
                if first[:1] == b"["
                else "an object over several lines"
                if first == b"{"
                else ""
            )
            if got:
                self.report.unreadable(number, "must be JSON lines: one object a line", got)
            if first:
                return not got
        return True

    def _read(self, lines: Sequence[bytes], first_number: int) -> None:
        """Add faultless lines; this loop is kept tight, for a million lines go through it."""
        fast, resolve, add, sizes = self._fast, self._resolver.resolve, self._columns.add, self._sizes
        multilabel = self._task is Task.MULTILABEL
        no_details = Details()
        for number, text in enumerate(lines, start=first_number):
            try:
                line = fast(text)
                folder, name = resolve(line.image_url)
            except (*FAST_ERRORS, UrlError):
                self._read_carefully(text, number)
                continue
            details = line.image_details or no_details
            key = (details.format, details.width, details.height)
            size = sizes.get(key)
            if size is None:
                size = sizes[key] = _declared_size(details)
            if (
                size is _ODD
                or (multilabel and len(set(line.label)) < len(line.label))
                or not add(number, folder, name, size, line.label, checked=False)
            ):
                self._read_carefully(text, number)

    def _read_carefully(self, text: bytes, number: int) -> None:
        """Add the line if it is faultless, else report all its faults."""
        if not text.strip():
            return
        findings = examine(text, self._task)
        if not findings.is_json and self._file.drop_invalid:
            problem = findings.problems[0]
            rule = "is dropped as no JSON, as the MLTable's invalid_lines says"
            self.report.count(number, "", rule, problem.got, leave_out=True)
            return
        for key in findings.unknown_keys:
            self.report.count(number, key, "is no key of the data schema; it is ignored")
        for problem in findings.problems:
            self.report.fault(number, problem.field, problem.rule, problem.got, problem.hint)
        place = self._place(findings.image_url, number)
        line = findings.line
        if line is None or place is None:
            return
        details = line.image_details or Details()
        if details.format and details.format.lower() not in FORMATS:
            rule = f"should be one of {', '.join(FORMATS)}"
            self.report.count(number, "image_details.format", rule, repr(details.format))
        if isinstance(line, MultilabelLine) and len(set(line.label)) < len(line.label):
            self.report.count(number, "label", "should name each class only once", show(line.label))
        size = (side_length(details.width) or 0, side_length(details.height) or 0)
        self._columns.add(number, *place, size, line.label, checked=True)

    def _place(self, image_url: str | None, number: int) -> tuple[int, str] | None:
        """Resolve an image_url, None if it cannot be, which is reported once for each cause."""
        if image_url is None:
            return None
        try:
            return self._resolver.resolve(image_url)
        except UrlError as error:
            report = self.report.count_fault if error.cause else self.report.fault
            report(number, "image_url", error.rule, error.got, error.hint)
            return None

    def _without_mixed(self, records: Records, mixed: Mixed) -> Records:
        if not len(mixed.indices):
            return records
        for index in mixed.indices:
            names = records.labels[records.starts[index] : records.starts[index + 1]]
            got = f"{mixed.kind}, {', '.join(records.classes[name] for name in names[:3])}"
            rule = "class names must be strings throughout a file, or integers throughout"
            self.report.count_fault(int(records.lines[index]), "label", rule, got)
        keep = np.ones(len(records), dtype=np.bool_)
        keep[mixed.indices] = False
        return records.subset(np.flatnonzero(keep))


_ODD = (-1, -1)
"""Stands for image_details that the careful reader must see."""


def _declared_size(details: Details) -> tuple[int, int]:
    """(width, height), 0 where it is not declared."""
    width, height = side_length(details.width), side_length(details.height)
    if width is None or height is None or (details.format and details.format.lower() not in FORMATS):
        return _ODD
    return width, height


def _without_duplicates(records: Records, reports: Sequence[_Report]) -> Records:
    """Report and leave out all but the first of the records that have the same image."""
    hashes = records.source_hashes()
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
    keep = np.ones(len(records), dtype=np.bool_)
    first: dict[str, int] = {}
    for position in again:
        index = int(order[position])
        source = records.source(index)
        original = first.setdefault(source, int(order[position - 1]))
        if records.source(original) != source:
            continue  # two sources that happen to have the same hash
        keep[index] = False
        hint = f"it is at {records.location(original)} already"
        if records.task is not Task.CLASSIFICATION:
            hint += "; all labels of an image stand on one line"
        report = reports[records.file_index[index]]
        report.fault(
            int(records.lines[index]), "image_url", "must be unique", show(records.image_url(index)), hint
        )
    return records if keep.all() else records.subset(np.flatnonzero(keep))
