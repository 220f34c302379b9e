"""The other ranks of a run on this machine: started, watched, and ended together with rank 0.

Neither torch.multiprocessing nor torch.distributed.launcher would do: the first runs an unguarded script of
the user again in each process; the second also moves rank 0 into a process of its own, so that the state of
the caller's callbacks would be lost.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

import torch
from lightning import Callback, Trainer

from trainer.errors import BrokenOffError, NoMemoryError, TrainingError
from trainer.job.callback_path import search_path
from trainer.training.devices import Devices
from trainer.training.memory import NO_MEMORY
from trainer.training.rank_process import LOST, REFUSED, LostContactError, packed

log = logging.getLogger("trainer")

_SECONDS_TO_NOTICE = 10.0
"""Time that training has to notice a rank's death: gloo's exchanges end with an error, NCCL's do not end."""
_SECONDS_TO_DIE = 15.0
_SECONDS_TO_FINISH = 60.0
_SECONDS_AFTER_SIGTERM = 2.0
"""A rank that waits for another rank does not react to SIGTERM."""
_EXCHANGE_WORDS = ("gloo", "nccl", "tcpstore", "connection closed by peer", "connection reset by peer")
"""Words that mark the error of an exchange between ranks."""


class OtherRanks:
    """The other processes of a run, as a context around its training.

    A failure of one of them leaves the context as a TrainingError that says which rank ended, and how.
    """

    _left = False
    """Whether this process is still in the group of an earlier run, which would wait for dead ranks."""

    def __init__(self, devices: Devices, run: Path) -> None:
        self.devices, self.run = devices, run
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._stderr: dict[int, IO[bytes]] = {}
        self._is_over = threading.Event()

    def start(self, function: Callable[..., object], *arguments: Any) -> Devices:
        """Start this machine's other ranks, unless a launcher has.

        Each calls function(devices, ready, *arguments) with its own devices; `start` waits for its ready().

        Returns:
            This process's devices, with the port where the ranks meet.

        Raises:
            TrainingError: an argument cannot be pickled, a rank ended before it was ready, or this process is
                still in the group of an earlier run.
        """
        if self.devices.ranks > 1 and OtherRanks._left:
            raise TrainingError(
                f"this process cannot train on {self.devices}: an earlier run on several devices failed, and "
                "its NCCL group cannot be left; do it in a new process, or on one device"
            )
        if self.devices.launcher or self.devices.local_ranks == 1:
            return self.devices
        first = self.devices if self.devices.nodes > 1 else replace(self.devices, port=_free_port())
        for local_rank in range(1, first.local_ranks):
            devices = replace(first, local_rank=local_rank)
            self._start(devices, packed(function, devices, *arguments))
        for rank, process in self._processes.items():
            assert process.stdout is not None
            if not process.stdout.read(1):
                process.wait()
                raise self._error(rank)
        threading.Thread(target=self._watch, daemon=True).start()
        return first

    def _start(self, devices: Devices, orders: bytes) -> None:
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 -- closed in _end
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer.training.rank_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            # Libraries read this variable to decide which process prints.
            env={**os.environ, **search_path(), "LOCAL_RANK": str(devices.local_rank)},
        )
        self._processes[devices.rank], self._stderr[devices.rank] = process, stderr
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which `start` notices
            process.stdin.write(orders)
            process.stdin.flush()

    def __enter__(self) -> OtherRanks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        try:
            if error is None:
                if self.devices.ranks > 1 and _is_in_group():
                    torch.distributed.destroy_process_group()  # NCCL's ranks have to do this together
                self._wait(_SECONDS_TO_FINISH)
            elif isinstance(error, RuntimeError) and self.devices.ranks > 1:
                self._explain(error)
        finally:
            self._end()
            if self.devices.ranks > 1 and _is_in_group():
                if _ends_alone():
                    torch.distributed.destroy_process_group()
                else:
                    OtherRanks._left = True

    def _explain(self, error: RuntimeError) -> None:
        """Raise the cause of a failed exchange between ranks. Other errors are left as they are."""
        if not any(word in str(error).lower() for word in _EXCHANGE_WORDS):
            return
        deadline = time.monotonic() + _SECONDS_TO_DIE
        while self._processes and not self._failed() and time.monotonic() < deadline:
            time.sleep(0.1)
        if failed := self._failed():
            raise self._error(failed[0]) from error
        first_sentence = str(error).splitlines()[0].split(". ")[0]
        raise LostContactError(
            f"another rank stopped responding ({first_sentence}); {self._hint()}"
        ) from error

    def _failed(self) -> list[int]:
        """The ranks that failed, starting with those that did not fail because of another rank."""
        statuses = {rank: process.poll() for rank, process in self._processes.items()}
        return sorted((rank for rank, s in statuses.items() if s), key=lambda rank: statuses[rank] == LOST)

    def _error(self, rank: int) -> TrainingError:
        kinds = {NO_MEMORY: NoMemoryError, REFUSED: TrainingError}
        return kinds.get(self._processes[rank].returncode, BrokenOffError)(self._reason(rank))

    def _reason(self, rank: int) -> str:
        status = self._processes[rank].returncode
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            why = ": the system does that when memory runs out" if -status == signal.SIGKILL else ""
            return f"rank {rank} ended (signal {-status}, {name}{why}); {self._hint()}"
        self._stderr[rank].seek(0)
        output = self._stderr[rank].read().decode(errors="replace").strip()
        _, marker, message = f"\n{output}".rpartition("\nerror: ")
        if marker:
            return message
        last = output.splitlines()[-1] if output else "it printed nothing"
        return f"rank {rank} ended (exit status {status}): {last}; {self._hint()}\n{output}".strip()

    def _hint(self) -> str:
        run = self.run if self.devices.is_rank_zero else "RUN"
        return f"`trainer fit --resume {run}` continues after the last epoch"

    def _watch(self) -> None:
        """End this process if a rank died and training does not notice: NCCL would wait for ever."""
        while not self._is_over.wait(0.2):
            if not self._failed() or self._is_over.wait(_SECONDS_TO_NOTICE):
                continue
            rank = self._failed()[0]
            reason = self._reason(rank)
            log.debug("the run failed: %s", reason)  # for the log file
            sys.stderr.write(f"error: {reason}\n")
            sys.stderr.flush()
            self._kill()
            os._exit(NO_MEMORY if self._processes[rank].returncode == NO_MEMORY else 1)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))

    def _end(self) -> None:
        for process in self._processes.values():
            process.terminate()
        self._wait(_SECONDS_AFTER_SIGTERM)
        self._kill()
        for process, stderr in zip(self._processes.values(), self._stderr.values(), strict=True):
            with process, stderr:  # closes the pipes
                process.wait()

    def _kill(self) -> None:
        for process in self._processes.values():
            process.kill()


class EndOnSigterm(Callback):
    """Makes SIGTERM end a run on several devices as Ctrl-C does.

    Lightning answers SIGTERM with an exchange between the ranks, which waits for ever if only one of them got
    it. Before each batch, it also asks all ranks whether rank 0 got it, and waits for the device.
    """

    def on_sanity_check_start(self, trainer: Trainer, module: Any) -> None:
        self.on_train_start(trainer, module)

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if trainer.world_size == 1:
            return
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)  # `train` turns it into a KeyboardInterrupt


def _is_in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _ends_alone() -> bool:
    """Whether this process can leave the group without the others. NCCL would wait for a dead rank."""
    return bool(torch.distributed.get_backend() == "gloo")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
