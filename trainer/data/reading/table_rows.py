"""The transformations of an MLTable that choose rows or change what a later filter sees of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from trainer.data.reading.data_file import DataFile, read_lines
from trainer.data.reading.repeated_keys import parse as parse_json
from trainer.data.reading.table_filter import Expression

Values: TypeAlias = dict[str, Any]
"""A row's values by column."""


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        file: index of its file.
        line: its number in the file, counted from 1.
        values: None if they are not needed, or the line is not JSON or repeats a key with another value.
    """

    file: int
    line: int
    values: Values | None


Step: TypeAlias = Callable[[Iterator[Row]], Iterator[Row]]
"""A transformation: the rows before → the rows after it."""


class Source(NamedTuple):
    """A file of a table.

    Attributes:
        columns: values that all its rows share: those in its path.
        rows: (line, values) of a file that is not JSON lines; None for JSON lines.
    """

    file: DataFile
    columns: Values
    rows: Sequence[tuple[int, Values]] | None = None


def take(count: int) -> Step:
    """Keep the first `count` rows."""
    return lambda rows: itertools.islice(rows, count)


def skip(count: int) -> Step:
    """Leave out the first `count` rows."""
    return lambda rows: itertools.islice(rows, count, None)


def sample(low: float, high: float, seed: int) -> Step:
    """Keep the rows whose random number, in [0, 1), is in [low, high)."""

    def step(rows: Iterator[Row]) -> Iterator[Row]:
        random = np.random.default_rng(seed)
        return (row for row in rows if low <= random.random() < high)

    return step


class ColumnChange:
    """Changes the rows' values for the filters that follow; the rows stay the same."""

    def __init__(self, changed: Callable[[Values], Values]) -> None:
        self._changed = changed

    def __call__(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            yield row if row.values is None else row._replace(values=self._changed(row.values))


class Filter:
    """Keeps the rows that match an expression, and those without values, which the reader reports.

    Attributes:
        expression: the parsed expression.
        columns: the columns of the rows that it has seen.
    """

    def __init__(self, expression: Expression) -> None:
        self.expression = expression
        self.columns: dict[str, None] = {}

    def __call__(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            self.columns |= dict.fromkeys(row.values or ())
            if row.values is None or self.expression.matches(row.values):
                yield row


def selected(sources: Sequence[Source], steps: Sequence[Step]) -> list[DataFile]:
    """The files with the lines that are left after all steps.

    Raises:
        OSError, UrlError, UnicodeError: a file cannot be read.
    """
    needs_values = any(isinstance(step, Filter) for step in steps)
    kept = [bytearray() for _ in sources]

    def keep(row: Row) -> None:
        lines = kept[row.file]
        lines.extend(bytes(row.line - len(lines)))
        lines[row.line - 1] = 1

    def all_rows() -> Iterator[Row]:
        for index, source in enumerate(sources):
            for row in _rows_of(index, source, needs_values):
                if row.values is None and source.file.drop_invalid:
                    keep(row)  # for the reader, which reports and drops it
                else:
                    yield row

    rows = all_rows()
    for step in steps:
        rows = step(rows)
    for row in rows:
        keep(row)
    return [source.file._replace(keep=bytes(lines)) for source, lines in zip(sources, kept, strict=True)]


def _rows_of(index: int, source: Source, needs_values: bool) -> Iterator[Row]:
    if source.rows is not None:
        yield from (Row(index, line, {**values, **source.columns}) for line, values in source.rows)
        return
    lines = itertools.chain.from_iterable(read_lines(source.file))
    for number, text in enumerate(lines, start=1):
        if text.strip():
            values = parse(text) if needs_values or source.file.drop_invalid else {}
            yield Row(index, number, values if values is None else {**values, **source.columns})


def parse(line: bytes) -> Values | None:
    """The values of a line; None if it is not a JSON object, or repeats a key with another value."""
    try:
        values, repeated = parse_json(line.decode())
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and not repeated else None
