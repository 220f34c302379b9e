"""The search of a job: its search space, sampler and early termination, checked against task and models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trainer.errors import JobError, Problem
from trainer.job.job import Job
from trainer.job.sweep import MODEL_NAME, Sweep
from trainer.models import catalog
from trainer.models.card import ModelEntry
from trainer.models.defaults import takes
from trainer.settings import Settings, canonical
from trainer.sweep.space.compatibility import check_space
from trainer.sweep.space.distributions import Choice
from trainer.sweep.space.search_space import SearchSpace, SubSpace, parse

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
    seed = sampling_seed(job)
    space = sampler = pruner = None
    try:
        space = parse(list(job.search_space), where, logbase=algorithm.logbase)
        space = _check_with_settings(job, space, where)
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


def sampling_seed(job: Job) -> int | None:
    """The seed of the sampling algorithm; the job's random_seed if it has none."""
    seed = job.sweep.sampling_algorithm.seed if job.sweep else None
    return random_seed(job) if seed is None else seed


def random_seed(job: Job) -> int | None:
    """The job's setting random_seed, read without its other settings, which may depend on the trial."""
    values = {canonical(name): value for name, value in job.settings.items()}
    try:
        return Settings.model_validate({"random_seed": values.get("random_seed")}).random_seed
    except ValueError:  # the check of the settings reports it
        return None


def _check_with_settings(job: Job, space: SearchSpace, where: str) -> SearchSpace:
    """Check each sub-space together with those of the job's settings that apply to its models.

    A setting of the job counts for all sub-spaces: it may apply to the models of one and not to another's.
    """
    problems: list[Problem] = []
    models = [list(_models(job, sub_space)) for sub_space in space.sub_spaces]
    all_models = [entry for entries in models for entry in entries]
    checked: list[SubSpace] = []
    for sub_space, entries in zip(space.sub_spaces, models, strict=True):
        fixed = {
            name: value
            for name, value in job.settings.items()
            if all(_takes(entry, name) for entry in entries)
            or not any(_takes(entry, name) for entry in all_models)
        }
        alone = SearchSpace((sub_space,))
        try:
            checked += check_space(alone, job.task, job.model_name, fixed, where).sub_spaces
        except JobError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise JobError("the search space cannot be used:", problems)
    return replace(space, sub_spaces=tuple(checked))


def _models(job: Job, sub_space: SubSpace) -> Iterator[ModelEntry]:
    """The models of a sub-space, without the names that are unknown."""
    names = sub_space.parameters.get(MODEL_NAME, job.model_name)
    for name in names.values if isinstance(names, Choice) else (names,):
        try:
            yield catalog.find(str(name), job.task)
        except JobError:  # the check of the space reports it
            continue


def _takes(entry: ModelEntry, name: str) -> bool:
    setting = canonical(name)
    return setting not in Settings.model_fields or takes(entry, setting)
