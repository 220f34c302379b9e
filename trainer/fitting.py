"""`fit` and `resume` for any job: a single training run, or a sweep of several."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer.errors import JobError, Problem
from trainer.job import substitutes
from trainer.job.job import Job
from trainer.job.sweep import Limits
from trainer.models.precision import Precision
from trainer.runs import Run

if TYPE_CHECKING:
    from lightning import Callback

log = logging.getLogger("trainer")


def fit(job: Job, *, progress: bool = False, callbacks: Sequence[Callback | str] = ()) -> Run:
    """Train a model, or several in a sweep, package the best and score the validation data with it.

    If torchrun or srun starts the processes, each of them gets the run. `Run.is_rank_zero` is true in the one
    that writes it; the others return when training ends.

    Args:
        progress: show the progress of long steps: bars and tables on a terminal, lines elsewhere.
        callbacks: Lightning's, or their import paths as in `Job.callbacks`. A sweep, whose trials are
            processes of their own, takes only import paths.

    Raises:
        DataError: all problems of the data, before anything is written.
        JobError: a setting or an expression is invalid, a model's library is not installed, or the machine
            has fewer GPUs than the job asks for.
        WeightsError: the weights to start from are missing or do not fit the model.
        RunError: the output directory is taken, or no trial of a sweep completed.
        TrainingError: the loss diverged, memory ran out, or a process of another device ended.
        TrackingError: MLflow does not answer at the start, or fails to register the model.
    """
    for note in substitutes.notes(job.substitutes):
        log.warning("model: %s", note)
    if job.ignored_keys:
        log.info("keys of the job without effect here: %s", ", ".join(job.ignored_keys))
    job, objects = _with_callbacks(job, callbacks)
    if job.sweeps:
        if not job.search_space:
            from trainer.automode.fit import fit as fit_automatically

            return fit_automatically(job, progress=progress)
        from trainer.sweep.execution.sweep_run import sweep

        return sweep(job, progress=progress)
    job.require_library()
    from trainer.training.fit import fit as train

    return train(job, progress=progress, callbacks=objects)


def resume(
    directory: str | PathLike[str],
    settings: Mapping[str, Any] | None = None,
    *,
    gpus: int | Literal["auto"] | None = None,
    processes: int | None = None,
    precision: Precision | None = None,
    nodes: int | None = None,
    limits: Limits | Mapping[str, int | None] | None = None,
    tracking_uri: str | None = None,
    calibrate: bool | None = None,
    register_model: str | None = None,
    loggers: str | Sequence[str] | None = None,
    progress: bool = False,
    callbacks: Sequence[Callback | str] = (),
) -> Run:
    """Resume a run that was stopped, or extend a finished one by more epochs or trials.

    Args:
        directory: of the run.
        settings: changes of a single run's settings, by name, such as number_of_epochs. A sweep takes none.
        gpus: as in Job; None keeps the run's own value. Likewise processes, precision, nodes,
            tracking_uri, calibrate, register_model and loggers.
        limits: limits to change: timeout_minutes, and max_trials and max_concurrent_trials of a sweep.
        progress: see `fit`.
        callbacks: see `fit`; import paths that the run's job has are added in any case.

    Raises:
        RunError: there is no run, it is running, or nothing is left to do.
        JobError: a change that does not fit the run's checkpoint, or settings of a sweep.
        DataError, WeightsError, TrainingError, TrackingError: see `fit`.
    """
    run = Run.open(Path(directory))
    changes: dict[str, Any] = {
        "gpus": gpus,
        "processes": processes,
        "precision": precision,
        "nodes": nodes,
        "limits": limits,
        "tracking_uri": tracking_uri,
        "calibrate": calibrate,
        "register_model": register_model,
        "loggers": loggers,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    own = Job.of_run(run.job)
    job = own.changed(str(run.job), output=run.directory, settings=settings or {}, **changes)
    if job.sweeps is not own.sweeps:
        rule = "cannot turn a single run into a sweep or a sweep into a single run; start a new run"
        raise JobError("the run cannot be resumed:", [Problem("", "limits.max_trials", rule)])
    job, objects = _with_callbacks(job, callbacks)
    if job.sweeps:
        from trainer.sweep.execution.sweep_run import resume as resume_sweep

        if settings:
            rule = "cannot change when a sweep is resumed: its trials would not be comparable"
            raise JobError("the sweep cannot be resumed:", [Problem("", name, rule) for name in settings])
        return resume_sweep(run, job, progress=progress)
    job.require_library(str(run.job))
    from trainer.training.fit import fit as train

    return train(job, earlier=run, progress=progress, callbacks=objects)


def _with_callbacks(job: Job, callbacks: Sequence[Callback | str]) -> tuple[Job, Sequence[Callback]]:
    """Add import paths to the job, and check its callbacks and loggers.

    Returns:
        The job, and the callbacks that are objects.

    Raises:
        JobError: a callback cannot be imported, a logger's package is missing, or a sweep has objects.
    """
    paths = [callback for callback in callbacks if isinstance(callback, str)]
    objects = [callback for callback in callbacks if not isinstance(callback, str)]
    if objects and job.sweeps:
        rule = "of a sweep must be import paths, since its trials are processes of their own"
        hint = "give 'MODULE:CLASS' instead of an object"
        raise JobError("the job cannot be run:", [Problem("", "callbacks", rule, hint=hint)])
    if paths:
        job = job.changed(callbacks=(*job.callbacks, *paths))
    if job.loggers:
        from trainer.training.loggers import check_loggers

        check_loggers(job)
    if job.callbacks:
        from trainer.training.user_callbacks import check_callbacks

        check_callbacks(job)
    return job, objects
