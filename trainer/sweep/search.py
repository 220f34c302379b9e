"""The search of a job: its search space, sampler and early termination, checked against task and models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.errors import JobError, Problem
from trainer.job.job import Job
from trainer.job.sweep import Sweep
from trainer.settings import Settings, canonical
from trainer.sweep.space.compatibility import check_space
from trainer.sweep.space.search_space import SearchSpace, parse

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class Search:
    """What a study is created with.

    Attributes:
        space: values that every model of a sub-space accepts.
        pruner: the early termination policy.
        is_repeatable: whether the sampler proposes the same settings each time.
    """

    space: SearchSpace
    sampler: BaseSampler
    pruner: BasePruner
    is_repeatable: bool


def prepare_search(job: Job, where: str = "") -> Search:
    """Check and build the search of a job that has a search space.

    Args:
        where: the job's file, for errors.

    Raises:
        JobError: the space, the sampling algorithm or the policy cannot be used; all problems at once.
    """
    from trainer.sweep import early_termination, sampling

    problems: list[Problem] = []
    sweep = job.sweep or Sweep()
    algorithm = sweep.sampling_algorithm
    seed = random_seed(job) if algorithm.seed is None else algorithm.seed
    space = sampler = pruner = None
    try:
        space = parse(list(job.search_space), where, logbase=algorithm.logbase)
        space = check_space(
            space, job.task, job.model_name, job.settings, where, augments_itself=job.augments_itself
        )
    except JobError as error:
        problems += error.problems
    try:
        sampler = sampling.create_sampler(
            algorithm.type,
            seed=seed,
            rule=algorithm.rule,
            space=space or SearchSpace(()),
            max_trials=job.limits.max_trials,
            where=where,
        )
    except JobError as error:
        problems += error.problems
    try:
        pruner = early_termination.create_pruner(sweep.early_termination, where)
    except JobError as error:
        problems += error.problems
    if problems or space is None or sampler is None or pruner is None:
        raise JobError("the sweep cannot be run:", problems)
    return Search(space, sampler, pruner, is_repeatable=seed is not None or algorithm.type == "grid")


def random_seed(job: Job) -> int | None:
    """The job's setting random_seed, read without its other settings, which may depend on the trial."""
    values = {canonical(name): value for name, value in job.settings.items()}
    try:
        return Settings.model_validate({"random_seed": values.get("random_seed")}).random_seed
    except ValueError:  # the check of the settings reports it
        return None
