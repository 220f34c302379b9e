"""A JSON lines file and how its lines are read."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trainer.data.reading.fetching import local_path
from trainer.data.reading.urls import parent

_CHUNK_BYTES = 1 << 22
_LARGE_BYTES = 1 << 25

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class ColumnChoice(NamedTuple):
    """Columns of an MLTable: those with these names, or those whose name the pattern matches."""

    names: tuple[str, ...] = ()
    pattern: str | None = None
    ignore_case: bool = False
    inverted: bool = False

    def matches(self, column: str) -> bool:
        """Whether a column is among them."""
        if self.pattern is None:
            is_named = column in self.names
        else:
            is_named = re.search(self.pattern, column, re.IGNORECASE * self.ignore_case) is not None
        return is_named is not self.inverted


class DataFile(NamedTuple):
    """One JSON lines file.

    Attributes:
        name: the name used in messages.
        path: absolute local path or URL.
        encoding: Python's name of its character encoding.
        drop_invalid: drop and count lines that are not JSON (`invalid_lines: drop` of an MLTable).
        content: JSON lines in UTF-8 to read instead of the file, which has another format.
        keep: 1 for each line to read and 0 for each that an MLTable leaves out; None: all.
        dropped: keys of the lines that an MLTable leaves out.
    """

    name: str
    path: str
    encoding: str = "utf-8"
    drop_invalid: bool = False
    content: bytes | None = None
    keep: bytes | None = None
    dropped: tuple[ColumnChoice, ...] = ()

    @property
    def base(self) -> str:
        """The folder or URL that relative image_urls are resolved against."""
        return parent(self.path)

    def drops(self, key: str) -> bool:
        """Whether a key of the lines is left out."""
        return any(choice.matches(key) for choice in self.dropped)


def read_lines(file: DataFile) -> Iterator[list[bytes]]:
    """Yield the file's lines in UTF-8, without line ends, some thousands at a time.

    Lines that the MLTable leaves out are empty.

    Raises:
        OSError, UrlError: the file cannot be read.
        UnicodeError: the content is not in `file.encoding`. UTF-8 itself is not checked here, but line by
        line.
    """
    if file.keep is None:
        yield from _all_lines(file)
        return
    count = 0
    for lines in _all_lines(file):
        flags = file.keep[count : count + len(lines)].ljust(len(lines), b"\0")
        yield [line if flag else b"" for line, flag in zip(lines, flags, strict=True)]
        count += len(lines)


def _all_lines(file: DataFile) -> Iterator[list[bytes]]:
    rest = b""
    for chunk in _chunks(file):
        lines = chunk.split(b"\n")
        lines[0] = rest + lines[0]
        rest = lines.pop()
        if lines:
            yield lines
    if rest:
        yield [rest]


def is_large(file: DataFile) -> bool:
    """Whether the file is worth the start of further processes.

    Raises:
        OSError, UrlError: the file cannot be read.
    """
    return file.content is None and local_path(file.path).stat().st_size >= _LARGE_BYTES


def pick_lines(file: DataFile, numbers: Sequence[int]) -> dict[int, bytes]:
    """The lines with the given numbers, counted from 1, as read_lines yields them."""
    wanted = set(numbers)
    picked: dict[int, bytes] = {}
    count = 0
    for lines in read_lines(file):
        picked |= {count + i: line for i, line in enumerate(lines, start=1) if count + i in wanted}
        count += len(lines)
    return picked


def _chunks(file: DataFile) -> Iterator[bytes]:
    if file.content is not None:
        yield file.content
        return
    decoder = None if file.encoding == "utf-8" else codecs.getincrementaldecoder(file.encoding)()
    with open(local_path(file.path), "rb") as stream:
        first = stream.read(_CHUNK_BYTES)
        if decoder is None:
            for mark, encoding in _BYTE_ORDER_MARKS:
                if first.startswith(mark):
                    raise UnicodeError(f"{encoding} (the file starts with its byte order mark)")
            first = first.removeprefix(codecs.BOM_UTF8)
        chunk = first
        while chunk:
            yield chunk if decoder is None else decoder.decode(chunk).encode()
            chunk = stream.read(_CHUNK_BYTES)
        if decoder is not None:
            yield decoder.decode(b"", final=True).encode()
