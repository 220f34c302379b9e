"""Sobol sampling: points that cover the search space evenly."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from trainer.sweep.attempts import first_attempt_number
from trainer.sweep.sampling.per_trial import RandomSampler
from trainer.sweep.space.search_space import SearchSpace


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
