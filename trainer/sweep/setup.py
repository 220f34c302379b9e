"""What the sweep of a job works with: search space, sampler and policy, checked against task and models."""

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
from trainer.sweep.space import search_space as spaces
from trainer.sweep.space.distributions import Choice
from trainer.sweep.space.search_space import SearchSpace, SubSpace

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class Setup:
    """A sweep that can begin.

    Attributes:
        space: with what the models take.
        sampler: for one study.
        pruner: the early termination policy.
        is_repeatable: whether the sampler proposes the same settings each time.
    """

    space: SearchSpace
    sampler: BaseSampler
    pruner: BasePruner
    is_repeatable: bool


def make(job: Job, where: str = "") -> Setup:
    """The sweep of a job with a search space.

    Args:
        where: the file that the job stands in, for errors.

    Raises:
        JobError: everything that is wrong with the space and the sweep.
    """
    from trainer.sweep import early_termination
    from trainer.sweep.sampling import samplers

    problems: list[Problem] = []
    sweep = job.sweep or Sweep()
    algorithm = sweep.sampling_algorithm
    seed = sampling_seed(job)
    space = sampler = pruner = None
    try:
        space = spaces.parse(list(job.search_space), where, logbase=algorithm.logbase)
        space = _checked(job, space, where)
    except JobError as error:
        problems += error.problems
    try:
        sampler = samplers.create(
            algorithm.type,
            seed=seed,
            rule=algorithm.rule,
            logbase=algorithm.logbase,
            space=space or SearchSpace(()),
            max_trials=job.limits.max_trials,
            where=where,
        )
    except JobError as error:
        problems += [problem for problem in error.problems if problem not in problems]
    try:
        pruner = early_termination.create(sweep.early_termination, where)
    except JobError as error:
        problems += error.problems
    if problems or space is None or sampler is None or pruner is None:
        raise JobError("the sweep cannot be run:", problems)
    return Setup(space, sampler, pruner, seed is not None or algorithm.type == "grid")


def sampling_seed(job: Job) -> int | None:
    """The sampling algorithm's seed, else the job's random_seed, which makes trainings repeatable, too."""
    seed = job.sweep.sampling_algorithm.seed if job.sweep else None
    return random_seed(job) if seed is None else seed


def random_seed(job: Job) -> int | None:
    """The setting random_seed of a job, whose other settings may depend on the trial."""
    own = {canonical(name): value for name, value in job.settings.items()}.get("random_seed")
    try:
        return Settings.model_validate({"random_seed": own}).random_seed
    except ValueError:  # which the check of the settings says
        return None


def _checked(job: Job, space: SearchSpace, where: str) -> SearchSpace:
    """The space, each sub-space checked together with those of the job's settings that its models take.

    Fixed values stand beside all sub-spaces: what means nothing to one's models may be for another's.
    """
    problems: list[Problem] = []
    entries = {id(part): list(_entries(job, part)) for part in space.sub_spaces}
    everywhere = [entry for known in entries.values() for entry in known]
    checked: list[SubSpace] = []
    for part in space.sub_spaces:
        fixed = {
            name: value
            for name, value in job.settings.items()
            if all(_takes(entry, name) for entry in entries[id(part)])
            or not any(_takes(entry, name) for entry in everywhere)
        }
        alone = SearchSpace((part,))
        try:
            checked += spaces.check(alone, job.task, job.model_name, fixed, where).sub_spaces
        except JobError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise JobError("the search space cannot be used:", problems)
    return replace(space, sub_spaces=tuple(checked))


def _entries(job: Job, part: SubSpace) -> Iterator[ModelEntry]:
    """The models of a sub-space, as far as there are such."""
    names = part.parameters.get(MODEL_NAME, job.model_name)
    for name in names.values if isinstance(names, Choice) else (names,):
        try:
            yield catalog.find(str(name), job.task)
        except JobError:  # which the check of the space says
            continue


def _takes(entry: ModelEntry, name: str) -> bool:
    known = canonical(name)
    return known not in Settings.model_fields or takes(entry, known)
