"""`fit` and `resume` for any job: one training, or a sweep of several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.job import file as job_file
from trainer.job import job as jobs
from trainer.job.job import Job
from trainer.runs import Run


def fit(job: Job, *, progress: bool = False, **options: Any) -> Run:
    """Run a job: a single training run, or a sweep of several.

    Args:
        progress: show how far long work is: bars and tables on a terminal, lines elsewhere.
        options: of the function that does it.

    Raises:
        DataError: the data break the schema; all problems at once, before anything is written.
        JobError: a setting or an expression cannot be used, or more GPUs are asked for than there are.
        WeightsError: the weights to start from are missing or do not fit.
        RunError: the output directory is taken, or no trial of a sweep came to an end.
        TrainingError: the loss diverged, or memory ran out.
    """
    if job.sweeps:
        from trainer.sweep.execution.runner import sweep

        return sweep(job, progress=progress, **options)
    from trainer.training.fit import fit as train

    return train(job, progress=progress, **options)


def resume(
    directory: Path, changes: Mapping[str, Any] | None = None, *, progress: bool = False, **others: Any
) -> Run:
    """Go on with a run that was stopped, or extend a finished one by more epochs or trials.

    Args:
        directory: the run's.
        changes: settings of a single training that differ from the run's own, by name.
        others: what else differs of the Job (limits, gpus, processes), and options as of `fit`.

    Raises:
        RunError: there is no run, it runs at present, or nothing is left to do.
        Others as `fit`.
    """
    run = Run.open(directory)
    values, _ = job_file.read(run.job)
    if jobs.make(str(run.job), **values).sweeps:
        from trainer.sweep.execution.runner import resume as resume_sweep

        return resume_sweep(directory, changes, progress=progress, **others)
    from trainer.training.fit import resume as resume_training

    return resume_training(directory, changes, progress=progress, **others)
