"""The study of a sweep's run: made, found again, and joined from other machines."""

from __future__ import annotations

from typing import Any, Literal

import optuna

from trainer.errors import JobError, Problem, RunError
from trainer.job.job import Job
from trainer.runs import Run
from trainer.sweep.execution.storage import open_storage, quiet
from trainer.sweep.execution.trial_process import write_privately
from trainer.sweep.setup import Setup

JOB, DIRECTORY, DEADLINE, TRACKING = "job", "directory", "deadline", "tracking"
"""The study's attributes for workers: the job file, the sweep's directory, the UNIX time of its end, and
MLflow's address with the sweep's run there."""

_STORAGE = "storage.url"
"""The run's file that holds the storage's address with its password, which job.yaml leaves out."""


def check(job: Job) -> None:
    """What can be known of a shared storage before the data are read, and before anything is written.

    Raises:
        JobError: it cannot be used, or the study's name is taken.
    """
    if job.storage is not None:
        opened = open_storage(job.storage)
        name = job.study or (job.output.resolve().name if job.output else None)
        if name in optuna.get_all_study_names(opened):
            raise _taken(name)


def begin(job: Job, run: Run) -> tuple[Job, str]:
    """The job with the name of its study, and the address of the storage, which the run keeps."""
    if job.storage is None:
        return job, _own_storage(run)
    write_privately(run.directory / _STORAGE, job.storage)
    return job.model_copy(update={"study": job.study or run.directory.resolve().name}), job.storage


def storage_of(job: Job, run: Run) -> str:
    """The address of the storage of a run that goes on."""
    kept = run.directory / _STORAGE
    if job.storage is None:
        return _own_storage(run)
    return kept.read_text("utf-8") if kept.exists() else job.storage


def create(job: Job, setup: Setup, storage: str, run: Run) -> optuna.Study:
    """
    Raises:
        JobError: the storage cannot be used, or the study's name is taken.
    """
    name = job.study or run.directory.resolve().name
    directions: list[Literal["minimize", "maximize"]] = ["maximize"]
    if job.measures_latency:
        directions.append("minimize")
    try:
        with quiet():
            study = optuna.create_study(
                study_name=name,
                storage=open_storage(storage),
                sampler=setup.sampler,
                pruner=setup.pruner,
                directions=directions,
            )
    except optuna.exceptions.DuplicatedStudyError as error:
        raise _taken(name) from error
    return study


def find(job: Job, setup: Setup, storage: str, run: Run) -> optuna.Study:
    """The study of a run that goes on.

    Raises:
        JobError: the storage cannot be used.
        RunError: the study was removed from it.
    """
    opened = open_storage(storage)
    name = job.study or run.directory.resolve().name
    names = optuna.get_all_study_names(opened)
    if name not in names:
        if len(names) == 1 and not job.study:  # its directory was renamed
            name = names[0]
        elif (run.directory / "trials").exists():
            raise RunError(
                f"{run.directory}: its study {name!r} is no longer in the storage; begin a new run"
            )
        else:
            return create(job, setup, storage, run)  # it was stopped before it had begun
    return optuna.load_study(study_name=name, storage=opened, sampler=setup.sampler, pruner=setup.pruner)


def attributes(storage: str, name: str) -> dict[str, Any]:
    """What a worker has to know of a study.

    Raises:
        JobError: the storage cannot be used, or has no such study.
    """
    opened = open_storage(storage)
    names = optuna.get_all_study_names(opened)
    known = optuna.load_study(study_name=name, storage=opened).user_attrs if name in names else {}
    if JOB not in known:
        rule = "is not the study of a sweep" if name in names else "must be a study in the storage"
        problem = Problem("--study", "", rule, repr(name), f"there are {', '.join(names) or 'none'}")
        raise JobError("the worker cannot join:", [problem])
    return known


def open_to_workers(
    study: optuna.Study, job: Job, run: Run, *, deadline: float | None, tracking: tuple[str, str | None]
) -> None:
    """Say what workers have to know. The job comes last: with it they join, and must not miss the others."""
    study.set_user_attr(DEADLINE, deadline)
    study.set_user_attr(TRACKING, list(tracking))
    study.set_user_attr(DIRECTORY, str(run.directory.resolve()))
    study.set_user_attr(JOB, job.model_copy(update={"study": study.study_name}).to_yaml())


def _own_storage(run: Run) -> str:
    return f"sqlite:///{(run.directory / 'study.db').resolve()}"


def _taken(name: str | None) -> JobError:
    rule = "is taken in this storage by another sweep"
    hint = f"join that one by `trainer worker --study {name}`, or name another"
    return JobError("the sweep cannot begin:", [Problem("--study", "", rule, repr(name), hint)])
