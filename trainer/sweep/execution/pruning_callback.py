"""Reports each evaluation of a trial to its study, and ends the trial when the policy prunes it."""

from __future__ import annotations

import math
from typing import Any

import optuna
from lightning import Callback, Trainer

from trainer.sweep import early_termination
from trainer.sweep.execution.messages import Order
from trainer.sweep.execution.storage import PATIENCE_SECONDS, open_storage, quiet
from trainer.sweep.sampling.per_trial import RandomSampler


class ReportToStudy(Callback):
    """Reports the primary metric after each evaluation, as steps 1, 2, 3 …; all ranks end together.

    Attributes:
        pruned: whether the policy ended the trial.
        values: the metric at each evaluation so far, those of earlier attempts included.
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
        with quiet():
            study = optuna.load_study(
                study_name=self.order.study,
                storage=open_storage(self.order.storage, patience=PATIENCE_SECONDS),
                sampler=RandomSampler(),  # never used here, but Optuna requires one
                pruner=early_termination.create_pruner(self.order.policy),
            )
        self._trial = optuna.trial.Trial(study, self.order.trial_id)
        for step, value in enumerate(self.values, start=1):
            self._trial.report(value, step)

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        if module.evaluated_epoch != trainer.current_epoch:
            return
        self.values.append(module.metrics.get(self.metric, math.nan))
        should_prune = False
        # Optuna takes no reports for trials with two objectives.
        if self._trial is not None and not self.order.measures_latency:
            self._trial.report(self.values[-1], len(self.values))
            # Pruning a trial after its last epoch would save nothing.
            is_last = trainer.current_epoch + 1 == trainer.max_epochs
            should_prune = not is_last and self._trial.should_prune()
        self.pruned = bool(trainer.strategy.broadcast(should_prune, src=0))
        if self.pruned:
            trainer.should_stop = True
