"""Reads JSON lines into records and reports everything that is wrong with them, by file and line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import astuple

from trainer.data import images
from trainer.data.reading import input_paths
from trainer.data.reading.data_file import DataFile, is_large, read_lines
from trainer.data.reading.file_report import FileReport
from trainer.data.reading.helper_processes import Helpers
from trainer.data.reading.image_urls import Resolver
from trainer.data.reading.label_checks import check_labels, warn_of_backgrounds
from trainer.data.reading.line_errors import examine_line, keys_of
from trainer.data.reading.record_builder import Columns, RecordBuilder, flat_labels
from trainer.data.reading.records import Records, concatenate
from trainer.data.reading.repeated_images import Place, join_repeated
from trainer.data.reading.repeated_keys import AnyDetails, KeyCounter
from trainer.data.reading.schema import (
    FAST_ERRORS,
    FORMATS,
    LABEL_KEY,
    Details,
    fast_reader,
    show,
    side_length,
)
from trainer.data.reading.skipped import Skipped
from trainer.data.reading.urls import UrlError, is_url
from trainer.errors import JobError, Problem
from trainer.tasks import Task


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What can be used of data files, and what is wrong with the rest.

    Attributes:
        records: the images with their valid labels; an image of several lines stands at the first of them.
        problems: errors and warnings, in the order of the input.
        skipped: each line that is left out, or of which objects are, once, in the order of the input.
        is_complete: False if a whole file or MLTable, or the rest of a file, could not be read.
        files: the data files; `records.file_index` points into them.
        further_lines: place of the first line of an image → those of its further lines; see `Place`.
    """

    records: Records
    problems: list[Problem]
    skipped: list[Skipped]
    is_complete: bool
    files: tuple[DataFile, ...]
    further_lines: dict[Place, list[Place]] = field(default_factory=dict)


def read(
    paths: Sequence[str | os.PathLike[str]],
    task: Task,
    *,
    datastores: Mapping[str, str] | None = None,
    label_key: str = LABEL_KEY,
) -> ReadResult:
    """Read .jsonl files and MLTable folders, local or by URL, as one set of images.

    Integer class names become strings. Invalid data raise no error: what is wrong with them is in the result.
    Warnings name what deviates from the schema but is clear; coordinates outside [0, 1] by at most a pixel or
    0.5 %, which were clipped; objects without an area, which were left out; and images of several lines,
    which get the objects of all.

    Args:
        datastores: Azure datastore name → local directory or URL with its content.
        label_key: the key of each line that holds the label, Azure's target_column_name.

    Raises:
        JobError: `label_key` is the key of something else.
    """
    is_plain = json.dumps(label_key, ensure_ascii=False) == f'"{label_key}"'
    if label_key in ("", "image_url", "image_details") or not is_plain:
        rule = "must be the key of the lines that holds the label, without quotes and backslashes"
        raise JobError("the data cannot be read:", [Problem("", "target_column_name", rule, repr(label_key))])
    datastores = datastores or {}
    files, unusable = input_paths.find_files(paths, datastores, label_key)
    readers = [_FileReader(file, task, datastores, label_key) for file in files]
    parts = [reader.read() for reader in readers] or [RecordBuilder(task, "").finish(()).records]
    reports = [reader.report for reader in readers]
    records, further_lines = join_repeated(concatenate(parts), reports, label_key)
    warn_of_backgrounds(records, reports, label_key)
    problems = [*unusable, *(problem for report in reports for problem in report.in_order())]
    skipped = [entry for report in reports for entry in report.skipped()]
    is_complete = all(p.warning for p in unusable) and all(report.is_readable for report in reports)
    records = records.without_unused_classes()
    return ReadResult(records, problems, skipped, is_complete, tuple(files), further_lines)


class _Parsed(NamedTuple):
    """The values of some lines; `folders` as the image_urls have them."""

    columns: Columns
    folders: list[str]


