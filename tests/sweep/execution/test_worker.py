"""How a worker ends."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from threading import Event, Timer
from typing import Any, cast

import optuna
import pytest

from trainer.errors import FullDiskError
from trainer.sweep.execution import trial
from trainer.sweep.execution.fork_client import _read_outcome
from trainer.sweep.execution.messages import Order, Outcome
from trainer.sweep.execution.slots import Slot
from trainer.sweep.execution.storage import open_storage
from trainer.sweep.execution.trial_queue import TrialQueue
from trainer.sweep.execution.worker import Worker, watch
from trainer.sweep.sampling import RandomSampler


class Endless:
    """A worker with one trial, which ends when it is told to."""

    is_over = False

    def __init__(self) -> None:
        self.stop = Event()
        self.has_ended = False

    def start(self) -> None:
        pass

    def wait(self) -> None:
        assert self.stop.is_set()
        self.has_ended = True


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_the_trials_first(how: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM)
    worker: Any = Endless()
    timer = Timer(0.5, os.kill, (os.getpid(), how))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        watch(cast(Worker, worker))
    timer.join()
    assert worker.has_ended
    assert signal.getsignal(signal.SIGTERM) is before


FULL = FullDiskError("run: cannot be written (No space left on device)")


def raise_full(*_: object) -> None:
    raise FULL


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The order of a trial that finds the disk full."""
    monkeypatch.setattr(trial, "_exit_with_parent", lambda: None)
    monkeypatch.setattr(trial, "_train", raise_full)
    path = tmp_path / "0000.json"
    order = Order(job=path, directory=tmp_path / "0000", storage="", study="", trial_id=1)
    path.write_text(order.model_dump_json())
    return path


def test_trial_on_a_full_disk_is_stopped(order: Path) -> None:
    status = trial.main(order)
    outcome = _read_outcome(status, order, order.with_suffix(".out"), was_stopped=False)
    assert outcome == Outcome(state="stopped", disk_full=True, reason=str(FULL))


def test_trial_that_cannot_write_its_outcome_is_stopped(order: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "write_atomically", no_room)
    status = trial.main(order)
    outcome = _read_outcome(status, order, order.with_suffix(".out"), was_stopped=False)
    assert (outcome.state, outcome.disk_full) == ("stopped", True)


def test_full_disk_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(study_name="one", storage=storage, sampler=RandomSampler())
    queue = TrialQueue(study, storage, 3)
    ended: list[int] = []
    monkeypatch.setattr(Worker, "_run", lambda *_: Outcome(state="stopped", disk_full=True, reason=str(FULL)))
    nothing: Any = None
    worker = Worker(
        queue, nothing, nothing, "", tmp_path / "trials", [Slot((), 1, 1)], None, None,
        on_trial_end=lambda number, _: ended.append(number),
    )  # fmt: skip
    worker.start()
    with pytest.raises(FullDiskError, match=r"/trials: cannot be written \(No space left .* fit --resume`"):
        worker.wait()
    assert [(record.number, record.state) for record in queue.records()] == [(0, "waiting")]
    assert not ended
