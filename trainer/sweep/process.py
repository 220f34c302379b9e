"""Starts a trial's process, watches over it, and reads how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from trainer.sweep.study import Outcome
from trainer.sweep.trial import WORKER_PID, Order, outcome_path

_SECONDS_TO_END = 60
"""What a trial has to end by itself after Ctrl-C: a batch, and its processes."""


def run(order: Order, path: Path, environment: Mapping[str, str], is_to_end: Callable[[], bool]) -> Outcome:
    """Run a trial to its end, or until it is to end before that.

    Args:
        path: where its order is written; what the process prints goes beside it.
        environment: variables over those of this process.
    """
    write_privately(path, order.model_dump_json(indent=2))
    outcome_path(path).unlink(missing_ok=True)
    output = path.with_suffix(".out")
    stopped = False
    with output.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer.sweep.trial", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            # A worker may be one of several that srun or torchrun started; its trials are not.
            env={**os.environ, "TRAINER_ALONE": "1", **environment, WORKER_PID: str(os.getpid())},
            start_new_session=True,  # Ctrl-C reaches it through this process alone
        )
        try:
            while process.poll() is None:
                if is_to_end():
                    stopped = True
                    _end(process)
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                _kill(process)
    # Who ends a worker may have ended its processes, too, and this one first.
    return _outcome(process.returncode, path, output, stopped=stopped or is_to_end())


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    until = time.monotonic() + _SECONDS_TO_END
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    if process.poll() is None:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)  # with the processes of its other devices
    process.wait()


def _outcome(status: int, path: Path, output: Path, *, stopped: bool) -> Outcome:
    try:
        written = json.loads(outcome_path(path).read_text("utf-8"))
        return Outcome(**{**written, "values": tuple(written.get("values", ()))})
    except FileNotFoundError:
        pass  # it came to no end of its own
    if stopped:
        return Outcome("stopped")
    lines = output.read_text("utf-8", errors="replace").strip().splitlines()
    said = f": {lines[-1][:300]}" if lines else ""
    how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return Outcome("failed", reason=f"its process {how}{said}; {output} holds all it said", may_succeed=True)


def write_privately(path: Path, text: str) -> None:
    """Write what no other user may read: the storage's address may hold a password."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
