"""Runs one trial in a process of its own: starts it, stops it when asked, and reads its outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from trainer.sweep.execution.fork_client import ForkServer, TrialProcess
from trainer.sweep.execution.messages import Order, Outcome, outcome_path, write_privately
from trainer.training.memory import NO_MEMORY

log = logging.getLogger("trainer")

_SECONDS_TO_EXIT = 60
"""How long a trial has after Ctrl-C to finish its batch and end its own processes."""


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
