"""Errors of a full disk, whichever library raises them, become one that says what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from trainer.errors import FullDiskError, RunError
from trainer.files import atomic_writer
from trainer.full_disk import full_disk_reason, full_disk_told


def full(number: int = errno.ENOSPC) -> OSError:
    return OSError(number, os.strerror(number))


def torch_error() -> RuntimeError:
    return RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598")


def sqlite_error() -> sqlite3.Error:
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count = 2")
    database.execute("CREATE TABLE numbers (x BLOB)")
    with closing(database), pytest.raises(sqlite3.Error) as caught:
        database.execute("INSERT INTO numbers VALUES (zeroblob(100000))")
    return caught.value


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (full(), "No space left on device"),
        (full(errno.EDQUOT), os.strerror(errno.EDQUOT)),
        (shutil.Error([("from", "to", str(full()))]), "No space left on device"),
        (torch_error(), "only a part of it was written"),
        (sqlite_error(), "database or disk is full"),
    ],
)
def test_errors_of_a_full_disk_are_told_with_the_next_step(
    error: Exception, reason: str, tmp_path: Path
) -> None:
    def wrapped() -> None:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("the library failed") from cause

    assert full_disk_reason(error) == reason
    with pytest.raises(FullDiskError) as told, full_disk_told(tmp_path, lambda: "try again"):
        wrapped()
    assert re.fullmatch(
        rf"{tmp_path}: cannot be written \({reason}; [\d,]+ MB are free\)\. Make room or raise the quota, "
        "then try again",
        str(told.value),
    )


def test_file_that_did_not_fit_is_named(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_writer(tmp_path / "metrics.csv") as file:
            file.write("half")
            raise full()

    told = pytest.raises(FullDiskError, match=r"/metrics\.csv: cannot be written")
    with told, full_disk_told(tmp_path, lambda: "try again"):
        write()
    assert not list(tmp_path.iterdir())


def test_run_error_about_a_full_disk_gets_the_next_step(tmp_path: Path) -> None:
    def write() -> None:
        try:
            raise full()
        except OSError as error:
            raise RunError("the model cannot be written") from error

    with pytest.raises(FullDiskError, match="then try again"), full_disk_told(tmp_path, lambda: "try again"):
        write()


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), ValueError("no"), RunError("taken")])
def test_other_errors_stay_as_they_are(error: Exception, tmp_path: Path) -> None:
    assert full_disk_reason(error) is None
    with pytest.raises(type(error), match=str(error.args[-1])), full_disk_told(tmp_path, lambda: "try again"):
        raise error
