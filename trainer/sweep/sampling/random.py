"""Random sampling: each parameter is drawn by itself."""

from __future__ import annotations

import optuna
from optuna.samplers import BaseSampler

from trainer.sweep.sampling.per_trial import PerTrialSampler


class RandomSampler(PerTrialSampler):
    """Draws each parameter independently of the others and of all other trials."""

    def create(self, seed: int | None) -> BaseSampler:
        return optuna.samplers.RandomSampler(seed)
