"""What all policies share: when they are applied, and what each run has shown up to then."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from statistics import fmean

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


@dataclass(frozen=True)
class Run:
    """A trial as a policy sees it at interval n: by the metric it reported at intervals 1 to n.

    Attributes:
        number: the trial's.
        values: the values that are numbers, with their sign turned if less is better; may be empty.
        last: the last interval that the trial has reported at, also beyond n; 0 if at none.
        running: whether it goes on.
    """

    number: int
    values: tuple[float, ...]
    last: int
    running: bool

    @property
    def best(self) -> float:
        """The best value; −inf without any."""
        return max(self.values, default=-math.inf)

    @property
    def average(self) -> float:
        """The mean of the values, of which there must be one."""
        return fmean(self.values)


@dataclass(frozen=True)
class Policy(BasePruner):
    """An early termination policy of Azure ML as a pruner of Optuna.

    A trial's steps are its intervals: 1 when it reports the metric for the first time, then 2, 3 …

    Attributes:
        evaluation_interval: the policy is applied at every multiple of it; 0 is taken for 1.
        delay_evaluation: and not at intervals before this one.
        maximise: whether more is better.
    """

    evaluation_interval: int = 1
    delay_evaluation: int = 0
    maximise: bool = True

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        interval = trial.last_step
        if (
            interval is None
            or interval % max(self.evaluation_interval, 1)
            or interval < self.delay_evaluation
        ):
            return False
        # A trial that failed says nothing on how good others are; what it did, its retry does again.
        states = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        others = [
            self._run(other, interval)
            for other in study.get_trials(deepcopy=False, states=states)
            if other.number != trial.number
        ]
        return self.is_poor(self._run(trial, interval), others, interval)

    @abstractmethod
    def is_poor(self, run: Run, others: list[Run], interval: int) -> bool:
        """Whether to end a run at an interval, given the others that have not failed."""

    def _run(self, trial: FrozenTrial, interval: int) -> Run:
        sign = 1 if self.maximise else -1
        reported = trial.intermediate_values
        values = tuple(
            sign * value
            for step, value in sorted(reported.items())
            if step <= interval and not math.isnan(value)
        )
        return Run(trial.number, values, max(reported, default=0), not trial.state.is_finished())
