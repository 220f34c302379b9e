"""Writes files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8. Readers see the old file or the new one, never a part of either.

    Raises:
        OSError: the disk is full or the directory is not writable.
    """
    with atomic_writer(path) as file:
        file.write(text)


@contextmanager
def atomic_writer(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Open a file next to `path` and rename it to `path` once the block has ended without an error.

    Args:
        mode: "w" for text in UTF-8, "wb" for bytes.
        options: passed to `open`, such as newline.

    Raises:
        OSError: the disk is full or the directory is not writable.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # processes may write the same file
    encoding = None if "b" in mode else "utf-8"
    try:
        with partial.open(mode, encoding=encoding, **options) as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
