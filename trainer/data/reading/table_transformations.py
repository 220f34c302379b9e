"""Reads an MLTable's list of transformations into a plan of how its rows are made.

The names, options and defaults are those that the package mltable 1.7 checks and writes.
"""

from __future__ import annotations

import io
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.data.reading.data_file import ColumnChoice
from trainer.data.reading.table_filter import Expression
from trainer.data.reading.table_formats import Delimited, PartitionFormat
from trainer.data.reading.table_rows import ColumnChange, Filter, Step, Values, sample, skip, take
from trainer.errors import Problem, did_you_mean
from trainer.fields import enum_member

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
"""MLTable's encoding name, without what separates its parts → Python's."""

_READER_OPTIONS = ("encoding", "include_path_column", "path_column", "partition_size")
_DELIMITED_OPTIONS = ("delimiter", "header", "support_multi_line", "empty_as_string", "infer_column_types")
_HEADERS = ("all_files_same_headers", "all_files_different_headers", "from_first_file")
_UNSUPPORTED = {
    "select_partitions": "write the lines that it selects to a .jsonl file and list that",
    "read_delta_lake": "export the table as JSON lines and read them with read_json_lines",
}
"""Transformations of the package that are not carried out → the next step."""

_CASTS: dict[str, Callable[[Any], Any]] = {"string": str, "int": int, "float": float}
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
_COLUMN_TYPES = ("string", "int", "float", "boolean", "datetime", "stream_info")


@dataclass
class Plan:
    """How the rows of a table are made from its files.

    Attributes:
        format: of the files; "" if no transformation names it.
        encoding: of JSON lines, Python's name.
        drop_invalid: drop lines that are not JSON.
        delimited: how delimited text is read.
        partition: the values in the files' paths.
        ignores_other_paths: leave out files whose path does not match `partition`.
        dropped: columns that keep_columns and drop_columns leave out.
        steps: (field of the MLTable, step) in their order.
    """

    format: Literal["", "json lines", "delimited text", "Parquet"] = ""
    encoding: str = "utf-8"
    drop_invalid: bool = False
    delimited: Delimited = field(default_factory=Delimited)
    partition: PartitionFormat | None = None
    ignores_other_paths: bool = False
    dropped: tuple[ColumnChoice, ...] = ()
    steps: list[tuple[str, Step]] = field(default_factory=list)


def read_transformations(content: object, name: str, label_key: str) -> tuple[Plan, list[Problem]]:
    """Read the value of `transformations`.

    Args:
        name: the MLTable, for messages.
        label_key: the column that holds the label.
    """
    reader = _Reader(name, label_key)
    if not isinstance(content, list | None):
        reader.add("transformations", "must be a list", repr(content))
    else:
        for index, entry in enumerate(content or []):
            reader.read(f"transformations[{index}]", entry)
    return reader.plan, reader.problems


