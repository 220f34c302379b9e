"""Random and Bayesian sampling by Optuna's samplers, made repeatable across processes."""

from __future__ import annotations

import warnings
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from trainer.sweep.attempts import first_attempt_number

STARTUP_TRIALS = 10
"""Random trials before the estimator has enough results, in a sweep of 40 trials or more."""

_WARNING_FILTERS = Lock()  # Python's warning filters are shared by all threads


class PerTrialSampler(BaseSampler):
    """Delegates to a sampler of Optuna's that is created anew for each call.

    What it proposes depends only on the seed, the trial's number and the trials before it. So a resumed sweep
    continues as if it had not been stopped, and several processes can share a study. (Optuna's own samplers
    keep the state of their random generator: with a seed, each process would propose the same settings.)

    Args:
        seed: None: other settings in each sweep.
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
