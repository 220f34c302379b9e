"""A full disk ends a run in one message: its log and its tracking stay silent meanwhile."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from trainer.training import tracking
from trainer.training.mlflow_store import Store
from trainer.training.run_log import logging_to

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


@needs_full
def test_log_on_a_full_disk_is_told_once(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with logging_to(FULL):
        for number in range(3):
            logging.getLogger("trainer").info("line %d", number)
    assert "Traceback" not in capfd.readouterr().err
    assert caplog.messages[-1] == (
        "/dev/full: lines are missing, since it could not be written: No space left on device"
    )
    assert len([message for message in caplog.messages if "missing" in message]) == 1


@needs_full
def test_error_of_a_run_is_its_only_message(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="mine"), logging_to(FULL):
        raise ValueError("mine")
    assert capfd.readouterr().err == ""
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


class FullDatabase:
    """A client whose database has no room left."""

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any, **__: Any) -> None:
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise MlflowException("the database failed") from error

        return call


@pytest.mark.parametrize(("status", "warnings"), [("FAILED", 0), ("FINISHED", 1)])
def test_tracking_leaves_the_message_to_a_run_that_fails(
    status: str,
    warnings: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    vars(store)["client"] = FullDatabase()  # in place of what the cached property would hold
    tracker = tracking.MlflowTracker(store, tmp_path, "1", True, ExitStack())
    tracker.log(1, {"loss": 1.0})
    tracker.end(status)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == warnings
    assert all("No space left on device" in line for line in told)
