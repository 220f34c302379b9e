"""Starts a trial's process, watches over it, and reads how it ended."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from trainer.sweep.execution.fork_server import TrialProcess, WarmProcess
from trainer.sweep.execution.trial import Order, outcome_path
from trainer.sweep.execution.trial_queue import Outcome
from trainer.training.memory import NO_MEMORY

log = logging.getLogger("trainer")

_SECONDS_TO_END = 60
"""What a trial has to end by itself after Ctrl-C: a batch, and its processes."""


def run(
    warm: WarmProcess,
    order: Order,
    path: Path,
    environment: Mapping[str, str],
    is_to_end: Callable[[], bool],
) -> Outcome:
    """Run a trial to its end, or until it is to end before that.

    Args:
        warm: starts its process.
        path: where its order is written; what the process prints goes beside it.
        environment: variables over those of this process.
    """
    write_privately(path, order.model_dump_json(indent=2))
    outcome_path(path).unlink(missing_ok=True)
    output = path.with_suffix(".out")
    stopped = False
    process = warm.start(path, output, environment)
    told = False
    try:
        while process.wait(0.2) is None:
            if process.pid is not None and not told:
                told = True
                gpus = environment.get("CUDA_VISIBLE_DEVICES")
                where = f" on GPU {gpus}" if gpus else ""
                log.info("trial %d: begins as process %d%s", int(path.stem), process.pid, where)
            if is_to_end():
                stopped = True
                _end(process)
    finally:
        process.kill()
    status = process.wait()
    assert status is not None, "it has ended"
    # Who ends a worker may have ended its processes, too, and this one first.
    return _outcome(status, path, output, stopped=stopped or is_to_end())


def _end(process: TrialProcess) -> None:
    process.interrupt()
    if process.wait(_SECONDS_TO_END) is None:
        process.kill()
        process.wait()


def _outcome(status: int, path: Path, output: Path, *, stopped: bool) -> Outcome:
    try:
        written = json.loads(outcome_path(path).read_text("utf-8"))
        return Outcome(**{**written, "values": tuple(written.get("values", ()))})
    except FileNotFoundError:
        pass  # it came to no end of its own
    if stopped:
        return Outcome("stopped")
    lines = output.read_text("utf-8", errors="replace").strip().splitlines() if output.exists() else []
    said = f": {lines[-1][:300]}" if lines else ""
    how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    reason = f"its process {how}{said}; {output} holds all it said"
    return Outcome("failed", reason=reason, may_succeed=True, no_memory=status == NO_MEMORY)


def write_privately(path: Path, text: str) -> None:
    """Write what no other user may read: the storage's address may hold a password."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
