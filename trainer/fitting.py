"""`fit` and `resume` for any job: a single training run, or a sweep of several."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer.errors import JobError, Problem
from trainer.job.job import Job
from trainer.job.sweep import Limits
from trainer.runs import Run

if TYPE_CHECKING:
    from lightning import Callback

log = logging.getLogger("trainer")


def fit(job: Job, *, progress: bool = False, callbacks: Sequence[Callback] = ()) -> Run:
    """Train a model, or several in a sweep, package the best and score the validation data with it.

    If torchrun or srun starts the processes, each of them gets the run. `Run.is_rank_zero` is true in the one
    that writes it; the others return when training ends.

    Args:
        progress: show the progress of long steps: bars and tables on a terminal, lines elsewhere.
        callbacks: Lightning's, for a single training run only.

    Raises:
        DataError: all problems of the data, before anything is written.
        JobError: a setting or an expression is invalid, or the machine has fewer GPUs than the job asks for.
        WeightsError: the weights to start from are missing or do not fit the model.
        RunError: the output directory is taken, or no trial of a sweep completed.
        TrainingError: the loss diverged, memory ran out, or a process of another device ended.
        TrackingError: MLflow does not answer at the start, or fails to register the model.
    """
    if job.ignored_keys:
        log.info("keys of the job without effect here: %s", ", ".join(job.ignored_keys))
    if job.sweeps:
        _check_no_callbacks(callbacks)
        if not job.search_space:
            from trainer.automode.fit import fit as fit_automatically

            return fit_automatically(job, progress=progress)
        from trainer.sweep.execution.sweep_run import sweep

        return sweep(job, progress=progress)
    from trainer.training.fit import fit as train

    return train(job, progress=progress, callbacks=callbacks)


def resume(
    directory: str | PathLike[str],
    settings: Mapping[str, Any] | None = None,
    *,
    gpus: int | Literal["auto"] | None = None,
    processes: int | None = None,
    nodes: int | None = None,
    limits: Limits | Mapping[str, int | None] | None = None,
    tracking_uri: str | None = None,
    register_model: str | None = None,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Resume a run that was stopped, or extend a finished one by more epochs or trials.

    Args:
        directory: of the run.
        settings: changes of a single run's settings, by name, such as number_of_epochs. A sweep takes none.
        gpus: as in Job; None keeps the run's own value. Likewise processes, nodes, tracking_uri and
            register_model.
        limits: limits to change: timeout_minutes, and max_trials and max_concurrent_trials of a sweep.
        progress: see `fit`.
        callbacks: see `fit`.

    Raises:
        RunError: there is no run, it is running, or nothing is left to do.
        JobError: a change that does not fit the run's checkpoint, or settings of a sweep.
        DataError, WeightsError, TrainingError, TrackingError: see `fit`.
    """
    run = Run.open(Path(directory))
    changes: dict[str, Any] = {
        "gpus": gpus,
        "processes": processes,
        "nodes": nodes,
        "limits": limits,
        "tracking_uri": tracking_uri,
        "register_model": register_model,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    own = Job.read(run.job)
    job = own.changed(str(run.job), output=run.directory, settings=settings or {}, **changes)
    if job.sweeps is not own.sweeps:
        rule = "cannot turn a single run into a sweep or a sweep into a single run; start a new run"
        raise JobError("the run cannot be resumed:", [Problem("", "limits.max_trials", rule)])
    if job.sweeps:
        from trainer.sweep.execution.sweep_run import resume as resume_sweep

        _check_no_callbacks(callbacks)
        if settings:
            rule = "cannot change when a sweep is resumed: its trials would not be comparable"
            raise JobError("the sweep cannot be resumed:", [Problem("", name, rule) for name in settings])
        return resume_sweep(run, job, progress=progress)
    from trainer.training.fit import fit as train

    return train(job, earlier=run, progress=progress, callbacks=callbacks)


def _check_no_callbacks(callbacks: Sequence[Callback]) -> None:
    if callbacks:
        rule = "apply to a single training run, not to a sweep"
        raise JobError("the job cannot be run:", [Problem("", "callbacks", rule)])
