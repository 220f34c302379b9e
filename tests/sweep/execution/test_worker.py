"""How a worker ends."""

from __future__ import annotations

import os
import signal
from threading import Event, Timer
from typing import Any, cast

import pytest

from trainer.sweep.execution.worker import Worker, watch


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
