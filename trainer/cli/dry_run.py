"""What a job would do, as YAML, for `trainer fit --dry-run`: without torch, and without data unless asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml

from trainer.automode import plan as auto
from trainer.job.job import Job
from trainer.sweep.setup import Setup, make, random_seed

if TYPE_CHECKING:
    from trainer.automode.plan import Plan
    from trainer.data.training_data import Data

_SHOWN_TRIALS = 5


def preview(job: Job, where: str = "", *, check_data: bool = False) -> str:
    """The resolved job, its search space and what its first trials would be.

    Args:
        where: the file that the job stands in, for errors.
        check_data: also read the data, as a training does, and count them.

    Raises:
        JobError: the job, its settings or its search space cannot be used.
        DataError: the data are checked and break the schema.
    """
    remarks = [f"{where}: without effect here: {', '.join(job.ignored_keys)}"] if job.ignored_keys else []
    content: dict[str, Any] = {}
    if not job.sweeps:
        job.resolve_settings(where)
    content["job"] = job.to_dict()
    data = _load(job) if check_data else None
    first: Sequence[dict[str, Any]] = ()
    if auto.is_automatic(job):
        make(auto.check(job, where), where)
        if data is not None:
            plan = _plan(job, data)
            job, first = plan.job, plan.first
            remarks += plan.reasons
    if job.search_space:
        setup = make(job, where)
        content["search_space"] = setup.space.to_content()
        content["trials"] = _first_trials(job, setup, first)
        if not setup.is_repeatable and len(first) < min(job.limits.max_trials, _SHOWN_TRIALS):
            remarks.append("without a seed, the sweep itself will draw other settings than these")
    elif job.sweeps:
        content["search_space"] = "automatic"
        remarks.append("without search_space, models and settings are chosen when the data are known")
        remarks.append("--check-data shows them, as this machine would have them")
    if data is not None:
        content["data"] = _counts(data)
    comments = "".join(f"# {remark}\n" for remark in remarks)
    return comments + yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=110)


class _Plain(yaml.SafeDumper):
    """Writes what stands twice twice: references are for machines."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _plan(job: Job, data: Data) -> Plan:
    from trainer.automode.data_statistics import machine, measure
    from trainer.sweep.execution.worker import places

    room = places(job, job.limits.max_concurrent_trials)
    return auto.plan(job, measure(data), machine(job, room), len(room))


def _first_trials(job: Job, setup: Setup, first: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first trials as the sampler proposes them to a study that has no results yet, after `first`."""
    import optuna

    trials: list[dict[str, Any]] = []
    is_exhausted = getattr(setup.sampler, "is_exhausted", None)  # of a grid
    with _quiet_optuna():
        study = optuna.create_study(sampler=setup.sampler, direction="maximize")
        auto.queue(study, setup.space, first, job.limits.max_trials)
        while len(trials) < min(job.limits.max_trials, _SHOWN_TRIALS):
            if is_exhausted is not None and is_exhausted(study):
                break
            trial = study.ask()
            proposal = setup.space.suggest(trial)
            settings = job.for_trial(proposal).to_dict()["training_parameters"]
            trials.append({"trial": trial.number, "proposed": proposal, "training_parameters": settings})
    return trials


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna would say that it made a study, which is thrown away."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _load(job: Job) -> Data:
    from trainer.data.training_data import load

    return load(
        job.task,
        job.training_data,
        job.validation_data,
        validation_size=job.validation_data_size,
        seed=random_seed(job) or 0,
        datastores=job.datastores,
        skip_invalid=job.skip_invalid,
        progress=False,
    )


def _counts(data: Data) -> dict[str, Any]:
    return {
        "training_images": len(data.train),
        "validation_images": len(data.validation),
        "classes": list(data.classes),
        "skipped_records": data.skipped,
        "warnings": [str(warning) for warning in data.warnings],
    }
