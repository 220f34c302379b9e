"""A JSON lines file and how its lines are read."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trainer.data.reading.urls import local_path, parent

_CHUNK_BYTES = 1 << 22

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class DataFile(NamedTuple):
    """One JSON lines file.

    Attributes:
        name: the name used in messages.
        path: absolute local path or URL.
        encoding: Python's name of its character encoding.
        drop_invalid: drop and count lines that are not JSON (`invalid_lines: drop` of an MLTable).
    """

    name: str
    path: str
    encoding: str = "utf-8"
    drop_invalid: bool = False

    @property
    def base(self) -> str:
        """The folder or URL that relative image_urls are resolved against."""
        return parent(self.path)


def read_lines(file: DataFile) -> Iterator[list[bytes]]:
    """Yield the file's lines in UTF-8, without line ends, some thousands at a time.

    Raises:
        OSError, UrlError: the file cannot be read.
        UnicodeError: the content is not in `file.encoding`. UTF-8 itself is not checked here, but line by
        line.
    """
    rest = b""
    for chunk in _chunks(file):
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        yield lines
    if rest:
        yield [rest]


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
