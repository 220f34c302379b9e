"""Tables whose files are no JSON lines: image folders, delimited text and Parquet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from trainer.data.reading.fetching import local_path
from trainer.data.reading.repeated_keys import parse
from trainer.data.reading.table_rows import Values

_DATE_PARTS = re.compile("yyyy|MM|dd|HH|mm|ss")
_JSON_START = ("[", "{")


_MOST_WILDCARDS = 4
"""Most stars of a format, and most stars and columns in one of its names: more could match for hours."""


class PartitionFormat:
    """The format of paths that hold values, such as `/{label}/{name}.png`.

    As Azure's documentation has it, the format reaches to the end of the path. Where it does not, as in the
    documentation's `/puYear={year}/puMonth={month}`, the first match counts. (The package mltable 1.7 always
    takes the first match, so that `/{label}/*` would name the first folder of an absolute path.) `*` stands
    for a part of a name or, if the path does not match otherwise, of a path.

    Attributes:
        columns: the columns in the order of the format.
    """

    def __init__(self, text: str) -> None:
        """Parse a format.

        Raises:
            ValueError: a brace is not closed, a column is not named, or there are too many stars or columns.
        """
        text = re.sub(r"\*+", "*", text)
        names = text.split("/")
        if text.count("*") > _MOST_WILDCARDS or any(
            name.count("*") + name.count("{") > _MOST_WILDCARDS for name in names
        ):
            raise ValueError(f"more than {_MOST_WILDCARDS} stars, or columns in one name")
        self.text = text
        self.columns: dict[str, None] = {}
        pattern = "".join(self._patterns(text + ("*" if text.endswith("/") else "")))
        self._regular_expressions = [
            re.compile(pattern.replace("\0", star) + end)
            for star, end in (("[^/]*", r"\Z"), (".*", r"\Z"), ("[^/]*", "(?=/)"))
        ]

    def _patterns(self, text: str) -> Iterator[str]:
        """The regular expression, in which \\0 stands for a star."""
        for match in re.finditer(r"\{\{|\}\}|\{([^{}:]+)(:[^{}]*)?\}|[^{}]+|.", text, re.DOTALL):
            part, column, date = match[0], match[1], match[2]
            if column is not None and date is not None:
                yield _DATE_PARTS.sub(lambda part: rf"\d{{{len(part[0])}}}", re.escape(date[1:]))
            elif column is not None and column in self.columns:
                yield "[^/]+"
            elif column is not None:
                self.columns[column] = None
                yield f"(?P<c{len(self.columns)}>[^/]+)"
            elif part in ("{{", "}}"):
                yield re.escape(part[0])
            elif part in ("{", "}"):
                raise ValueError(f"{part!r} without its counterpart")
            else:
                yield re.escape(part).replace(r"\*", "\0")

    def values(self, path: str) -> Values | None:
        """The columns' values in a path; None if it does not match."""
        match = self._match(path)
        return None if match is None else dict(zip(self.columns, match.groups(), strict=True))

    def folders_before(self, column: str, path: str) -> list[str]:
        """The folders before the one whose name holds a column; empty if the name of the file holds it."""
        match = self._match(path)
        assert match is not None, "the path matches"
        start = match.start(1 + list(self.columns).index(column))
        return match.string[:start].split("/")[:-1] if "/" in match.string[start:] else []

    def _match(self, path: str) -> re.Match[str] | None:
        path = unquote(path) if path.startswith(("http://", "https://")) else path.replace("\\", "/")
        matches = (pattern.search(path) for pattern in self._regular_expressions)
        return next((match for match in matches if match is not None), None)


class Delimited(NamedTuple):
    """How delimited text is read.

    Attributes:
        encoding: Python's name.
        header_in_first_file_only: the other files start with their first row.
        infers_types: columns of numbers or booleans are such for filters.
    """

    delimiter: str = ","
    encoding: str = "utf-8-sig"
    header_in_first_file_only: bool = False
    infers_types: bool = True


def read_delimited(
    path: str, how: Delimited, header: Sequence[str] | None
) -> tuple[list[str], list[tuple[int, Values]]]:
    """Read a file of delimited text.

    Args:
        path: local path or URL.
        header: the columns, if the file does not begin with them.

    Returns:
        The columns, and the rows with the number of their last line in the file. Empty values are left out.

    Raises:
        OSError, UrlError, UnicodeError: the file cannot be read.
        ValueError: it is not delimited text.
    """
    with open(local_path(path), encoding=how.encoding, newline="") as stream:
        reader = csv.DictReader(stream, header, delimiter=how.delimiter)
        try:
            rows = [
                (reader.line_num, {key: value for key, value in row.items() if key is not None and value})
                for row in reader
            ]
        except csv.Error as error:
            raise ValueError(f"{error} in line {reader.line_num}") from error
        return [name.strip() for name in reader.fieldnames or ()], rows


def with_types(rows: Sequence[tuple[int, Values]]) -> list[tuple[int, Values]]:
    """The rows of delimited text with the columns as numbers or booleans of which all values are such."""
    converted = [(number, dict(values)) for number, values in rows]
    for column in {column for _, values in rows for column in values}:
        texts = [values[column] for _, values in rows if column in values]
        for cast in (int, float, _boolean):
            try:
                casts = {text: cast(text) for text in texts}
            except ValueError:
                continue
            for _, values in converted:
                if column in values:
                    values[column] = casts[values[column]]
            break
    return converted


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def read_parquet(path: str, wanted: Sequence[str] | None) -> tuple[list[str], list[tuple[int, Values]]]:
    """Read a Parquet file.

    Args:
        wanted: columns to read; None for all.

    Returns:
        All its columns, and the rows, numbered from 1. Null values are left out.

    Raises:
        OSError, UrlError: the file cannot be read.
        ValueError, NotImplementedError: it is not a Parquet file, or has values that cannot be read.
        ImportError: pyarrow is not installed.
    """
    from pyarrow import parquet

    file = local_path(path)
    names = list(parquet.read_schema(file).names)
    columns = [name for name in names if wanted is None or name in wanted]
    rows = parquet.read_table(file, columns=columns).to_pylist()
    return names, [(number, _without_nulls(row)) for number, row in enumerate(rows, start=1)]


def _without_nulls(value: Any) -> Any:
    """A value without the keys that are null: Parquet gives all objects of a column the same keys."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def to_lines(rows: Iterable[tuple[int, Values]], keys: Sequence[str]) -> bytes:
    """JSON lines with these keys of the rows, each at the number of its row.

    Lists and objects that are written as JSON in a text become what they stand for, unless they repeat a key:
    the reader of the lines reports that.
    """
    lines: list[bytes] = []
    for number, values in rows:
        lines += [b""] * (number - 1 - len(lines))
        line = {key: _decoded(values[key]) for key in keys if values.get(key) is not None}
        lines.append(json.dumps(line, ensure_ascii=False, default=str).encode("utf-8", "surrogateescape"))
    return b"\n".join(lines)


def _decoded(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith(_JSON_START):
        try:
            parsed, repeated = parse(value)
        except (ValueError, RecursionError):
            return value
        return value if repeated else parsed
    return value
