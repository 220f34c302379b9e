"""The truncation selection policy: ends the worst trials at each interval."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from trainer.sweep.early_termination.policy import STRICT_KEYS, Number, PeriodicPolicy, Progress


@dataclass(frozen=True, config=STRICT_KEYS)
class TruncationSelectionPolicy(PeriodicPolicy):
    """Ends a trial that is among the worst of all trials at interval n.

    Trials are compared by their best metric up to interval n, even if they have continued since. Running
    trials that have not reached it yet do not take part. Of k trials, the worst are truncation_percentage
    percent of k, rounded down; among equals the later ones.

    Source: learn.microsoft.com, azureml.train.hyperdrive.TruncationSelectionPolicy.

    Attributes:
        truncation_percentage: 1 to 99.
        exclude_finished_jobs: whether to compare with running trials only.
    """

    truncation_percentage: Annotated[int, Field(ge=1, le=99), Number] = Field(kw_only=True)
    exclude_finished_jobs: bool = False

    def is_poor(self, trial: Progress, others: list[Progress], interval: int) -> bool:
        compared = [trial, *(other for other in others if self._takes_part(other, interval))]
        ranked = sorted(compared, key=lambda progress: (progress.best, -progress.number))
        return trial in ranked[: len(ranked) * self.truncation_percentage // 100]

    def _takes_part(self, trial: Progress, interval: int) -> bool:
        if trial.running:
            return trial.last >= interval
        return bool(trial.last) and not self.exclude_finished_jobs
