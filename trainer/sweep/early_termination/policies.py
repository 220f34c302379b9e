"""The policies that end trials early: those of Azure ML, and successive halving."""

from __future__ import annotations

import math
from abc import abstractmethod
from statistics import fmean, median
from typing import Annotated, Any

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from trainer.sweep.space.expressions import as_number

_STRICT_KEYS = ConfigDict(extra="forbid")


def _read_number(value: Any) -> Any:
    """Read numbers as the other parts of a search do: 1e-4 is one, true is not."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {value}")
    number = as_number(value)
    return value if number is None else number


_Number = BeforeValidator(_read_number)
_Count = Annotated[int, Field(ge=0), _Number]
"""A whole number of at least 0."""
# The SDK writes both slacks, and 0 for the one that is not used.
_Slack = Annotated[
    Annotated[float, Field(gt=0)] | None,
    BeforeValidator(lambda value: None if value == 0 else value),
    _Number,
]


@dataclass(frozen=True)
class Progress:
    """What a policy knows of a trial at interval n: the metric reported at intervals 1 to n.

    Attributes:
        number: the trial's.
        values: the reported values that are numbers, negated if less is better; may be empty.
        last: the last interval at which the trial has reported, which may be after n; 0 before the first.
        running: whether the trial still runs.
        is_negated: whether less is better.
    """

    number: int
    values: tuple[float, ...]
    last: int
    running: bool
    is_negated: bool

    @property
    def best(self) -> float:
        """The best value; −inf if there are none."""
        return max(self.values, default=-math.inf)


@dataclass(frozen=True, config=_STRICT_KEYS)
class Policy(BasePruner):
    """An early termination policy as a pruner of Optuna.

    The steps of a trial are its intervals: 1 when it reports the metric for the first time, then 2, 3 …
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        interval = trial.last_step
        if interval is None or not self.is_due(interval):
            return False
        # A failed trial says nothing about how good others are, and its retry repeats what it did.
        states = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        is_negated = study.direction == StudyDirection.MINIMIZE
        others = [
            _progress(other, interval, is_negated)
            for other in study.get_trials(deepcopy=False, states=states)
            if other.number != trial.number
        ]
        return self.is_poor(_progress(trial, interval, is_negated), others, interval)

    @abstractmethod
    def is_due(self, interval: int) -> bool:
        """Whether the policy is applied at an interval."""

    @abstractmethod
    def is_poor(self, trial: Progress, others: list[Progress], interval: int) -> bool:
        """Whether to end a trial at an interval, given all others that have not failed."""


@dataclass(frozen=True, config=_STRICT_KEYS)
class PeriodicPolicy(Policy):
    """A policy of Azure ML, which is applied at regular intervals.

    Attributes:
        evaluation_interval: the policy is applied at every multiple of this interval; 0 counts as 1.
        delay_evaluation: the first interval at which it may be applied.
    """

    evaluation_interval: _Count = 1
    delay_evaluation: _Count = 0

    def is_due(self, interval: int) -> bool:
        return interval >= self.delay_evaluation and interval % max(self.evaluation_interval, 1) == 0


def _progress(trial: FrozenTrial, interval: int, is_negated: bool) -> Progress:
    reported = trial.intermediate_values
    values = tuple(
        -value if is_negated else value
        for step, value in sorted(reported.items())
        if step <= interval and not math.isnan(value)
    )
    return Progress(trial.number, values, max(reported, default=0), not trial.state.is_finished(), is_negated)


@dataclass(frozen=True, config=_STRICT_KEYS)
class BanditPolicy(PeriodicPolicy):
    """Ends a trial whose best metric up to interval n is worse than the best trial's by more than the slack.

    The limit is best / (1 + slack_factor) or best − slack_amount; if less is better, it is
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
        if self.slack_factor is None:
            slack = self.slack_amount or 0.0
        else:
            slack = abs(best) * self.slack_factor / (1 if trial.is_negated else 1 + self.slack_factor)
        return trial.best < best - slack


@dataclass(frozen=True, config=_STRICT_KEYS)
class MedianStoppingPolicy(PeriodicPolicy):
    """Ends a trial whose best metric up to interval n is worse than the median of the running averages.

    A trial's running average is the mean of its metric over its intervals 1 to n, or over those that it has.
    The median is taken over all trials, this one included.

    Source: learn.microsoft.com, azureml.train.hyperdrive.MedianStoppingPolicy, after Google Vizier
    (Golovin et al. 2017, section 3.2.2).
    """

    def is_poor(self, trial: Progress, others: list[Progress], interval: int) -> bool:
        averages = [fmean(progress.values) for progress in (trial, *others) if progress.values]
        return bool(averages) and trial.best < median(averages)


@dataclass(frozen=True, config=_STRICT_KEYS)
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

    truncation_percentage: Annotated[int, Field(ge=1, le=99), _Number] = Field(kw_only=True)
    exclude_finished_jobs: bool = False

    def is_poor(self, trial: Progress, others: list[Progress], interval: int) -> bool:
        compared = [trial, *(other for other in others if self._takes_part(other, interval))]
        ranked = sorted(compared, key=lambda progress: (progress.best, -progress.number))
        return trial in ranked[: len(ranked) * self.truncation_percentage // 100]

    def _takes_part(self, trial: Progress, interval: int) -> bool:
        if trial.running:
            return trial.last >= interval
        return bool(trial.last) and not self.exclude_finished_jobs


@dataclass(frozen=True, config=_STRICT_KEYS)
class SuccessiveHalvingPolicy(Policy):
    """Ends all but the best trials at the rungs: intervals min_resource · reduction_factorᵏ, k = 0, 1, 2 …

    Of the m trials that have reached a rung so far, this one included, the best m / reduction_factor, rounded
    up, continue, and those that equal the last of these. They are compared by their best metric up to the
    rung. No trial waits for others, so the comparison depends on the order in which they arrive.

    Azure has no such policy. Source: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning".
    They round down, since they can resume a trial; here a trial has ended for good. (Optuna's pruner keeps
    the values at the rungs with each attempt at a trial, so a retried trial would count twice.)

    Attributes:
        min_resource: the first rung, in evaluations.
        reduction_factor: at least 2.
    """

    min_resource: Annotated[int, Field(ge=1), _Number] = 1
    reduction_factor: Annotated[int, Field(ge=2), _Number] = 2

    def is_due(self, interval: int) -> bool:
        rung = self.min_resource
        while rung < interval:
            rung *= self.reduction_factor
        return rung == interval

    def is_poor(self, trial: Progress, others: list[Progress], interval: int) -> bool:
        reached = [trial.best, *(other.best for other in others if other.last >= interval)]
        ranked = sorted(reached, reverse=True)
        return trial.best < ranked[math.ceil(len(ranked) / self.reduction_factor) - 1]
