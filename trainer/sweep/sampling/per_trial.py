"""Makes Optuna's samplers repeatable across processes: a new one for each trial, seeded by its number."""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from trainer.sweep.attempts import first_attempt_number


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
