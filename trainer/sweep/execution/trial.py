"""The process of one trial: `python -m trainer.sweep.execution.trial ORDER`, started by a worker.

ORDER is the path of an `Order`; the `Outcome` is written next to it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from trainer.errors import BrokenOffError, FullDiskError, NoMemoryError, TrainerError
from trainer.files import write_atomically
from trainer.full_disk import full_disk_reason
from trainer.job.job import Job
from trainer.runs import Run
from trainer.sweep.execution.messages import DISK_FULL, Order, Outcome, outcome_path

PARENT_PID = "TRAINER_PARENT_PID"
"""The environment variable that holds the ID of the process that a trial's process must not outlive."""


def main(path: Path) -> int:
    """Run the trial of an order.

    Returns:
        The process's exit status: 0 if the trial is complete or pruned, DISK_FULL, else 1.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    _exit_with_parent()
    order = Order.model_validate_json(path.read_text("utf-8"))
    try:
        outcome = _train(order)
    except FullDiskError as error:
        outcome = Outcome(state="stopped", reason=str(error), disk_full=True)
    except TrainerError as error:
        # Wrong settings stay wrong and a diverging loss diverges again; a run that broke off may succeed.
        outcome = Outcome(
            state="failed",
            reason=str(error),
            may_succeed=isinstance(error, BrokenOffError),
            no_memory=isinstance(error, NoMemoryError),
        )
    except KeyboardInterrupt:
        outcome = Outcome(state="stopped")
    if _is_first_rank():
        try:
            write_atomically(outcome_path(path), outcome.model_dump_json())
        except OSError as error:
            if full_disk_reason(error) is None:
                raise
            return DISK_FULL
    return 0 if outcome.state in ("complete", "pruned") else 1


def _is_first_rank() -> bool:
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def _train(order: Order) -> Outcome:
    from trainer.sweep.execution.pruning_callback import ReportToStudy
    from trainer.training.callbacks import StopAt

    job = Job.read(order.job, output=order.directory)
    report = ReportToStudy(order, job.metric)
    callbacks: list[Any] = [report]
    if order.deadline is not None:
        callbacks.append(StopAt(time.monotonic() + order.deadline - time.time()))
    options: dict[str, Any] = {
        "callbacks": callbacks,
        "packages": order.measures_latency,
        "parent_run_id": order.parent_run,
        "micro_batches": order.micro_batches,
    }
    run = _fit_or_resume(order, job, options)
    run.previous_checkpoint.unlink(missing_ok=True)  # to save space: a trial that has ended is not resumed
    result = run.read_result()
    objectives = [result.value]
    if order.measures_latency and not report.pruned:
        from trainer.sweep.execution.latency import median_latency

        objectives.append(median_latency(run, "cpu" if job.processes or job.gpus == 0 else None))
    return Outcome(
        state="pruned" if report.pruned else "complete",
        values=tuple(objectives),
        attributes={"best_epoch": result.best_epoch, "epochs": result.epochs},
    )


def _fit_or_resume(order: Order, job: Job, options: dict[str, Any]) -> Run:
    """Train from the start, or from the last checkpoint of an earlier attempt."""
    from trainer.sweep.execution.storage import PATIENCE_SECONDS
    from trainer.training.fit import fit

    if not (order.directory / "job.yaml").exists():
        return fit(job, **options)
    run = Run.open(order.directory)
    if _is_first_rank():
        # The trial of a worker that lost the storage may still be training here. It ends once it reaches the
        # storage again, or once its patience has run out.
        with run.lock(2 * PATIENCE_SECONDS):
            pass
    if run.result.exists():
        return run
    # This attempt may have other devices than the one before.
    devices: dict[str, Any] = {"gpus": job.gpus, "processes": job.processes, "precision": job.precision}
    return fit(Job.read(run.job, output=order.directory, **devices), earlier=run, **options)


def _exit_with_parent() -> None:
    """Exit when the parent process does, as nobody would read this trial's outcome any more."""
    # If the parent died while this process started, getppid no longer names it.
    parent = int(os.environ.pop(PARENT_PID, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
