"""Epochs, batches and time of a trial of each model, and whether memory and time suffice for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.automode import costs
from trainer.automode.candidates import own_settings
from trainer.automode.data_statistics import DataStatistics
from trainer.automode.hardware import Hardware
from trainer.automode.image_sizes import REDUCTIONS, ImageSize, choose_size
from trainer.job.job import Job
from trainer.models.card import FamilyCard, ModelEntry
from trainer.models.defaults import has_recipes, resolve
from trainer.models.weights.choice import NONE
from trainer.settings import Settings, canonical

_EPOCHS_EXPONENT = -0.2
"""Exponent of the epochs by images: ten times as many images get 0.63 times as many epochs."""
MIN_EPOCHS = 8
FROM_SCRATCH_FACTOR = 2
"""Factor of the epochs without published weights."""

MIN_STEPS_PER_EPOCH = 12
"""With few images the step is halved, down to the family's minimum, until an epoch has this many steps."""

MAX_TRIAL_SECONDS = {"gpu": 12 * 3600.0, "cpu": 3600.0}
"""Time of a trial if the job has no time limit."""
MEAN_TRIAL_FRACTION = 0.6
"""Mean time of a trial relative to one that is not pruned."""


@dataclass(frozen=True)
class Budget:
    """What a trial of one model is given.

    Attributes:
        resolved: all settings, before AutoMode's choices.
        batch: images at a time on each device.
        step: images in an optimizer step, on all devices.
        epochs: as many as the model should have.
        seconds_per_epoch: an estimate, with the evaluation.
    """

    entry: ModelEntry
    resolved: Settings
    size: ImageSize
    batch: int
    step: int
    epochs: int
    seconds_per_epoch: float

    @property
    def seconds(self) -> float:
        """Estimated time of the whole trial if it is not pruned."""
        return costs.trial_seconds(self.epochs, self.seconds_per_epoch)


class BudgetPlanner:
    """Plans the budgets of a job's models and chooses those that are possible.

    Attributes:
        fixed: the settings that the job fixes.
        seconds: the time that a trial may take if it is not pruned.
        reasons: sentences on the models that are left out.
    """

    def __init__(self, job: Job, data: DataStatistics, hardware: Hardware, concurrent: int) -> None:
        self.job, self.data, self.hardware = job, data, hardware
        self.fixed = {canonical(name) for name in job.settings}
        self.seconds = _seconds_per_trial(job, hardware, concurrent)
        self.reasons: list[str] = []

    def plan(self, entries: Sequence[ModelEntry], recipe: str) -> list[Budget]:
        """The budgets of models that follow a recipe; on smaller images if time is short."""
        for reduction in REDUCTIONS:
            budgets = [self._plan(entry, recipe, reduction) for entry in entries]
            if any(map(self._is_in_time, budgets)):
                break
        return budgets

    def possible(self, budgets: Sequence[Budget]) -> list[Budget]:
        """The budgets for which memory and time suffice; at least one."""
        return self._in_time(self._in_memory(budgets))

    def affordable_epochs(self, budget: Budget) -> int:
        """The epochs that the model should have, or as many as time allows."""
        if "number_of_epochs" in self.fixed:
            return budget.epochs
        return min(budget.epochs, costs.affordable_epochs(self.seconds, budget.seconds_per_epoch))

    def _plan(self, entry: ModelEntry, recipe: str, reduction: int) -> Budget:
        values = own_settings(self.job, entry)
        if has_recipes(entry):
            values = {"recipe": recipe, **values}
        is_from_scratch = self.job.weights_choice == NONE
        resolved = resolve(
            self.job.task, entry.name, values,
            augments_itself=self.job.augments_itself, from_scratch=is_from_scratch,
        )  # fmt: skip
        on_gpu = self.hardware.gpus > 0
        size = choose_size(entry, self.data, resolved, self.fixed, on_gpu=on_gpu, reduction=reduction)
        step = self._step(entry)
        batch = self._batch(entry, size, step)
        if "training_batch_size" in self.fixed and isinstance(resolved.training_batch_size, int):
            batch = resolved.training_batch_size
        epochs = usual_epochs(entry.card, self.data.images, FROM_SCRATCH_FACTOR if is_from_scratch else 1)
        if "number_of_epochs" in self.fixed:
            epochs = resolved.number_of_epochs
        seconds = costs.epoch_seconds(entry, size.side, batch, self.data, self.hardware, size.views)
        return Budget(entry, resolved, size, batch, step, epochs, seconds)

    def _step(self, entry: ModelEntry) -> int:
        step = entry.card.step_images
        while step > entry.card.min_step_images and self.data.images < step * MIN_STEPS_PER_EPOCH:
            step //= 2
        return max(2, step)

    def _batch(self, entry: ModelEntry, size: ImageSize, step: int) -> int:
        """As much of a step as fits in memory; at least the two images that batch norms need."""
        batch = max(2, step // max(1, self.hardware.gpus))
        while batch > 2 and not costs.fits(entry, size.side, batch, self.hardware):
            batch //= 2
        return batch

    def _in_memory(self, budgets: Sequence[Budget]) -> list[Budget]:
        fitting = [
            budget
            for budget in budgets
            if costs.fits(budget.entry, budget.size.side, budget.batch, self.hardware)
        ]
        if not fitting:
            fitting = [min(budgets, key=lambda b: costs.step_cost(b.entry, b.size.side).activations_mib)]
        memory = f"needs more than the {self.hardware.memory:.0f} GiB of the GPU"
        self._explain_left_out(budgets, fitting, lambda _: memory)
        return fitting

    def _in_time(self, budgets: list[Budget]) -> list[Budget]:
        fitting = [budget for budget in budgets if self._is_in_time(budget)]
        fitting = fitting or [min(budgets, key=lambda budget: budget.seconds)]
        self._explain_left_out(
            budgets, fitting, lambda budget: f"would take about {budget.seconds / 60:.0f} min per trial"
        )
        return fitting

    def _is_in_time(self, budget: Budget) -> bool:
        """Whether there is time for more than half of the epochs that the model should have."""
        return 2 * self.affordable_epochs(budget) > budget.epochs

    def _explain_left_out(
        self, budgets: Sequence[Budget], fitting: Sequence[Budget], why: Callable[[Budget], str]
    ) -> None:
        names = {budget.entry.name for budget in fitting}
        left_out = {budget.entry.name: budget for budget in budgets if budget.entry.name not in names}
        self.reasons += [f"without {name}, which {why(budget)}" for name, budget in left_out.items()]


def usual_epochs(card: FamilyCard, images: int, factor: int = 1) -> int:
    """The epochs of a model of a family for a number of training images."""
    epochs: float = factor * card.epochs * (max(images, 100) / 100) ** _EPOCHS_EXPONENT
    return max(MIN_EPOCHS, round(epochs))


def _seconds_per_trial(job: Job, hardware: Hardware, concurrent: int) -> float:
    limits = job.limits
    if limits.timeout_minutes is None:
        return MAX_TRIAL_SECONDS["gpu" if hardware.gpus else "cpu"]
    prunes = not job.measures_latency and (job.sweep is None or job.sweep.early_termination is not None)
    fraction = min(concurrent, limits.max_trials) / limits.max_trials / (MEAN_TRIAL_FRACTION if prunes else 1)
    return 60.0 * limits.timeout_minutes * min(1.0, fraction)
