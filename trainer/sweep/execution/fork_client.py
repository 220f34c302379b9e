"""Runs trials in processes of their own: starts them by a fork server, stops them, reads their outcomes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from trainer.job.callback_path import search_path
from trainer.models.catalog import CARDS
from trainer.sweep.execution.fork_server import Event, Request
from trainer.sweep.execution.messages import DISK_FULL, Order, Outcome, outcome_path, write_privately
from trainer.training.memory import NO_MEMORY

log = logging.getLogger("trainer")

PRELOADED = (
    "trainer.training.fit",
    "trainer.sweep.execution.pruning_callback",
    *(card.module for card in CARDS.values() if card.preload),
    "lightning.pytorch.strategies",
    "optuna.trial",
    "torch.utils.data",
    "sklearn.metrics",
)
"""Modules that every trial needs. Libraries of single families are left to the trials that use them."""

_SERVER = "trainer.sweep.execution.fork_server"
_SECONDS_TO_CLOSE = 10
_SECONDS_TO_EXIT = 60
"""How long a trial has after Ctrl-C to finish its batch and end its own processes."""
_RANK_VARIABLES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)


class TrialProcess:
    """The process of a trial, whose parent is the fork server.

    Attributes:
        pid: None until it has started.
        returncode: None while it runs; minus the number of the signal that ended it.
    """

    def __init__(self) -> None:
        self.pid: int | None = None
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._early_signals: list[int] = []

    def set_started(self, pid: int) -> None:
        """Record the process's ID and deliver the signals that were sent before."""
        with self._lock:
            self.pid = pid
            for number in self._early_signals:
                _send(pid, number)

    def set_ended(self, status: int) -> None:
        """Record the exit status; the first one counts."""
        with self._lock:
            if self.returncode is None:
                self.returncode = status
        self._ended.set()

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for the end, at most some seconds; returns `returncode`."""
        self._ended.wait(seconds)
        return self.returncode

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """Kill it with the processes of its other devices."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._lock:
            if self.returncode is not None:
                return
            if self.pid is None:
                self._early_signals.append(number)
            else:
                _send(self.pid, number)


def _send(pid: int, number: int) -> None:
    if number == signal.SIGKILL:
        with suppress(ProcessLookupError):  # it has no process group of its own yet
            os.killpg(pid, number)
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class ForkServer:
    """A fork server, started with the first trial and again if it dies. Can be used from several threads.

    Args:
        environment: variables to set in the server, such as OMP_NUM_THREADS, which is read on import.
        log: file for what the server prints itself; removed if it prints nothing.
        modules: imported before the first trial.
    """

    def __init__(self, environment: Mapping[str, str], log: Path, modules: Sequence[str] = PRELOADED) -> None:
        self._environment, self._log, self._modules = environment, log, modules
        self._lock = threading.Lock()
        self._numbers = count()
        self._trials: dict[int, TrialProcess] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, order: Path, output: Path, environment: Mapping[str, str]) -> TrialProcess:
        """Start the process of a trial.

        Args:
            output: file for what the process prints.
            environment: variables to set in the process.
        """
        trial = TrialProcess()
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start_server()
            number = next(self._numbers)
            self._trials[number] = trial
            request = Request(number=number, order=order, output=output, environment=dict(environment))
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):  # the server has died, which the listener notices
                self._process.stdin.write(request.model_dump_json().encode() + b"\n")
                self._process.stdin.flush()
        return trial

    def close(self) -> None:
        """End the server and the trials that still run."""
        with self._lock:
            if self._process is None:
                return
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(_SECONDS_TO_CLOSE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._log.exists() and not self._log.stat().st_size:
                self._log.unlink()

    def _start_server(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()  # of the server that died
        # torchrun or srun may have given this worker a rank, which its trials must not take for their own.
        inherited = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", _SERVER, *self._modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**inherited, **search_path(), "TRAINER_ALONE": "1", **self._environment},
                start_new_session=True,  # Ctrl-C reaches trials only through this process
            )
        self._trials = {}
        threading.Thread(target=self._listen, args=(process, self._trials), daemon=True).start()
        return process

    def _listen(self, process: subprocess.Popen[bytes], trials: dict[int, TrialProcess]) -> None:
        """Record the server's events, until it ends, and its trials with it."""
        assert process.stdout is not None
        try:
            with process.stdout:
                for line in process.stdout:
                    event = Event.model_validate_json(line)
                    if event.pid is not None:
                        trials[event.number].set_started(event.pid)
                    elif event.status is not None:
                        trials.pop(event.number).set_ended(event.status)
        finally:
            process.kill()  # if an event could not be read; else it has ended
            process.wait()
            with self._lock:  # after this, no trial is added to this server's
                for trial in trials.values():
                    trial.set_ended(-signal.SIGKILL)


def run_trial(
    server: ForkServer,
    order: Order,
    path: Path,
    environment: Mapping[str, str],
    should_stop: Callable[[], bool],
) -> Outcome:
    """Run a trial until it ends or `should_stop` returns true.

    Args:
        server: starts the process.
        path: where to write the order; the process's output and outcome are written next to it.
        environment: variables to set in the process.
    """
    write_privately(path, order.model_dump_json(indent=2))
    outcome_path(path).unlink(missing_ok=True)
    output = path.with_suffix(".out")
    process = server.start(path, output, environment)
    was_stopped = False
    is_logged = False
    try:
        while process.wait(0.2) is None:
            if process.pid is not None and not is_logged:
                is_logged = True
                gpus = environment.get("CUDA_VISIBLE_DEVICES")
                on_gpus = f" on GPU {gpus}" if gpus else ""
                log.info("trial %d: started as process %d%s", int(path.stem), process.pid, on_gpus)
            if should_stop():
                was_stopped = True
                _stop(process)
    finally:
        process.kill()
    status = process.wait()
    assert status is not None, "it has ended"
    # A scheduler that ends the worker ends its processes too, and perhaps this one first.
    return _read_outcome(status, path, output, was_stopped=was_stopped or should_stop())


def _stop(process: TrialProcess) -> None:
    process.interrupt()
    if process.wait(_SECONDS_TO_EXIT) is None:
        process.kill()
        process.wait()


def _read_outcome(status: int, path: Path, output: Path, *, was_stopped: bool) -> Outcome:
    try:
        return Outcome.model_validate_json(outcome_path(path).read_text("utf-8"))
    except FileNotFoundError:
        pass  # the process was killed or has crashed
    if status == DISK_FULL:
        return Outcome(state="stopped", disk_full=True, reason="the disk is full")
    if was_stopped:
        return Outcome(state="stopped")
    lines = output.read_text("utf-8", errors="replace").strip().splitlines() if output.exists() else []
    last_line = f": {lines[-1][:300]}" if lines else ""
    how = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
    return Outcome(
        state="failed",
        reason=f"its process {how}{last_line}; its whole output is in {output}",
        may_succeed=True,
        no_memory=status == NO_MEMORY,
    )
