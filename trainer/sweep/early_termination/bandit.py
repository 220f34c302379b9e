"""The bandit policy: ends a trial whose best metric is too far from that of the best trial."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.sweep.early_termination.policy import Policy, Run


@dataclass(frozen=True)
class BanditPolicy(Policy):
    """At interval n, ends a trial whose best metric so far is under what slack leaves of the best trial's.

    That is best / (1 + slack_factor), or best − slack_amount; where less is better, best · (1 + slack_factor)
    or best + slack_amount. "Best" is the best metric of any trial up to its own interval n. Of a best value
    under 0, such as an undefined precision's −1, the factor leaves as much below as of its amount above:
    best − |best| · slack_factor / (1 + slack_factor), which is the same for those over 0.

    Source: learn.microsoft.com, azureml.train.hyperdrive.BanditPolicy.

    Attributes:
        slack_factor: over 0; None where slack_amount is given.
        slack_amount: over 0; None where slack_factor is given.
    """

    slack_factor: float | None = None
    slack_amount: float | None = None

    def is_poor(self, run: Run, others: list[Run], interval: int) -> bool:
        best = max([run.best, *(other.best for other in others)])
        return run.best < best - self._slack(best)

    def _slack(self, best: float) -> float:
        if self.slack_factor is None:
            return self.slack_amount or 0.0
        return abs(best) * self.slack_factor / (1 + self.slack_factor if self.maximise else 1)
