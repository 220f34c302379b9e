"""The median stopping policy: ends a trial whose best metric is worse than what trials have on average."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from trainer.sweep.early_termination.policy import Policy, Run


@dataclass(frozen=True)
class MedianStoppingPolicy(Policy):
    """At interval n, ends a trial whose best metric so far is worse than the median of the running averages.

    A trial's running average is the mean of its metric over its intervals 1 to n, or over as many as it has;
    the median is that over all trials, this one among them.

    Source: learn.microsoft.com, azureml.train.hyperdrive.MedianStoppingPolicy, after Google Vizier
    (Golovin et al. 2017, section 3.2.2).
    """

    def is_poor(self, run: Run, others: list[Run], interval: int) -> bool:
        averages = [each.average for each in (run, *others) if each.values]
        return bool(averages) and run.best < median(averages)
