"""The other processes of a training on this machine: started, watched, and ended with the first.

`python -m trainer.training.ranks` is such a process. What it is to do comes through its standard input, whose
end tells it that the first process is gone.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

import torch
from lightning import Callback, Trainer

from trainer.errors import BrokenOffError, NoMemoryError, TrainerError, TrainingError
from trainer.training.devices import Devices
from trainer.training.memory import NO_MEMORY

log = logging.getLogger("trainer")

_SECONDS_TO_NOTICE = 10.0
"""From a rank's death on. gloo's exchanges then end with an error, NCCL's do not end."""
_SECONDS_TO_DIE = 15.0
_SECONDS_TO_FINISH = 60.0
_SECONDS_TO_LEAVE = 2.0
"""For ranks that are told to end: one that waits for another rank does not hear of it."""
_LOST = 3
"""Exit status of a rank that another one left; that other one is to blame."""
_REFUSED = 5
"""Exit status of a rank that says itself why it does not go on; NO_MEMORY if that is why."""
_NOT_REACHED = ("gloo", "nccl", "tcpstore", "connection closed by peer", "connection reset by peer")
"""Words by which an error is one of an exchange between ranks."""


class LostContactError(BrokenOffError):
    """Another rank does not answer any more."""


class OtherRanks:
    """The other processes of a training, as a context around it.

    What happens to them comes out of it as a TrainingError that says which rank ended and how.

    Attributes:
        devices: of this process; where the ranks meet is settled on entry.
    """

    _left = False
    """A group of this process could not be ended: its ranks would be waited for."""

    def __init__(self, devices: Devices, run: Path) -> None:
        self.devices, self.run = devices, run
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._said: dict[int, IO[bytes]] = {}
        self._over = threading.Event()

    def start(self, follow: Callable[..., None], *arguments: Any) -> None:
        """Start this machine's other ranks, unless a launcher did.

        Each calls follow(its Devices, what to call when it is ready, *arguments).

        Raises:
            TrainingError: a callback among the arguments cannot be sent to another process, a rank ended
                before it was ready, or this process has the ranks of an earlier training.
        """
        if self.devices.ranks > 1 and OtherRanks._left:
            raise TrainingError(
                f"this process cannot train on {self.devices}: it has trained on several devices before, and "
                "NCCL's ranks of that training cannot be left; do it in a new process, or on one device"
            )
        if self.devices.launcher or self.devices.local_ranks == 1:
            return
        if self.devices.nodes == 1:
            self.devices = replace(self.devices, port=_free_port())
        for local in range(1, self.devices.local_ranks):
            of_rank = replace(self.devices, local_rank=local)
            self._start(of_rank, _packed(follow, of_rank, *arguments))
        for rank, process in self._processes.items():
            assert process.stdout is not None
            if not process.stdout.read(1):
                process.wait()
                raise self._error(rank)
        if self._processes:
            threading.Thread(target=self._watch, daemon=True).start()

    def _start(self, devices: Devices, orders: bytes) -> None:
        said = tempfile.TemporaryFile()  # noqa: SIM115 -- it is read if the process fails
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            # Libraries look at it to see who is to speak.
            env={**os.environ, "LOCAL_RANK": str(devices.local_rank)},
        )
        self._processes[devices.rank], self._said[devices.rank] = process, said
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which `start` notices
            process.stdin.write(orders)
            process.stdin.flush()

    def __enter__(self) -> OtherRanks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        try:
            if error is None:
                if self.devices.ranks > 1 and _meets():
                    torch.distributed.destroy_process_group()  # NCCL's ranks do this together
                self._wait(_SECONDS_TO_FINISH)
            elif isinstance(error, RuntimeError) and self.devices.ranks > 1:
                self._explain(error)
        finally:
            self._end()
            if self.devices.ranks > 1 and _meets():
                if _ends_alone():
                    torch.distributed.destroy_process_group()
                else:
                    OtherRanks._left = True

    def _explain(self, error: RuntimeError) -> None:
        """Raise what stands behind an exchange that failed; errors of other kinds are left as they are."""
        if any(word in str(error).lower() for word in _NOT_REACHED):
            until = time.monotonic() + _SECONDS_TO_DIE
            while self._processes and not self._failed() and time.monotonic() < until:
                time.sleep(0.1)
            if failed := self._failed():
                raise self._error(failed[0]) from error
            first = str(error).splitlines()[0].split(". ")[0]
            raise LostContactError(
                f"another rank does not answer any more ({first}); {self._hint()}"
            ) from error

    def _failed(self) -> list[int]:
        """Ranks that ended badly, those first that can be to blame for the others."""
        statuses = {rank: process.poll() for rank, process in self._processes.items()}
        return sorted((rank for rank, s in statuses.items() if s), key=lambda rank: statuses[rank] == _LOST)

    def _error(self, rank: int) -> TrainingError:
        status, text = self._processes[rank].returncode, self._ended(rank)
        if status == NO_MEMORY:
            return NoMemoryError(text)
        return TrainingError(text) if status == _REFUSED else BrokenOffError(text)

    def _ended(self, rank: int) -> str:
        status = self._processes[rank].returncode
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            why = ": the system does that when memory runs out" if -status == signal.SIGKILL else ""
            return f"rank {rank} ended (signal {-status}, {name}{why}); {self._hint()}"
        self._said[rank].seek(0)
        said = self._said[rank].read().decode(errors="replace").strip()
        _, found, reason = said.rpartition("\nerror: ")
        if found or said.startswith("error: "):
            return reason.removeprefix("error: ")
        last = said.splitlines()[-1] if said else "it said nothing"
        return f"rank {rank} ended (exit status {status}): {last}; {self._hint()}\n{said}".strip()

    def _hint(self) -> str:
        run = self.run if self.devices.leads else "RUN"
        return f"`trainer fit --resume {run}` goes on from the last epoch"

    def _watch(self) -> None:
        """End the whole process if a rank has died and the training does not get to notice it."""
        while not self._over.wait(0.2):
            if not self._failed() or self._over.wait(_SECONDS_TO_NOTICE):
                continue
            rank = self._failed()[0]
            text = self._ended(rank)
            log.debug("the run failed: %s", text)  # for the file
            sys.stderr.write(f"error: {text}\n")
            sys.stderr.flush()
            self._kill()
            os._exit(NO_MEMORY if self._processes[rank].returncode == NO_MEMORY else 1)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))

    def _end(self) -> None:
        for process in self._processes.values():
            process.terminate()
        self._wait(_SECONDS_TO_LEAVE)
        self._kill()
        for process, said in zip(self._processes.values(), self._said.values(), strict=True):
            process.wait()
            for pipe in (process.stdin, process.stdout, said):
                if pipe is not None:
                    pipe.close()

    def _kill(self) -> None:
        for process in self._processes.values():
            process.kill()


