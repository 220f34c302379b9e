"""The base of all policies: when a policy is applied, and which values it compares."""

from __future__ import annotations

import math
from abc import abstractmethod
from statistics import fmean
from typing import Annotated, Any

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from trainer.sweep.space.expressions import as_number

STRICT_KEYS = ConfigDict(extra="forbid")


def _read_number(value: Any) -> Any:
    """Read numbers as the other parts of a search do: 1e-4 is one, true is not."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {value}")
    number = as_number(value)
    return value if number is None else number


Number = BeforeValidator(_read_number)
Count = Annotated[int, Field(ge=0), Number]
"""A whole number of at least 0."""


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

    @property
    def average(self) -> float:
        """The mean of the values, of which there must be at least one."""
        return fmean(self.values)


@dataclass(frozen=True, config=STRICT_KEYS)
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


@dataclass(frozen=True, config=STRICT_KEYS)
class PeriodicPolicy(Policy):
    """A policy of Azure ML, which is applied at regular intervals.

    Attributes:
        evaluation_interval: the policy is applied at every multiple of this interval; 0 counts as 1.
        delay_evaluation: the first interval at which it may be applied.
    """

    evaluation_interval: Count = 1
    delay_evaluation: Count = 0

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
