"""Knows the errors that mean a full disk, and turns them into one that says what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import FullDiskError, RunError, TrainerError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TORCH_WRITER = ("PytorchStreamWriter failed", "unexpected pos")
"""Words of PyTorch's file writer, which does not pass on the system's reason."""


def full_disk_reason(error: BaseException) -> str | None:
    """Why a file could not be written, if the disk or the quota is full; None for any other error.

    Libraries wrap the system's error, so causes are searched, too.
    """
    cause = _full_disk(error)
    if cause is None:
        return None
    if isinstance(cause, OSError):
        return cause.strerror or os.strerror(errno.ENOSPC)
    return "only a part of it was written" if isinstance(cause, RuntimeError) else str(cause)


def _full_disk(error: BaseException) -> BaseException | None:
    """The error itself or the cause of it that means a full disk."""
    cause: BaseException | None = error
    while cause is not None:
        is_of_system = isinstance(cause, OSError) and (
            cause.errno in _FULL
            or (isinstance(cause, shutil.Error) and os.strerror(errno.ENOSPC) in str(cause))
        )
        is_of_torch = isinstance(cause, RuntimeError) and any(words in str(cause) for words in _TORCH_WRITER)
        if is_of_system or is_of_torch or getattr(cause, "sqlite_errorname", "") == "SQLITE_FULL":
            return cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def make_room(path: Path | None, reason: str, next_step: str, what: str = "cannot be written") -> str:
    """The message about a file or directory that cannot be written: how much space is left, what to do."""
    if path is None:
        where = "a file"
    else:
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        where, reason = f"{path}:", f"{reason}; {shutil.disk_usage(existing).free / 1e6:,.0f} MB are free"
    return f"{where} {what} ({reason}). Make room or raise the quota, then {next_step}"


@contextmanager
def full_disk_told(directory: Path | None, next_step: Callable[[], str]) -> Iterator[None]:
    """Turn an error that a full disk causes within the context into one that says so.

    Args:
        directory: where files are written, for errors that name none.
        next_step: returns what to do once there is room, such as "resume with --resume RUN".

    Raises:
        FullDiskError: the disk or the quota is full.
    """
    try:
        yield
    except Exception as error:
        reason, cause = full_disk_reason(error), _full_disk(error)
        # Other errors of ours say what to do; a RunError about a file does not know of the run.
        if reason is None or (isinstance(error, TrainerError) and not isinstance(error, RunError)):
            raise
        named = cause.filename if isinstance(cause, OSError) else None
        path = Path(os.fsdecode(named)) if isinstance(named, str | bytes) else directory
        raise FullDiskError(make_room(path, reason, next_step())) from error
