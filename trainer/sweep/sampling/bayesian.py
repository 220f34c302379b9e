"""Bayesian sampling: Optuna's tree-structured Parzen estimator (TPE) over all parameters jointly."""

from __future__ import annotations

import warnings
from threading import Lock

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler

from trainer.sweep.sampling.per_trial import PerTrialSampler

STARTUP_TRIALS = 10
"""Random trials before the estimator has enough results, in a sweep of 40 trials or more."""

_WARNING_FILTERS = Lock()  # Python's warning filters are shared by all threads


class BayesianSampler(PerTrialSampler):
    """Estimates which settings are good from all results so far.

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
