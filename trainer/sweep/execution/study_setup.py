"""The study of a sweep's run: created, found again to resume it, and described to workers that join."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import optuna

from trainer.errors import JobError, Problem, RunError
from trainer.job.job import Job
from trainer.metric_names import is_minimised
from trainer.runs import Run
from trainer.sweep.execution.messages import write_privately
from trainer.sweep.execution.storage import open_storage, quiet
from trainer.sweep.execution.trial_queue import TrialQueue
from trainer.sweep.search import Search

JOB, DIRECTORY, DEADLINE, TRACKING = "job", "directory", "deadline", "tracking"
"""The study's attributes for workers: the text of the job file, the sweep's directory, its end as UNIX time,
and MLflow's address with the ID of the sweep's run there."""
AUGMENTATION = "augmentation"
"""The study's attribute with the bytes of the augmentation file, as Latin-1, for other machines."""
DATA = "data"
"""The study's attribute for the summary of its data."""

_STORAGE_FILE = "storage.url"
"""The run's file that holds the storage's address with its password, which job.yaml leaves out."""


def check_storage(job: Job) -> None:
    """Check a shared storage before the data are read and before anything is written.

    Raises:
        JobError: the storage cannot be used, or it has a study of the same name.
    """
    if job.storage is not None:
        name = job.study or (job.output.resolve().name if job.output else None)
        if name in optuna.get_all_study_names(open_storage(job.storage)):
            raise _name_taken(name)


def keep_storage(job: Job, run: Run) -> tuple[Job, str]:
    """Keep the address of the storage in the run's directory.

    Returns:
        The job with the name of its study, and the address.
    """
    if job.storage is None:
        return job, _own_storage(run)
    write_privately(run.directory / _STORAGE_FILE, job.storage)
    return job.model_copy(update={"study": job.study or run.directory.resolve().name}), job.storage


def storage_address(job: Job, run: Run) -> str:
    """The address of the storage of a run that is resumed."""
    file = run.directory / _STORAGE_FILE
    if job.storage is None:
        return _own_storage(run)
    return file.read_text("utf-8") if file.exists() else job.storage


def create_study(job: Job, search: Search, address: str, run: Run) -> TrialQueue:
    """Create the study of a new run.

    Raises:
        JobError: the storage cannot be used, or it has a study of the same name.
    """
    name = job.study or run.directory.resolve().name
    directions: list[Literal["minimize", "maximize"]]
    directions = ["minimize" if is_minimised(job.metric) else "maximize"]
    if job.measures_latency:
        directions.append("minimize")
    storage = open_storage(address)
    try:
        with quiet():
            study = optuna.create_study(
                study_name=name,
                storage=storage,
                sampler=search.sampler,
                pruner=search.pruner,
                directions=directions,
            )
    except optuna.exceptions.DuplicatedStudyError as error:
        raise _name_taken(name) from error
    return TrialQueue(study, storage, job.limits.max_trials)


def find_study(job: Job, search: Search, address: str, run: Run) -> TrialQueue:
    """Load the study of a run that is resumed; create it if the run was stopped before it had one.

    Raises:
        JobError: the storage cannot be used.
        RunError: the study was removed from the storage.
    """
    name = job.study or run.directory.resolve().name
    names = optuna.get_all_study_names(open_storage(address))
    if name not in names:
        if len(names) == 1 and not job.study:  # the run's directory was renamed
            name = names[0]
        elif (run.directory / "trials").exists():
            raise RunError(
                f"{run.directory}: its study {name!r} is no longer in the storage; start a new run"
            )
        else:
            return create_study(job, search, address, run)
    return load_study(job, search, address, name)


def load_study(job: Job, search: Search, address: str, name: str) -> TrialQueue:
    """Load a study that is in the storage.

    Raises:
        JobError: the storage cannot be used.
    """
    storage = open_storage(address)
    study = optuna.load_study(study_name=name, storage=storage, sampler=search.sampler, pruner=search.pruner)
    return TrialQueue(study, storage, job.limits.max_trials)


def worker_attributes(address: str, name: str) -> dict[str, Any]:
    """The attributes by which a study describes its sweep to workers.

    Raises:
        JobError: the storage cannot be used, or has no such study.
    """
    storage = open_storage(address)
    names = optuna.get_all_study_names(storage)
    attributes = optuna.load_study(study_name=name, storage=storage).user_attrs if name in names else {}
    if JOB not in attributes:
        rule = "is not the study of a sweep" if name in names else "must be a study in the storage"
        problem = Problem("--study", "", rule, repr(name), f"there are {', '.join(names) or 'none'}")
        raise JobError("the worker cannot join:", [problem])
    return attributes


def open_to_workers(
    study: optuna.Study, job: Job, run: Run, *, deadline: float | None, tracking: tuple[str, str | None]
) -> None:
    """Write the attributes that workers read. Workers join once they find JOB, so it is written last."""
    study.set_user_attr(DEADLINE, deadline)
    study.set_user_attr(TRACKING, list(tracking))
    study.set_user_attr(DIRECTORY, str(run.directory.resolve()))
    if job.augmentation is not None:
        study.set_user_attr(AUGMENTATION, Path(job.augmentation).read_bytes().decode("latin-1"))
    study.set_user_attr(JOB, job.model_copy(update={"study": study.study_name}).to_yaml())


def _own_storage(run: Run) -> str:
    return f"sqlite:///{(run.directory / 'study.db').resolve()}"


def _name_taken(name: str | None) -> JobError:
    rule = "is taken by another sweep in this storage"
    hint = f"join that sweep with `trainer worker --study {name}`, or choose another name"
    return JobError("the sweep cannot start:", [Problem("--study", "", rule, repr(name), hint)])