class EndAtOnce(Callback):
    """SIGTERM ends a training of several ranks like Ctrl-C.

    Lightning answers it with an exchange between the ranks, for which one that is ended alone waits in vain;
    it also asks before each batch, and waits for the device, whether another rank had it.
    """

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if trainer.world_size > 1:
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def silenced(devices: Devices) -> Iterator[None]:
    """Nothing that a rank other than the first says is shown, but the error with which it ends."""
    sys.stdout.flush()
    before = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except LostContactError:
        raise
    except TrainerError as error:
        kind = NoMemoryError if isinstance(error, NoMemoryError) else TrainingError
        raise kind(f"rank {devices.rank}: {error}") from error
    finally:
        logging.disable(disabled)
        sys.stdout.flush()
        os.dup2(before, 1)
        os.close(before)


def _meets() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _ends_alone() -> bool:
    """NCCL would wait for a rank that is dead; its group goes with the process."""
    return bool(torch.distributed.get_backend() == "gloo")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _packed(*orders: Any) -> bytes:
    """
    Raises:
        TrainingError: what is to be sent holds something that cannot be, such as a lambda or an open file.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    try:
        return pickle.dumps(spec.name if spec else "") + pickle.dumps(orders)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TrainingError(
            f"the job's callbacks cannot be sent to the processes of the other devices: {error}; "
            "train on one device, or make them of what pickle takes"
        ) from error


class _Unpacker(pickle.Unpickler):
    """Finds what was defined in the first process's main module, if that has a name to import it by."""

    def __init__(self, file: IO[bytes], main: str) -> None:
        super().__init__(file)
        self.main = main

    def find_class(self, module: str, name: str) -> Any:
        if module == "__main__" and self.main:
            return getattr(importlib.import_module(self.main), name)
        return super().find_class(module, name)


def _end_with_first(orders: int) -> None:
    """Wait for the end of the first process, which leaves nobody to train for."""
    while os.read(orders, 4096):
        pass
    os._exit(1)


def main() -> None:
    """Train as one of the other ranks."""
    ready = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # whatever is printed
    orders = os.fdopen(os.dup(0), "rb")
    follow, *arguments = _Unpacker(orders, pickle.load(orders)).load()
    threading.Thread(target=_end_with_first, args=(0,), daemon=True).start()
    try:
        devices, *others = arguments
        follow(devices, lambda: os.write(ready, b"r"), *others)
    except TrainerError as error:
        lost, memory = isinstance(error, LostContactError), isinstance(error, NoMemoryError)
        _leave(_LOST if lost else NO_MEMORY if memory else _REFUSED, f"\nerror: {error}")
    except KeyboardInterrupt:
        _leave(130, "interrupted")


def _leave(status: int, words: str) -> None:
    """End at once: the first process waits to hear why the training broke off."""
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
