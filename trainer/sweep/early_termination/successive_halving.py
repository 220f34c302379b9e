"""Successive halving: at each of a few rungs the better half of the trials goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.sweep.early_termination.policy import Policy, Run


@dataclass(frozen=True)
class SuccessiveHalvingPolicy(Policy):
    """At the intervals min_resource · reduction_factorᵏ, k = 0, 1, 2 …, ends all but the best trials.

    Of m trials that have come so far, this one among them, the best m / reduction_factor, rounded up, go on,
    and those that are as good as the last of these. They are compared by their best metric up to that
    interval. No trial waits for others: with which it is compared depends on when each comes.

    Not a policy of Azure's. Source: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning".
    They round down, as they can take a trial up again; what ends here has ended. (Optuna's pruner keeps the
    values at the rungs with each attempt at a trial, so that one that is tried again would count twice.)

    Attributes:
        min_resource: the first rung, in evaluations.
        reduction_factor: at least 2.
    """

    min_resource: int = 1
    reduction_factor: int = 2

    def is_poor(self, run: Run, others: list[Run], interval: int) -> bool:
        if not self.is_rung(interval):
            return False
        ranked = sorted([run.best, *(other.best for other in others if other.last >= interval)], reverse=True)
        return run.best < ranked[math.ceil(len(ranked) / self.reduction_factor) - 1]

    def is_rung(self, interval: int) -> bool:
        """Whether trials are compared at an interval."""
        rung = self.min_resource
        while rung < interval:
            rung *= self.reduction_factor
        return rung == interval
