"""Forks trial processes from one that has already imported what they need.

Importing takes as long as a small training. The process takes orders through its standard input, a line of
JSON each, and says through its standard output which process it started and how that ended. It ends with its
standard input, and its trials with it.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from trainer.models.catalog import CARDS
from trainer.sweep.execution.trial import PARENT_PID

MODULES = (
    "trainer.training.fit",
    "trainer.sweep.execution.pruning_callback",
    *(card.module for card in CARDS.values() if card.preload),
    "lightning.pytorch.strategies",
    "optuna.trial",
    "torch.utils.data",
    "sklearn.metrics",
)
"""What every trial needs; libraries of single families are left to the trials that use them."""

_SECONDS_TO_CLOSE = 10
_RANK = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)


class TrialProcess:
    """A trial's process, as `subprocess.Popen` shows its own children; another process is its parent.

    Attributes:
        returncode: minus the signal's number if one ended it; None while it runs.
    """

    def __init__(self) -> None:
        self.pid: int | None = None  # until it has begun
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._waiting: list[int] = []

    def begun(self, pid: int) -> None:
        with self._lock:
            self.pid = pid
            for number in self._waiting:
                _send(pid, number)

    def ended(self, status: int) -> None:
        with self._lock:
            if self.returncode is None:
                self.returncode = status
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, seconds: float | None = None) -> int | None:
        self._ended.wait(seconds)
        return self.returncode

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """With the processes of its other devices."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._lock:
            if self.returncode is not None:
                return
            if self.pid is None:
                self._waiting.append(number)
            else:
                _send(self.pid, number)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            with suppress(ProcessLookupError):  # it has no session of its own yet
                os.killpg(pid, number)
        os.kill(pid, number)


class WarmProcess:
    """Starts trials; safe to use from several threads.

    Args:
        environment: variables over those of this process, such as OMP_NUM_THREADS, which counts on import.
        said: gets what the process says itself, if that is anything.
        modules: are imported before the first trial.
    """

    def __init__(self, environment: Mapping[str, str], said: Path, modules: Sequence[str] = MODULES) -> None:
        self._environment, self._said, self._modules = environment, said, modules
        self._lock = threading.Lock()
        self._numbers = count()
        self._trials: dict[int, TrialProcess] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, order: Path, output: Path, environment: Mapping[str, str]) -> TrialProcess:
        """Start a trial's process.

        Args:
            order: the trial's.
            output: gets what it prints.
            environment: variables over those of this process.
        """
        trial = TrialProcess()
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._begin()
            assert self._process is not None
            assert self._process.stdin is not None
            number = next(self._numbers)
            self._trials[number] = trial
            line = {"number": number, "order": str(order), "output": str(output)}
            with suppress(BrokenPipeError):  # it has died, which the listener says
                self._process.stdin.write(
                    json.dumps({**line, "environment": {**environment}}).encode() + b"\n"
                )
                self._process.stdin.flush()
        return trial

    def close(self) -> None:
        """End the process, and what trials it still has."""
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
            if self._said.exists() and not self._said.stat().st_size:
                self._said.unlink()

    def _begin(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()  # of one that died
        with self._said.open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, *self._modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                # A worker may be one of several that srun or torchrun started; its trials are not.
                env={**_without_rank(os.environ), "TRAINER_ALONE": "1", **self._environment},
                start_new_session=True,  # Ctrl-C reaches trials through this process alone
            )
        self._trials = {}
        listener = threading.Thread(target=self._listen, args=(self._process, self._trials), daemon=True)
        listener.start()

    def _listen(self, process: subprocess.Popen[bytes], trials: dict[int, TrialProcess]) -> None:
        assert process.stdout is not None
        try:
            with process.stdout:
                for line in process.stdout:
                    said = json.loads(line)
                    if "pid" in said:
                        trials[said["number"]].begun(said["pid"])
                    else:
                        trials.pop(said["number"]).ended(said["status"])
        finally:
            process.kill()  # if it was not understood; else it has ended
            process.wait()
            with self._lock:  # none is added to this process's trials any more
                for trial in trials.values():
                    trial.ended(-signal.SIGKILL)  # they end with it


def _without_rank(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the place among others that torchrun gave a worker: a trial would take it for its own.

    Then only the trials of the first worker would say what became of them.
    """
    return {name: value for name, value in environment.items() if name not in _RANK}


def main() -> None:
    """Fork a trial's process for each order; in each of these, be that trial."""
    from trainer.sweep.execution import trial

    nursery = _Nursery()  # before anything else is imported, which may print
    for name in sys.argv[1:]:
        importlib.import_module(name)
    order = nursery.serve()
    if order is None:
        os._exit(0)  # at once: trials end when they see that it has gone
    sys.exit(trial.main(order))


class _Nursery:
    """The loop that forks; what it returns in a child is the child's order."""

    def __init__(self) -> None:
        self._replies = os.dup(1)
        os.dup2(2, 1)  # whatever a library prints is no reply
        self._numbers: dict[int, int] = {}
        self._heard = b""

    def serve(self) -> Path | None:
        """
        Returns:
            In the process of a trial its order; None at the end of the orders.
        """
        woken, wakes = os.pipe()
        os.set_blocking(wakes, False)
        os.set_blocking(woken, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes)
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fd == woken:
                        with suppress(BlockingIOError):
                            os.read(woken, 4096)
                        self._bury()
                        continue
                    read = os.read(0, 65536)
                    if not read:
                        return None
                    *lines, self._heard = (self._heard + read).split(b"\n")
                    for line in lines:
                        order = json.loads(line)
                        if self._fork(order):
                            signal.set_wakeup_fd(-1)
                            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                            for descriptor in (woken, wakes, self._replies):
                                os.close(descriptor)
                            _become(order)
                            return Path(order["order"])

    def _fork(self, order: Mapping[str, Any]) -> bool:
        """Whether this is the new process."""
        parent = os.getpid()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # one in the midst of it would be lost
        pid = os.fork()
        if pid == 0:
            os.environ[PARENT_PID] = str(parent)
            return True
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self._numbers[pid] = order["number"]
        self._reply(number=order["number"], pid=pid)
        return False

    def _bury(self) -> None:
        while self._numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            number = self._numbers.pop(pid, None)
            if number is not None:
                self._reply(number=number, status=os.waitstatus_to_exitcode(status))

    def _reply(self, **words: int) -> None:
        os.write(self._replies, json.dumps(words).encode() + b"\n")


def _become(order: Mapping[str, Any]) -> None:
    """Make this new process what one that was started for the trial alone would be."""
    os.setsid()  # a group of its own, which is killed as one
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(order["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let it be ignored in the background
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch = sys.modules.get("torch")
    # What has spoken to a GPU's driver cannot be forked; and macOS's libraries cannot at all.
    if sys.platform == "darwin" or (torch is not None and torch.cuda._is_in_bad_fork()):
        os.execv(sys.executable, [sys.executable, "-m", "trainer.sweep.execution.trial", order["order"]])


if __name__ == "__main__":
    main()
