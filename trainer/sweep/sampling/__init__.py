"""Sampling algorithms: how a sweep proposes the settings of its next trial."""

from __future__ import annotations

import math
from typing import Any

from optuna.samplers import BaseSampler

from trainer.errors import JobError, Problem, did_you_mean
from trainer.sweep.sampling.bayesian import STARTUP_TRIALS, BayesianSampler
from trainer.sweep.sampling.grid import GridSampler
from trainer.sweep.sampling.random import RandomSampler
from trainer.sweep.sampling.sobol import SobolSampler
from trainer.sweep.space.distributions import Choice
from trainer.sweep.space.expressions import log_base
from trainer.sweep.space.search_space import SearchSpace

__all__ = ["BayesianSampler", "GridSampler", "RandomSampler", "SobolSampler", "create_sampler"]

_ALGORITHMS = ("random", "grid", "bayesian")
_RULES = ("random", "sobol")


def create_sampler(
    algorithm: str,
    *,
    seed: int | None = None,
    rule: str | None = None,
    logbase: Any = None,
    space: SearchSpace,
    max_trials: int | None = None,
    where: str = "",
) -> BaseSampler:
    """Create the sampler of a sweep.

    Args:
        algorithm: random, grid or bayesian, or the name of the SDK's class.
        seed: makes the sweep repeatable. A grid always is; its seed shuffles the order.
        rule: for random sampling: `random` (the default), or `sobol` for points that cover the space evenly.
        logbase: for random sampling: "e" or a number, the base of the exponents that bound loguniform in its
            string form. Only `parse` uses it: a number with a uniformly distributed logarithm has one in
            every base.
        max_trials: shortens the random start of a bayesian sweep that has few trials.
        where: the file of these values, for errors.

    Raises:
        JobError: unknown names, values out of range, a grid with parameters that are no choice; all at once.
    """
    field = "sweep.sampling_algorithm"
    problems: list[Problem] = []
    kind = algorithm.lower().removesuffix("samplingalgorithm").removesuffix("parametersampling")
    if kind not in _ALGORITHMS:
        names = f"{', '.join(_ALGORITHMS[:-1])} or {_ALGORITHMS[-1]}"
        hint = did_you_mean(kind, _ALGORITHMS)
        problems.append(Problem(where, field, f"must be {names}", repr(algorithm), hint))
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        problems.append(Problem(where, f"{field}.seed", "must be a whole number of at least 0", repr(seed)))
    rule_name = str(rule).lower()
    if rule is not None and rule_name not in _RULES:
        problems.append(Problem(where, f"{field}.rule", "must be random or sobol", repr(rule)))
    elif rule is not None and kind in _ALGORITHMS and kind not in ("random", rule_name):
        problems.append(
            Problem(where, f"{field}.rule", f"applies to random sampling, not to {kind}", repr(rule))
        )
    try:
        log_base(logbase, where)
    except JobError as error:
        problems += error.problems
    if kind == "grid":
        hint = "list the values in a choice, or sample by random or bayesian"
        problems += [
            Problem(where, name, "must be a choice for a grid", distribution.type_name(), hint)
            for name, distribution in space.located_distributions()
            if not isinstance(distribution, Choice)
        ]
    if problems:
        raise JobError("the sweep cannot be run:", problems)
    if kind == "grid":
        return GridSampler(space, seed)
    if kind == "bayesian":
        startup = STARTUP_TRIALS if max_trials is None else min(STARTUP_TRIALS, math.ceil(max_trials / 4))
        return BayesianSampler(seed, startup, is_conditional=len(space.sub_spaces) > 1)
    return SobolSampler(space, seed) if rule_name == "sobol" else RandomSampler(seed)
