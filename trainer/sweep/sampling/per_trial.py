"""Random, Sobol and Bayesian sampling, repeatable across processes: a trial's number fixes what it gets."""

from __future__ import annotations

import math
import warnings
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import optuna
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

from trainer.sweep.attempts import first_attempt_number
from trainer.sweep.space.search_space import SearchSpace

STARTUP_TRIALS = 10
"""Random trials before the estimator has enough results, in a sweep of 40 trials or more."""

_WARNING_FILTERS = Lock()  # Python's warning filters are shared by all threads


class PerTrialSampler(BaseSampler):
    """Delegates to a sampler of Optuna's that is created for each call.

    What it proposes depends only on the seed, the trial's number and the trials before it. So a resumed sweep
    continues as if it had not been stopped, and several processes can share a study. (Optuna's own samplers
    keep the state of their random generator: with a seed, each process would propose the same settings.)

    Args:
        seed: None: each sweep gets different settings.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed

    @abstractmethod
    def create(self, seed: int | None) -> BaseSampler:
        """Create Optuna's sampler with a seed in [0, 2³²)."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        sampler = self._sampler(trial)
        sampler.infer_relative_search_space(study, trial)  # TPE finds the groups of parameters here
        return sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        sampler = self._sampler(trial, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._sampler(trial).after_trial(study, trial, state, values)

    def _sampler(self, trial: FrozenTrial, parameter: str = "") -> BaseSampler:
        if self._seed is None:
            return self.create(None)
        parts = [self._seed, first_attempt_number(trial), zlib.crc32(parameter.encode())]
        return self.create(int(np.random.default_rng(parts).integers(2**32)))


class RandomSampler(PerTrialSampler):
    """Draws each parameter independently of the others and of all other trials."""

    def create(self, seed: int | None) -> BaseSampler:
        return optuna.samplers.RandomSampler(seed)


class SobolSampler(RandomSampler):
    """Trial n gets the nth point of a scrambled Sobol' sequence over all parameters of the space.

    In a conditional space the choice of the sub-space is one of the dimensions, so the trials cover each
    sub-space evenly as well. (Optuna's QMCSampler takes the first trial's parameters for the whole space, and
    may give the same point to two processes.)

    Args:
        seed: None: derived from the study's name, which all processes of a sweep share.
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
        from scipy.stats import qmc  # takes most of a second to import

        seed = zlib.crc32(study.study_name.encode()) if self._seed is None else self._seed
        sequence = qmc.Sobol(len(search_space), scramble=True, rng=np.random.default_rng(seed))
        if number := first_attempt_number(trial):
            sequence.fast_forward(number)
        point = sequence.random(1)[0]
        return {
            name: _at_quantile(distribution, float(quantile))
            for (name, distribution), quantile in zip(search_space.items(), point, strict=True)
        }


class BayesianSampler(PerTrialSampler):
    """Estimates which settings are good from all results so far, by a tree-structured Parzen estimator (TPE).

    Running trials count as bad, so that the next trial tries something else. In a conditional space the
    parameters of each sub-space are estimated jointly.

    Args:
        startup_trials: how many finished trials are drawn at random first.
        is_conditional: whether the space has several sub-spaces.
    """

    def __init__(
        self, seed: int | None = None, startup_trials: int = STARTUP_TRIALS, *, is_conditional: bool
    ) -> None:
        super().__init__(seed)
        self._startup_trials = startup_trials
        self._is_conditional = is_conditional

    def create(self, seed: int | None) -> BaseSampler:
        with _WARNING_FILTERS, warnings.catch_warnings():
            # Joint estimation in a conditional space needs `group`, which Optuna calls experimental.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(
                n_startup_trials=self._startup_trials,
                multivariate=True,
                group=self._is_conditional,
                constant_liar=True,
                seed=seed,
            )


def _at_quantile(distribution: BaseDistribution, quantile: float) -> Any:
    """The value of Optuna's parameter at a quantile in [0, 1)."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(quantile * len(distribution.choices))]
    if isinstance(distribution, IntDistribution):
        return distribution.low + int(quantile * (distribution.high - distribution.low + 1))
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        value = math.exp(math.log(low) + quantile * (math.log(high) - math.log(low)))
        return min(max(value, low), high)
    return min(low + quantile * (high - low), high)
