"""The sampling algorithms, by which a sweep chooses the next trial's settings.

What they draw depends on the seed, the trial's number and the trials before it, and on nothing that they
keep in memory. So a sweep that is resumed goes on as if it had not been stopped, and several processes may
work at one. (Optuna's own samplers, given a seed, would draw the same settings in each process.)
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from trainer.errors import JobError, Problem
from trainer.sweep.sampling.grid import GridSampler, first_number
from trainer.sweep.space.distributions import Choice
from trainer.sweep.space.expressions import log_base, near
from trainer.sweep.space.search_space import SearchSpace

__all__ = ["BayesianSampler", "GridSampler", "RandomSampler", "SobolSampler", "create"]

_FILTERS = Lock()  # Python's warning filters are those of all threads

ALGORITHMS = ("random", "grid", "bayesian")
RULES = ("random", "sobol")
STARTUP_TRIALS = 10
"""Random trials before the bayesian sampler has enough to go by, in a sweep of 40 trials or more."""


def create(
    algorithm: str,
    *,
    seed: int | None = None,
    rule: str | None = None,
    logbase: Any = None,
    space: SearchSpace,
    max_trials: int | None = None,
    where: str = "",
) -> BaseSampler:
    """The sampler of a sweep.

    Args:
        algorithm: random, grid or bayesian, or the name of the SDK's class for it.
        seed: makes the sweep repeatable. A grid is so without; its seed mixes the order.
        rule: of random: `random` (the default), or `sobol` for points that cover the space evenly.
        logbase: of random, "e" or a number: the base of the exponents that loguniform's string form has as
            bounds. It is the reading of the space that it changes (`space.parse(logbase=)`), not the
            drawing: a number whose logarithm is uniformly distributed has one in every base.
        space: the search space; of random and bayesian any.
        max_trials: so that a short bayesian sweep is not spent on random trials.
        where: the file that the values stand in, for errors.

    Raises:
        JobError: unknown names, values out of range, a grid over what is no choice; all at once.
    """
    place = "sweep.sampling_algorithm"
    problems: list[Problem] = []
    kind = algorithm.lower().removesuffix("samplingalgorithm").removesuffix("parametersampling")
    if kind not in ALGORITHMS:
        rule_ = f"must be {', '.join(ALGORITHMS[:-1])} or {ALGORITHMS[-1]}"
        problems.append(Problem(where, place, rule_, repr(algorithm), near(kind, ALGORITHMS)))
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        problems.append(Problem(where, f"{place}.seed", "must be a whole number of at least 0", repr(seed)))
    if rule is not None and str(rule).lower() not in RULES:
        problems.append(Problem(where, f"{place}.rule", "must be random or sobol", repr(rule)))
    elif rule is not None and kind not in ("random", str(rule).lower()) and kind in ALGORITHMS:
        problems.append(
            Problem(where, f"{place}.rule", f"is for random sampling, not for {kind}", repr(rule))
        )
    try:
        log_base(logbase, where)
    except JobError as error:
        problems += error.problems
    if kind == "grid":
        hint = "give a choice of values, or sample by random or bayesian"
        problems += [
            Problem(where, name, "must be a choice for a grid", distribution.type_name(), hint)
            for name, distribution in space.named()
            if not isinstance(distribution, Choice)
        ]
    if problems:
        raise JobError("the sweep cannot be run:", problems)
    if kind == "grid":
        return GridSampler(space, seed)
    if kind == "bayesian":
        startup = STARTUP_TRIALS if max_trials is None else min(STARTUP_TRIALS, math.ceil(max_trials / 4))
        return BayesianSampler(seed, startup, conditional=len(space.sub_spaces) > 1)
    return SobolSampler(space, seed) if str(rule).lower() == "sobol" else RandomSampler(seed)


class RandomSampler(BaseSampler):
    """Each parameter drawn by itself.

    Args:
        seed: None: other values in each sweep.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return _at(
            param_distribution, np.random.default_rng(_seed_of(self._seed, trial, param_name)).random()
        )


class SobolSampler(RandomSampler):
    """Trial n takes the nth point of a scrambled Sobol' sequence over all parameters of the space.

    In a conditional space the choice of the sub-space is one of the dimensions, so that the trials of each
    sub-space cover it evenly as well. (Optuna's QMCSampler takes the space to be that of the first trial,
    and may give one point to two processes.)

    Args:
        seed: None: that of the study's name, which all processes of a sweep share.
    """

    def __init__(self, space: SearchSpace, seed: int | None = None) -> None:
        super().__init__(seed)
        self._distributions = space.distributions()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        from scipy.stats import qmc  # here, as it takes most of a second

        seed = zlib.crc32(study.study_name.encode()) if self._seed is None else self._seed
        sequence = qmc.Sobol(len(search_space), scramble=True, rng=np.random.default_rng(seed))
        if number := first_number(trial):
            sequence.fast_forward(number)
        point = sequence.random(1)[0]
        return {
            name: _at(distribution, float(part))
            for (name, distribution), part in zip(search_space.items(), point, strict=True)
        }


class BayesianSampler(BaseSampler):
    """Optuna's tree-structured Parzen estimator over all parameters jointly.

    Running trials count as bad ones, so that the next trial is not put beside them. In a conditional space
    the parameters are estimated jointly within each sub-space.

    Args:
        seed: None: other values in each sweep.
        startup: so many finished trials are drawn at random first.
    """

    def __init__(self, seed: int | None = None, startup: int = STARTUP_TRIALS, *, conditional: bool) -> None:
        self._seed = seed
        self._startup = startup
        self._conditional = conditional

    def _estimator(self, trial: FrozenTrial, name: str = "") -> TPESampler:
        with _FILTERS, warnings.catch_warnings():
            # `group`, experimental since Optuna 2.8, is what makes the estimator joint in a conditional space
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(
                n_startup_trials=self._startup,
                multivariate=True,
                group=self._conditional,
                constant_liar=True,
                seed=int(np.random.default_rng(_seed_of(self._seed, trial, name)).integers(2**32)),
            )

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._estimator(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        estimator = self._estimator(trial)
        estimator.infer_relative_search_space(study, trial)  # it keeps the groups for the next call
        return estimator.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        estimator = self._estimator(trial, param_name)
        return estimator.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._estimator(trial).after_trial(study, trial, state, values)


def _seed_of(seed: int | None, trial: FrozenTrial, name: str) -> list[int] | None:
    return None if seed is None else [seed, first_number(trial), zlib.crc32(name.encode())]


def _at(distribution: BaseDistribution, part: float) -> Any:
    """The value below which `part`, in [0, 1), of a distribution lies, as Optuna's parameter."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(part * len(distribution.choices))]
    if isinstance(distribution, IntDistribution):
        return distribution.low + int(part * (distribution.high - distribution.low + 1))
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        return min(max(math.exp(math.log(low) + part * (math.log(high) - math.log(low))), low), high)
    return min(low + part * (high - low), high)
