"""The truncation selection policy: at each interval ends the worst of the trials."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.sweep.early_termination.policy import Policy, Run


@dataclass(frozen=True)
class TruncationSelectionPolicy(Policy):
    """At interval n, ends a trial that is among the worst of all trials at that interval.

    Trials are compared by their best metric up to interval n, even those that have gone on since. Running
    trials that have not come to it yet take no part. Of k trials, as many as truncation_percentage of k
    makes, rounded down, are the worst; of equal ones the later.

    Source: learn.microsoft.com, azureml.train.hyperdrive.TruncationSelectionPolicy.

    Attributes:
        truncation_percentage: 1 to 99.
        exclude_finished_jobs: compare with running trials only.
    """

    truncation_percentage: int = 20
    exclude_finished_jobs: bool = False

    def is_poor(self, run: Run, others: list[Run], interval: int) -> bool:
        compared = [run, *(other for other in others if self._takes_part(other, interval))]
        ranked = sorted(compared, key=lambda each: (each.best, -each.number))
        return run in ranked[: len(ranked) * self.truncation_percentage // 100]

    def _takes_part(self, run: Run, interval: int) -> bool:
        if run.running:
            return run.last >= interval
        return bool(run.last) and not self.exclude_finished_jobs