class _FileReader:
    """Reads one data file."""

    def __init__(self, file: DataFile, task: Task, datastores: Mapping[str, str], label_key: str) -> None:
        self.report = FileReport(file)
        self._file = file
        self._task = task
        self._builder = RecordBuilder(task, file.name)
        self._resolver = Resolver(file.base, datastores)
        self._datastores = datastores
        self._label_key = label_key
        self._decode = fast_reader(task, label_key)
        self._sizes = _DeclaredSizes()
        self._key_counter = KeyCounter(task, label_key)

    def read(self) -> Records:
        """Read the valid lines; everything else goes into `report`."""
        count = 0
        try:
            with Helpers(lambda: read_lines(self._file), self._parse) as helpers:
                for part, lines in enumerate(read_lines(self._file)):
                    if part == 0 and not (self._are_json_lines(lines) and self._have_label_key(lines)):
                        break
                    if part == 0 and is_large(self._file):
                        helpers.start()
                    parsed = helpers.result(part)
                    if parsed is not None:
                        folders = list(map(self._resolver.folder_index, parsed.folders))
                        self._builder.merge(parsed.columns, count + 1, folders)
                    else:
                        for start in range(0, len(lines), _LINES_AT_ONCE):
                            self._read(lines[start : start + _LINES_AT_ONCE], count + start + 1)
                    count += len(lines)
        except UnicodeError as error:
            rule = f"must be encoded in {self._file.encoding}"
            self.report.set_unreadable(0, rule, str(error), "save it as UTF-8")
        except (OSError, UrlError) as error:
            self.report.set_unreadable(0, "must be readable", str(error))
        return check_labels(self._builder.finish(self._resolver.folders), self.report, self._label_key)

    def _parse(self, lines: Sequence[bytes]) -> _Parsed | None:
        """The values of some lines, numbered from 1; None if one of them must be examined carefully."""
        reader = _FileReader(self._file, self._task, self._datastores, self._label_key)
        for start in range(0, len(lines), _LINES_AT_ONCE):
            if not reader._add(lines[start : start + _LINES_AT_ONCE], start + 1):
                return None
        return _Parsed(reader._builder.columns(), [folder.written for folder in reader._resolver.folders])

    def _are_json_lines(self, lines: Sequence[bytes]) -> bool:
        """Recognise other JSON by its first line, to avoid an error for each line."""
        for number, line in enumerate(lines, start=1):
            text = line.strip()
            if not text:
                continue
            if text[:1] == b"[":
                got = "a JSON array"
            elif text == b"{":
                got = "an object over several lines"
            else:
                return True
            self.report.set_unreadable(number, "must be JSON lines: one object per line", got)
            return False
        return True

    def _have_label_key(self, lines: Sequence[bytes]) -> bool:
        """Report a file whose lines all lack the job's key, instead of an error for each line."""
        if self._label_key == LABEL_KEY or not any(line.strip() for line in lines):
            return True
        written = [json.dumps(self._label_key, ensure_ascii=escaped).encode() for escaped in (True, False)]
        if any(key in line for line in lines for key in written):
            return True
        keys = keys_of(next((line for line in lines if line.strip()), b""))
        rule = f"must have the key {self._label_key!r}, which target_column_name names"
        got = f"lines with the keys {', '.join(keys)}" if keys else "lines without it"
        self.report.set_unreadable(0, rule, got, "name the key that holds the label")
        return False

    def _read(self, lines: Sequence[bytes], first_number: int) -> None:
        """Add the valid lines: all at once if they are well-formed, else in halves."""
        if self._add(lines, first_number):
            return
        if len(lines) == 1:
            self._read_carefully(lines[0], first_number)
            return
        middle = len(lines) // 2
        self._read(lines[:middle], first_number)
        self._read(lines[middle:], first_number + middle)

    def _add(self, lines: Sequence[bytes], first_number: int) -> bool:
        """Add consecutive lines if all are well-formed. A million lines pass here, so it is kept tight."""
        try:
            parsed = list(map(self._decode, lines))
            image_urls = [line.image_url for line in parsed]
            folders, names = self._resolver.resolve_all(image_urls)
        except (*FAST_ERRORS, UrlError):
            return False
        details = [line.image_details for line in parsed]
        sizes = list(map(self._sizes.__getitem__, details))
        labels = [line.label for line in parsed]
        if _SUSPICIOUS in sizes:
            return False
        if self._task is Task.MULTILABEL and any(len(set(classes)) < len(classes) for classes in labels):
            return False
        flat = flat_labels(labels, self._task)
        if self._key_counter.may_repeat(lines, image_urls, details, flat):
            return False
        return self._builder.add(first_number, folders, names, sizes, labels, flat)

    def _read_carefully(self, text: bytes, number: int) -> None:
        """Add what can be used of the line, and report everything that is wrong with it."""
        if not text.strip():
            return
        examined = examine_line(text, self._task, self._label_key, self._file.drops, self._measure)
        if not examined.is_json and self._file.drop_invalid:
            rule = "is not JSON and is dropped, as the MLTable's invalid_lines says"
            self.report.add_shared_warning(number, "", rule, examined.problems[0].got, leave_out=True)
            return
        for key, hint in examined.unknown_keys.items():
            rule = "is not a key of the data schema and is ignored"
            if key == LABEL_KEY:
                rule = f"is ignored, since target_column_name is {self._label_key}"
            self.report.add_shared_warning(number, key, rule, hint=hint)
        for problem in examined.lenient:
            self.report.add_shared_warning(number, problem.field, problem.rule, problem.got)
        add = self.report.add_shared_error if examined.lacks_label else self.report.add_error
        for problem in examined.problems:
            add(number, problem.field, problem.rule, problem.got, problem.hint)
        line = examined.line
        if line is not None and examined.wrong_objects:
            self.report.keep_rest(number, examined.wrong_objects)
        for position, problem in examined.degenerate:
            self.report.add_degenerate(
                number, problem.field, problem.rule, problem.got, problem.hint, position
            )
        place = self._resolve(examined.image_url, number)
        if line is None or place is None:
            return
        details = line.image_details or Details()
        if details.format and str(details.format).lower() not in FORMATS:
            rule = f"should be one of {', '.join(FORMATS)}"
            self.report.add_shared_warning(number, "image_details.format", rule, repr(details.format))
        if self._task is Task.MULTILABEL and len(set(line.label)) < len(line.label):
            rule = "should name each class only once"
            self.report.add_shared_warning(number, self._label_key, rule, show(line.label))
        folder, name = place
        self._builder.add(number, [folder], [name], [examined.size], [line.label])

    def _measure(self, image_url: str) -> tuple[int, int]:
        """The (width, height) in pixels of a local image; 0 for one that cannot be read or is at a URL."""
        try:
            folder, name = self._resolver.resolve(image_url)
            source = self._resolver.folders[folder].source(name)
            return (0, 0) if is_url(source) else images.probe(source)
        except (UrlError, images.ImageError):
            return 0, 0

    def _resolve(self, image_url: str | None, number: int) -> tuple[int, str] | None:
        """Resolve an image_url; if that fails, report it (once for each cause) and return None."""
        if image_url is None:
            return None
        try:
            return self._resolver.resolve(image_url)
        except UrlError as error:
            add = self.report.add_shared_error if error.cause else self.report.add_error
            add(number, "image_url", error.rule, error.got, error.hint)
            return None


_LINES_AT_ONCE = 128
"""Lines that are parsed before their values are collected: as many as stay in the processor's cache."""
_SUSPICIOUS = (-1, -1)
"""Marks image_details that the careful reader must examine."""


class _DeclaredSizes(dict[AnyDetails, tuple[int, int]]):
    """(width, height) in pixels, 0 where it is not declared; or _SUSPICIOUS."""

    def __missing__(self, details: AnyDetails) -> tuple[int, int]:
        image_format, *sides = astuple(details or Details())
        width, height = map(side_length, sides)
        is_known = not image_format or str(image_format).lower() in FORMATS
        size = _SUSPICIOUS if width is None or height is None or not is_known else (width, height)
        self[details] = size
        return size
