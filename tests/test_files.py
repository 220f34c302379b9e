from __future__ import annotations

from pathlib import Path

import pytest

from trainer.files import atomic_writer, write_atomically


def test_write_atomically_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    write_atomically(path, "näw\n")
    assert path.read_text("utf-8") == "näw\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_writer(path, "wb") as file:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
