"""What a training of each model would be like under AutoMode: epochs, batches, and whether there is room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.automode import costs
from trainer.automode.candidates import has_recipes, own_settings
from trainer.automode.data_statistics import Facts, Machine
from trainer.automode.image_sizes import MODESTY, Size, size
from trainer.job.job import Job
from trainer.models.card import FamilyCard, ModelEntry
from trainer.models.defaults import resolve
from trainer.models.weights.choice import NONE
from trainer.settings import Settings, canonical

_FEWER = -0.2
"""Exponent of the epochs by images: ten times as many images get 0.63 times as many epochs."""
FEWEST_EPOCHS = 8
FROM_SCRATCH = 2
"""So many times more without published weights."""

STEPS_AN_EPOCH = 12
"""With few images the batch is halved, down to the smallest, until an epoch has so many steps."""

LONGEST = {"gpu": 12 * 3600.0, "cpu": 3600.0}
"""Seconds that a trial may take where the job has no time limit."""
MEAN_TRIAL = 0.6
"""What a trial takes on the average of one that is not given up."""


@dataclass(frozen=True)
class Training:
    """A training of one model that comes to its end.

    Attributes:
        resolved: all settings, before AutoMode's choices.
        batch: images at a time on each device.
        step: images for each step of the optimizer, on all devices.
        epochs: as many as it should have.
        epoch_seconds: of each, evaluation included; an estimate.
    """

    entry: ModelEntry
    resolved: Settings
    size: Size
    batch: int
    step: int
    epochs: int
    epoch_seconds: float

    @property
    def seconds(self) -> float:
        return costs.trial_seconds(self.epochs, self.epoch_seconds)


class Trainings:
    """Makes and chooses trainings for a job.

    Attributes:
        seconds: that a trial which is not given up may take.
        reasons: in words, why a model is left out.
    """

    def __init__(self, job: Job, facts: Facts, machine: Machine, concurrent: int, reasons: list[str]) -> None:
        self.job, self.facts, self.machine, self.reasons = job, facts, machine, reasons
        self.fixed = {canonical(name) for name in job.settings}
        self.seconds = _seconds(job, machine, concurrent)

    def of(self, entries: Sequence[ModelEntry], recipe: str) -> list[Training]:
        """Those of models by a recipe, as long as they should be; on smaller images if time is short."""
        for modesty in MODESTY:
            trainings = [self._of(entry, recipe, modesty) for entry in entries]
            if any(map(self._is_in_time, trainings)):
                break
        return trainings

    def _of(self, entry: ModelEntry, recipe: str, modesty: int) -> Training:
        values = own_settings(self.job, entry)
        if has_recipes(entry):
            values = {"recipe": recipe, **values}
        resolved = resolve(self.job.task, entry.name, values)
        on_gpu = self.machine.gpus > 0
        seen = size(entry, self.facts, resolved, self.fixed, on_gpu=on_gpu, modesty=modesty)
        step = self._step(entry)
        batch = self._batch(entry, seen, step)
        if "training_batch_size" in self.fixed and isinstance(resolved.training_batch_size, int):
            batch = resolved.training_batch_size
        epochs = usual_epochs(
            entry.card, self.facts.images, FROM_SCRATCH if self.job.weights_choice == NONE else 1
        )
        if "number_of_epochs" in self.fixed:
            epochs = resolved.number_of_epochs
        seconds = costs.epoch_seconds(entry, seen.side, batch, self.facts, self.machine, seen.views)
        return Training(entry, resolved, seen, batch, step, epochs, seconds)

    def possible(self, trainings: Sequence[Training]) -> list[Training]:
        """Those for which there are memory and time; at least one."""
        return self._in_time(self._in_memory(trainings))

    def affordable(self, training: Training) -> int:
        """As many epochs as it should have, or as there is time for."""
        if "number_of_epochs" in self.fixed:
            return training.epochs
        return min(training.epochs, costs.affordable_epochs(self.seconds, training.epoch_seconds))

    def _step(self, entry: ModelEntry) -> int:
        step = entry.card.step_images
        while step > entry.card.min_step_images and self.facts.images < step * STEPS_AN_EPOCH:
            step //= 2
        return max(2, step)

    def _batch(self, entry: ModelEntry, seen: Size, step: int) -> int:
        """What fits of a step; batch norms want two images at least."""
        batch = max(2, step // max(1, self.machine.gpus))
        while batch > 2 and not costs.fits(entry, seen.side, batch, self.machine):
            batch //= 2
        return batch

    def _in_memory(self, trainings: Sequence[Training]) -> list[Training]:
        kept = [
            each for each in trainings if costs.fits(each.entry, each.size.side, each.batch, self.machine)
        ]
        kept = kept or [min(trainings, key=lambda each: costs.cost(each.entry, each.size.side).kept)]
        self._tell(trainings, kept, lambda _: f"needs more than the {self.machine.memory:.0f} GiB of the GPU")
        return kept

    def _in_time(self, trainings: list[Training]) -> list[Training]:
        kept = [each for each in trainings if self._is_in_time(each)]
        kept = kept or [min(trainings, key=lambda each: each.seconds)]
        self._tell(trainings, kept, lambda each: f"would take some {each.seconds / 60:.0f} min for a trial")
        return kept

    def _is_in_time(self, training: Training) -> bool:
        """Whether there is time for more than half of the epochs that it should have."""
        return 2 * self.affordable(training) > training.epochs

    def _tell(
        self, all_of_them: Sequence[Training], kept: Sequence[Training], why: Callable[[Training], str]
    ) -> None:
        names = {each.entry.name for each in kept}
        left_out = {each.entry.name: each for each in all_of_them if each.entry.name not in names}
        self.reasons += [f"without {name}, which {why(each)}" for name, each in left_out.items()]


def usual_epochs(card: FamilyCard, images: int, times: int = 1) -> int:
    """The epochs of a model of a family for a number of training images."""
    epochs: float = times * card.epochs * (max(images, 100) / 100) ** _FEWER
    return max(FEWEST_EPOCHS, round(epochs))


def _seconds(job: Job, machine: Machine, concurrent: int) -> float:
    limits = job.limits
    if limits.timeout_minutes is None:
        return LONGEST["gpu" if machine.gpus else "cpu"]
    whole = 60.0 * limits.timeout_minutes
    gives_up = not job.measures_latency and (job.sweep is None or job.sweep.early_termination is not None)
    share = min(concurrent, limits.max_trials) / limits.max_trials / (MEAN_TRIAL if gives_up else 1)
    return whole * min(1.0, share)
