"""The bandit policy: ends a trial whose best metric is too far from that of the best trial."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from trainer.sweep.early_termination.policy import STRICT_KEYS, Number, PeriodicPolicy, Progress

# The SDK writes both slacks, and 0 for the one that is not used.
_Slack = Annotated[
    Annotated[float, Field(gt=0)] | None,
    BeforeValidator(lambda value: None if value == 0 else value),
    Number,
]


@dataclass(frozen=True, config=STRICT_KEYS)
class BanditPolicy(PeriodicPolicy):
    """Ends a trial whose best metric up to interval n is below what the slack leaves of the best trial's.

    That limit is best / (1 + slack_factor) or best − slack_amount; if less is better, the limit is
    best · (1 + slack_factor) or best + slack_amount. "Best" is the best metric of any trial up to the same
    interval. If best is negative, as an undefined precision of −1 is, the factor leaves as much room below
    it as below its amount: best − |best| · slack_factor / (1 + slack_factor), which equals the formula above
    for positive values.

    Source: learn.microsoft.com, azureml.train.hyperdrive.BanditPolicy.

    Attributes:
        slack_factor: above 0, a fraction of the best metric; exactly one of the two slacks is given.
        slack_amount: above 0, in units of the metric.
    """

    slack_factor: _Slack = None
    slack_amount: _Slack = Field(default=None, validate_default=True)

    @field_validator("slack_amount")
    @classmethod
    def _one_slack(cls, value: float | None, info: ValidationInfo) -> float | None:
        values: dict[str, Any] = info.data
        if "slack_factor" in values and (value is None) == (values["slack_factor"] is None):
            got = "neither" if value is None else "both"
            raise ValueError(f"needs either slack_factor or slack_amount, over 0, got {got}")
        return value

    def is_poor(self, trial: Progress, others: list[Progress], interval: int) -> bool:
        best = max([trial.best, *(other.best for other in others)])
        return trial.best < best - self._slack(best, trial.is_negated)

    def _slack(self, best: float, is_negated: bool) -> float:
        if self.slack_factor is None:
            return self.slack_amount or 0.0
        return abs(best) * self.slack_factor / (1 if is_negated else 1 + self.slack_factor)