class _Reader:
    def __init__(self, name: str, label_key: str) -> None:
        self.plan = Plan()
        self.problems: list[Problem] = []
        self._name = name
        self._label_key = label_key
        self._handlers: dict[str, Callable[[str, Any], None]] = {
            "read_json_lines": self._read_json_lines,
            "read_delimited": self._read_delimited,
            "read_parquet": self._read_parquet,
            "convert_column_types": self._convert_column_types,
            "extract_columns_from_partition_format": self._partition,
            "keep_columns": self._keep_columns,
            "drop_columns": self._drop_columns,
            "filter": self._filter,
            "take": self._take,
            "skip": self._skip,
            "take_random_sample": self._take_random_sample,
            "sample": self._sample,
        }

    def add(self, field: str, rule: str, got: str = "", hint: str = "", *, warning: bool = False) -> None:
        """Add a problem of the field."""
        self.problems.append(Problem(self._name, field, rule, got, hint, warning))

    def read(self, field: str, entry: object) -> None:
        """Read one transformation: its name, or a map of its name to its options."""
        pair = {entry: None} if isinstance(entry, str) else entry
        if not isinstance(pair, dict) or len(pair) != 1:
            self.add(field, "must be one transformation, {NAME: options}", repr(entry))
            return
        ((kind, options),) = pair.items()
        handler = self._handlers.get(kind)
        if handler is not None:
            handler(f"{field}.{kind}", options)
        elif kind in _UNSUPPORTED:
            self.add(field, "must be a supported transformation", repr(kind), _UNSUPPORTED[kind])
        else:
            supported = f"they are {', '.join(self._handlers)}"
            hint = did_you_mean(str(kind), self._handlers, otherwise=supported, most=1, cutoff=0.7)
            self.add(field, "must be a supported transformation", repr(kind), hint)

    # Readers of files

    def _read_json_lines(self, field: str, options: Any) -> None:
        values = self._reader_options(field, options, "json lines", ("invalid_lines",))
        invalid_lines = values.get("invalid_lines", "error")
        if invalid_lines not in ("error", "drop"):
            self.add(f"{field}.invalid_lines", "must be error or drop", repr(invalid_lines))
        self.plan.drop_invalid = invalid_lines == "drop"
        self.plan.encoding = self._encoding(field, values)

    def _read_delimited(self, field: str, options: Any) -> None:
        values = self._reader_options(field, options, "delimited text", _DELIMITED_OPTIONS)
        delimiter = values.get("delimiter", ",")
        if not isinstance(delimiter, str) or len(delimiter) != 1:
            self.add(f"{field}.delimiter", "must be one character", repr(delimiter))
            delimiter = ","
        header = values.get("header", _HEADERS[0])
        if header not in _HEADERS:
            hint = "without a header no column is image_url" if header == "no_header" else ""
            self.add(f"{field}.header", f"must be one of {', '.join(_HEADERS)}", repr(header), hint)
        inferred = values.get("infer_column_types", True)
        if isinstance(inferred, dict) and inferred.get("column_type_overrides"):
            self._convert_column_types(f"{field}.infer_column_types", inferred["column_type_overrides"])
        encoding = self._encoding(field, values)
        encoding = "utf-8-sig" if encoding == "utf-8" else encoding
        self.plan.delimited = Delimited(
            delimiter, encoding, header == "from_first_file", infers_types=inferred is not False
        )

    def _read_parquet(self, field: str, options: Any) -> None:
        self._reader_options(field, options, "Parquet", ())

    def _reader_options(
        self,
        field: str,
        options: Any,
        file_format: Literal["json lines", "delimited text", "Parquet"],
        own: Sequence[str],
    ) -> dict[str, Any]:
        """The options that are set, after a check of their names and of the reader's place in the list."""
        if self.plan.format:
            self.add(field, f"must be the only reader; the files are read as {self.plan.format} already")
        if self.plan.steps:
            self.add(field, "must come before the transformations of rows")
        self.plan.format = file_format
        known = (*_READER_OPTIONS, *own)
        return self._options(field, options, known)

    def _options(self, field: str, options: Any, known: Sequence[str]) -> dict[str, Any]:
        if not isinstance(options, dict | None):
            self.add(field, "must be a map of options", repr(options))
            return {}
        for key in options or ():
            if key not in known:
                hint = did_you_mean(str(key), known, otherwise=f"they are {', '.join(known)}", most=1)
                self.add(f"{field}.{key}", "is not an option", hint=hint)
        return {key: value for key, value in (options or {}).items() if value is not None}

    def _encoding(self, field: str, options: dict[str, Any]) -> str:
        named = str(enum_member(options.get("encoding", "utf8")))
        encoding = _ENCODINGS.get(re.sub(r"[-_ ]", "", named.lower()), named)
        try:
            io.TextIOWrapper(io.BytesIO(), encoding)
            b"{}".decode(encoding, "replace")  # idna and undefined cannot
        except (LookupError, ValueError):  # a zero character is the latter
            self.add(f"{field}.encoding", "must be a known encoding, such as utf8", repr(named))
            return "utf-8"
        return encoding

    # Columns

    def _partition(self, field: str, options: Any) -> None:
        options = {"partition_format": options} if isinstance(options, str) else options
        values = self._options(field, options, ("partition_format", "path_column", "ignore_errors"))
        text = values.get("partition_format")
        if not isinstance(text, str) or not text:
            self.add(f"{field}.partition_format", "must be a format such as /{label}/*", repr(text))
            return
        try:
            self.plan.partition = PartitionFormat(text)
        except ValueError as error:
            self.add(f"{field}.partition_format", "must be a format such as /{label}/*", str(error))
        self.plan.ignores_other_paths = bool(values.get("ignore_errors", False))

    def _convert_column_types(self, field: str, options: Any) -> None:
        """Check conversions. They have no effect but on filters: image_url is a text, and so are classes."""
        for entry in options if isinstance(options, list) else [options]:
            is_pair = isinstance(entry, dict) and set(entry) == {"columns", "column_type"}
            column_type = entry["column_type"] if is_pair else None
            type_options: Any = None
            if isinstance(column_type, dict) and len(column_type) == 1:  # {stream_info: {…}}
                ((column_type, type_options),) = column_type.items()
            columns = self._columns(field, entry["columns"]) if is_pair else None
            if column_type not in _COLUMN_TYPES:
                types = ", ".join(_COLUMN_TYPES)
                self.add(field, f"must be {{columns, column_type}} with a type of {types}", repr(entry))
            elif columns is not None:
                self._convert(field, columns, str(column_type), type_options)

    def _convert(self, field: str, columns: ColumnChoice, column_type: str, options: Any) -> None:
        allowed = {"image_url": ("stream_info", "string"), self._label_key: ("string", "int")}
        for column, types in allowed.items():
            if columns.matches(column) and column_type not in types:
                rule = f"must leave {column} as it is, or convert it to {' or '.join(types)}"
                self.add(field, rule, column_type, "remove the conversion")
        texts = options if isinstance(options, dict) and column_type == "boolean" else {}
        for key in ("true_values", "false_values"):
            if not isinstance(texts.get(key), list | None):
                self.add(f"{field}.boolean.{key}", "must be a list of texts", repr(texts[key]))
                return
        cast = _boolean_cast(options) if column_type == "boolean" else _CASTS.get(column_type)
        if cast is not None:

            def converted(values: Values) -> Values:
                return {
                    key: _cast(value, cast) if columns.matches(key) else value
                    for key, value in values.items()
                }

            self._add_step(field, ColumnChange(converted))

    def _keep_columns(self, field: str, options: Any) -> None:
        self._choose_columns(field, options, keep=True)

    def _drop_columns(self, field: str, options: Any) -> None:
        self._choose_columns(field, options, keep=False)

    def _choose_columns(self, field: str, options: Any, *, keep: bool) -> None:
        named = self._columns(field, options)
        if named is None:
            return
        dropped = named._replace(inverted=not named.inverted) if keep else named
        image = "Path" if self.plan.partition is not None and not self.plan.format else "image_url"
        lost = [column for column in (image, self._label_key) if dropped.matches(column)]
        if lost:
            rule = f"must leave the columns {image} and {self._label_key}"
            hint = "the label is the column that target_column_name names" if self._label_key in lost else ""
            self.add(field, rule, f"a table without {' and '.join(lost)}", hint)
            return

        def remaining(values: Values) -> Values:
            return {key: value for key, value in values.items() if not dropped.matches(key)}

        self.plan.dropped += (dropped,)
        self._add_step(field, ColumnChange(remaining))

    def _columns(self, field: str, columns: Any) -> ColumnChoice | None:
        """The columns that are named: one, a list, or {pattern, ignore_case, invert}."""
        if isinstance(columns, dict) and isinstance(columns.get("pattern"), str):
            options = self._options(field, columns, ("pattern", "ignore_case", "invert"))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of Python, of sets in sets
                    re.compile(options["pattern"])
            except re.error as error:
                self.add(f"{field}.pattern", "must be a regular expression", str(error))
                return None
            ignore_case, inverted = bool(options.get("ignore_case")), bool(options.get("invert"))
            return ColumnChoice((), options["pattern"], ignore_case, inverted)
        names = [columns] if isinstance(columns, str) else columns
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self.add(field, "must name columns", repr(columns))
            return None
        return ColumnChoice(tuple(names))

    # Rows

    def _add_step(self, field: str, step: Step) -> None:
        self.plan.steps.append((field, step))

    def _filter(self, field: str, expression: Any) -> None:
        try:
            if not isinstance(expression, str):
                raise ValueError(repr(expression))
            self._add_step(field, Filter(Expression(expression)))
        except ValueError as error:
            hint = "write the lines that it selects to a .jsonl file and list that"
            rule = (
                'must compare columns with values (== != < <= > >=), joined by and, or, not: col("x") == "y"'
            )
            self.add(field, rule, str(error), hint)

    def _take(self, field: str, count: Any) -> None:
        if self._is_number(field, count, 1):
            self._add_step(field, take(min(count, sys.maxsize)))

    def _skip(self, field: str, count: Any) -> None:
        if self._is_number(field, count, 0):
            self._add_step(field, skip(min(count, sys.maxsize)))

    def _is_number(self, field: str, count: Any, least: int) -> bool:
        is_number = isinstance(count, int) and not isinstance(count, bool) and count >= least
        if not is_number:
            self.add(field, f"must be a whole number of rows, at least {least}", repr(count))
        return is_number

    def _take_random_sample(self, field: str, options: Any) -> None:
        values = self._options(field, options, ("probability", "seed"))
        self._draw(field, 0.0, values.get("probability"), values.get("seed"))

    def _sample(self, field: str, options: Any) -> None:
        """Read one of the two tables of random_split."""
        values = self._options(field, options, ("sampler", "sampler_arguments"))
        sampler = values.get("sampler", "random_percent")
        if str(sampler).lower().replace("_", "") != "randompercent":
            self.add(f"{field}.sampler", "must be random_percent", repr(sampler))
        field = f"{field}.sampler_arguments"
        known = ("probability", "probability_lower_bound", "seed")
        arguments = self._options(field, values.get("sampler_arguments"), known)
        low = arguments.get("probability_lower_bound", 0.0)
        self._draw(field, low, arguments.get("probability"), arguments.get("seed"))

    def _draw(self, field: str, low: Any, high: Any, seed: Any) -> None:
        bounds = [value for value in (low, high) if isinstance(value, int | float)]
        if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1:
            self.add(f"{field}.probability", "must be in [0, 1], above its lower bound", f"{low} to {high}")
            return
        if not isinstance(seed, int | None):
            self.add(f"{field}.seed", "must be a whole number", repr(seed))
            return
        self._add_step(field, sample(bounds[0], bounds[1], abs(seed or 0)))
        drawn = f"seed {seed}" if seed is not None else "seed 0, since it has none"
        rule = f"the rows are drawn with {drawn}; they are other rows than Azure draws"
        self.add(field, rule, warning=True)


def _boolean_cast(options: Any) -> Callable[[Any], bool]:
    """The conversion to a boolean by the texts in `true_values` and `false_values`."""
    given = options if isinstance(options, dict) else {}
    values = {str(text).lower(): False for text in given.get("false_values") or _FALSE}
    values |= {str(text).lower(): True for text in given.get("true_values") or _TRUE}

    def cast(value: Any) -> bool:
        text = str(value).lower()
        if text not in values:
            raise ValueError(text)
        return values[text]

    return cast


def _cast(value: Any, cast: Callable[[Any], Any]) -> Any:
    """A converted value; None if it cannot be converted."""
    try:
        return None if value is None else cast(value)
    except (TypeError, ValueError, OverflowError):
        return None
