"""Sampling algorithms: how a sweep proposes the settings of its next trial."""

from __future__ import annotations

import math

from optuna.samplers import BaseSampler

from trainer.errors import JobError, Problem
from trainer.sweep.sampling.grid import GridSampler
from trainer.sweep.sampling.per_trial import STARTUP_TRIALS, BayesianSampler, RandomSampler, SobolSampler
from trainer.sweep.space.distributions import Choice
from trainer.sweep.space.search_space import SearchSpace

__all__ = ["BayesianSampler", "GridSampler", "RandomSampler", "SobolSampler", "create_sampler"]


def create_sampler(
    algorithm: str,
    *,
    seed: int | None = None,
    rule: str | None = None,
    space: SearchSpace,
    max_trials: int | None = None,
    where: str = "",
) -> BaseSampler:
    """Create the sampler of a sweep from values that `SamplingAlgorithm` has checked.

    Args:
        seed: makes the sweep repeatable. A grid always is; its seed shuffles the order.
        rule: for random sampling: `random` (the default), or `sobol` for points that cover the space evenly.
        max_trials: shortens the random start of a bayesian sweep that has few trials.
        where: the job's file, for errors.

    Raises:
        JobError: a grid with parameters that are no choice; all at once.
    """
    if algorithm == "bayesian":
        startup = STARTUP_TRIALS if max_trials is None else min(STARTUP_TRIALS, math.ceil(max_trials / 4))
        return BayesianSampler(seed, startup, is_conditional=len(space.sub_spaces) > 1)
    if algorithm == "random":
        return SobolSampler(space, seed) if rule == "sobol" else RandomSampler(seed)
    hint = "list the values in a choice, or sample by random or bayesian"
    problems = [
        Problem(where, f"{sub_space.field}.{name}", "must be a choice for a grid", value.type_name(), hint)
        for sub_space in space.sub_spaces
        for name, value in sub_space.distributions.items()
        if not isinstance(value, Choice)
    ]
    if problems:
        raise JobError("the sweep cannot be run:", problems)
    return GridSampler(space, seed)
