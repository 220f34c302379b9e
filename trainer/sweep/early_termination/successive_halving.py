"""Successive halving: at each of a few rungs only the better half of the trials continues."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from trainer.sweep.early_termination.policy import STRICT_KEYS, Number, Policy, Progress


@dataclass(frozen=True, config=STRICT_KEYS)
class SuccessiveHalvingPolicy(Policy):
    """Ends all but the best trials at the rungs: intervals min_resource · reduction_factorᵏ, k = 0, 1, 2 …

    Of the m trials that have reached a rung so far, this one included, the best m / reduction_factor, rounded
    up, continue, and those that equal the last of these. They are compared by their best metric up to the
    rung. No trial waits for others, so the comparison depends on the order in which they arrive.

    Azure has no such policy. Source: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning".
    They round down, as they can resume an ended trial; here it has ended for good. (Optuna's pruner keeps the
    values at the rungs with each attempt at a trial, so a retried trial would count twice.)

    Attributes:
        min_resource: the first rung, in evaluations.
        reduction_factor: at least 2.
    """

    min_resource: Annotated[int, Field(ge=1), Number] = 1
    reduction_factor: Annotated[int, Field(ge=2), Number] = 2

    def is_due(self, interval: int) -> bool:
        rung = self.min_resource
        while rung < interval:
            rung *= self.reduction_factor
        return rung == interval

    def is_poor(self, trial: Progress, others: list[Progress], interval: int) -> bool:
        reached = [trial.best, *(other.best for other in others if other.last >= interval)]
        ranked = sorted(reached, reverse=True)
        return trial.best < ranked[math.ceil(len(ranked) / self.reduction_factor) - 1]
