"""The median stopping policy: ends a trial whose best metric is worse than the median of all averages."""

from __future__ import annotations

from statistics import median

from pydantic.dataclasses import dataclass

from trainer.sweep.early_termination.policy import STRICT_KEYS, PeriodicPolicy, Progress


@dataclass(frozen=True, config=STRICT_KEYS)
class MedianStoppingPolicy(PeriodicPolicy):
    """Ends a trial whose best metric up to interval n is worse than the median of the running averages.

    A trial's running average is the mean of its metric over its intervals 1 to n, or over those that it has.
    The median is taken over all trials, this one included.

    Source: learn.microsoft.com, azureml.train.hyperdrive.MedianStoppingPolicy, after Google Vizier
    (Golovin et al. 2017, section 3.2.2).
    """

    def is_poor(self, trial: Progress, others: list[Progress], interval: int) -> bool:
        averages = [progress.average for progress in (trial, *others) if progress.values]
        return bool(averages) and trial.best < median(averages)
