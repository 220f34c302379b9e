"""One trial in a process of its own, started by a worker.

The file says what to train and where to report; what became of it stands in OUTCOME beside it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from trainer.errors import BrokenOffError, NoMemoryError, TrainerError
from trainer.runs import Run

WORKER_PID = "TRAINER_WORKER_PID"
"""The environment variable that names a trial's worker."""


class Order(BaseModel):
    """What a worker asks of a trial's process.

    Attributes:
        job: the trial's own job file.
        directory: of the trial's run; what an earlier attempt left there is gone on with.
        storage: of the study.
        deadline: UNIX time at which it is to end at its next evaluation.
        measures_latency: package the model and time it: the second objective.
        parent_run: the MLflow run of the sweep.
        parts: how many parts each batch is trained in: memory ran out before.
    """

    model_config = ConfigDict(frozen=True)

    job: Path
    directory: Path
    storage: str
    study: str
    trial_id: int
    policy: dict[str, Any] | None = None
    deadline: float | None = None
    measures_latency: bool = False
    parent_run: str | None = None
    parts: int = 1


def outcome_path(order: Path) -> Path:
    """Where the process writes how it ended."""
    return order.with_suffix(".outcome.json")


def main(path: Path) -> int:
    """Train as the order says; the exit status is 0 if the training came to an end of its own."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    _end_with_parent()
    order = Order.model_validate_json(path.read_text("utf-8"))
    outcome: dict[str, Any]
    try:
        outcome = _train(order)
    except TrainerError as error:
        outcome = {
            "state": "failed",
            "reason": str(error),
            # Wrong settings stay wrong, and divergence repeats itself.
            "may_succeed": isinstance(error, BrokenOffError),
            "no_memory": isinstance(error, NoMemoryError),
        }
    except KeyboardInterrupt:
        outcome = {"state": "stopped"}
    if _is_first_rank():
        _write(outcome_path(path), json.dumps(outcome))
    return 0 if outcome["state"] in ("complete", "pruned") else 1


def _is_first_rank() -> bool:
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def _train(order: Order) -> dict[str, Any]:
    from trainer.job.job import Job
    from trainer.sweep.execution.storage import PATIENCE_SECONDS
    from trainer.sweep.execution.trial_reporting import ReportToStudy
    from trainer.training.callbacks import StopAt
    from trainer.training.fit import fit, resume

    job = Job.read(order.job, output=order.directory)
    callbacks: list[Any] = [report := ReportToStudy(order, job.metric)]
    if order.deadline is not None:
        callbacks.append(StopAt(time.monotonic() + order.deadline - time.time()))
    options: dict[str, Any] = {
        "callbacks": callbacks,
        "packages": order.measures_latency,
        "parent_run_id": order.parent_run,
        "parts": order.parts,
    }
    if (order.directory / "job.yaml").exists():
        run = Run.open(order.directory)
        if _is_first_rank():
            # A worker that lost touch with the others ends its trial when it hears of them, or gives up.
            with run.lock(2 * PATIENCE_SECONDS):
                pass
        if not run.result.exists():
            # The trial's devices may differ from those of its earlier attempt.
            devices: dict[str, Any] = {"gpus": job.gpus, "processes": job.processes}
            run = resume(run, Job.read(run.job, output=order.directory, **devices), **options)
    else:
        run = fit(job, **options)
    result = run.read_result()
    outcome: dict[str, Any] = {
        "state": "pruned" if report.pruned else "complete",
        "values": [result.value],
        "attributes": {"best_epoch": result.best_epoch, "epochs": result.epochs},
    }
    if order.measures_latency and not report.pruned:
        from trainer.sweep.execution.latency import median_latency

        outcome["values"].append(median_latency(run, "cpu" if job.processes or job.gpus == 0 else None))
    return outcome


def _end_with_parent() -> None:
    """Without its worker nothing would ever ask for this trial's result: it ends when the worker does."""
    # A worker that died while this process was starting is not its parent any more.
    parent = int(os.environ.pop(WORKER_PID, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
