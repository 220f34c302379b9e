"""Tells the study of each evaluation of a trial, and ends the trial when the policy says so."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import optuna
from lightning import Callback, Trainer

from trainer.sweep.execution.storage import PATIENCE_SECONDS, open_storage, quiet
from trainer.sweep.sampling.samplers import RandomSampler

if TYPE_CHECKING:
    from trainer.sweep.execution.trial import Order


class ReportToStudy(Callback):
    """Reports the primary metric, evaluation by evaluation, from 1; all ranks end together.

    Attributes:
        pruned: the policy gave the trial up.
    """

    def __init__(self, order: Order, metric: str) -> None:
        self.order, self.metric = order, metric
        self.pruned = False
        self.values: list[float] = []
        self._trial: optuna.trial.Trial | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = state_dict["values"]

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        if not trainer.is_global_zero:
            return
        from trainer.sweep import early_termination

        with quiet():
            study = optuna.load_study(
                study_name=self.order.study,
                storage=open_storage(self.order.storage, patience=PATIENCE_SECONDS),
                sampler=RandomSampler(),  # this process asks for nothing
                pruner=early_termination.create(self.order.policy),
            )
        self._trial = optuna.trial.Trial(study, self.order.trial_id)
        for step, value in enumerate(self.values, start=1):  # of an earlier attempt
            self._trial.report(value, step)

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        if module.evaluated_epoch != trainer.current_epoch:
            return
        self.values.append(module.metrics.get(self.metric, math.nan))
        prune = False
        if self._trial is not None and not self.order.measures_latency:
            # Optuna takes no reports on trials with two objectives.
            self._trial.report(self.values[-1], len(self.values))
            # A trial at its end has nothing left to give up.
            is_last = trainer.current_epoch + 1 == trainer.max_epochs
            prune = not is_last and self._trial.should_prune()
        self.pruned = bool(trainer.strategy.broadcast(prune, src=0))
        if self.pruned:
            trainer.should_stop = True
