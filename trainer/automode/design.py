"""The sub-spaces of AutoMode's search space: for each group of models what is fixed and what is searched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.automode.budgets import FEWEST_EPOCHS, Training, Trainings
from trainer.automode.candidates import Group, has_recipes
from trainer.automode.data_statistics import Facts, Machine
from trainer.job.job import Job
from trainer.job.sweep import MODEL_NAME
from trainer.models import catalog
from trainer.models.defaults import takes
from trainer.sweep.space.distributions import Choice, Distribution, LogUniform, Scalar
from trainer.sweep.space.search_space import SubSpace
from trainer.tasks import Task

EVALUATIONS = 12
"""Of each trial, about: what has had as many evaluations is as far on its way, whatever its epochs."""
AROUND_RATE, AROUND_DECAY = 3, 4
"""By which factor the search goes below and above the recipe's learning rate and weight decay."""
IMBALANCED, VERY_IMBALANCED = 2, 5
"""Times that the most frequent class is as frequent as the rarest."""

Values = dict[str, Distribution | Scalar]


@dataclass(frozen=True)
class Part:
    """A sub-space.

    Attributes:
        first: the trials to begin with in it: what is searched, with each model's usual values.
        evaluations: that a trial has.
    """

    sub_space: SubSpace
    first: tuple[dict[str, Any], ...]
    evaluations: int


def design(
    job: Job, facts: Facts, machine: Machine, concurrent: int, groups: Sequence[Group], reasons: list[str]
) -> list[Part]:
    """A sub-space for each group of models for which there are memory and time; at least one.

    Args:
        reasons: gets in words what was chosen and why.
    """
    trainings = Trainings(job, facts, machine, concurrent, reasons)
    reasons.append(_time_in_words(job, trainings.seconds, concurrent))
    of_groups = [
        trainings.of([catalog.find(name, job.task) for name in group.models], group.recipe)
        for group in groups
    ]
    possible = trainings.possible([each for of_group in of_groups for each in of_group])
    designer = _Designer(job, facts, machine, trainings)
    parts = []
    for of_group in of_groups:
        if kept := [each for each in of_group if each in possible]:
            parts.append(designer.part(kept))
            reasons += designer.in_words(kept)
    reasons += _licences(possible)
    reasons[:] = [reason for reason in dict.fromkeys(reasons) if reason]
    return parts


class _Designer:
    def __init__(self, job: Job, facts: Facts, machine: Machine, trainings: Trainings) -> None:
        self.job, self.facts, self.machine, self.trainings = job, facts, machine, trainings

    def part(self, group: Sequence[Training]) -> Part:
        """The sub-space of one or several models of one family and recipe."""
        first = group[0]
        names = tuple(each.entry.name for each in group)
        epochs, frequency = self._course(group)
        values: Values = {MODEL_NAME: Choice(names) if len(names) > 1 else names[0]}
        if has_recipes(first.entry):
            values["recipe"] = first.resolved.recipe
        values |= {"number_of_epochs": epochs, "evaluation_frequency": frequency}
        if epochs < FEWEST_EPOCHS:
            values["warmup_cosine_lr_warmup_epochs"] = epochs // 4
        values |= self._batches(group) | first.size.settings | self._numbers(group) | self._choices(first)
        fixed = self.trainings.fixed
        sub_space = SubSpace({name: value for name, value in values.items() if name not in fixed})
        return Part(
            sub_space,
            tuple(_usual(sub_space.distributions, each) for each in group),
            math.ceil(epochs / frequency),
        )

    def in_words(self, group: Sequence[Training]) -> Iterator[str]:
        names = ", ".join(each.entry.name for each in group)
        kind = f" by the {group[0].resolved.recipe} recipe" if has_recipes(group[0].entry) else ""
        epochs, _ = self._course(group)
        wanted = max(each.epochs for each in group)
        rest = f" of {wanted}, for want of time" if epochs < wanted else ""
        size = f"; {group[0].size.reason}" if group[0].size.reason else ""
        minutes = max(each.epoch_seconds for each in group) * epochs / 60
        yield f"{names}{kind}: {epochs} epochs{rest}, some {math.ceil(minutes)} min for a trial{size}"

    def _course(self, group: Sequence[Training]) -> tuple[int, int]:
        """Epochs, and how many from one evaluation to the next."""
        epochs = min(map(self.trainings.affordable, group))
        if "evaluation_frequency" in self.trainings.fixed:
            return epochs, group[0].resolved.evaluation_frequency
        return epochs, max(1, round(epochs / EVALUATIONS))

    def _batches(self, group: Sequence[Training]) -> Values:
        first = group[0]
        if "training_batch_size" in self.trainings.fixed:
            return {}
        batch = min(each.batch for each in group)
        values: Values = {"training_batch_size": batch}
        accumulated = max(1, first.step // (batch * max(1, self.machine.gpus)))
        if accumulated != first.resolved.gradient_accumulation_step:
            values["gradient_accumulation_step"] = accumulated
        if self.job.task.has_boxes and self.facts.most_objects > first.resolved.box_detections_per_image:
            values["box_detections_per_image"] = 100 * math.ceil(1.2 * self.facts.most_objects / 100)
        return values

    def _numbers(self, group: Sequence[Training]) -> Values:
        """The range of each number that is searched; for a grid three learning rates."""
        rates = [each.resolved.learning_rate for each in group]
        if self.job.sweep is not None and self.job.sweep.sampling_algorithm.type == "grid":
            others = (_rounded(rates[0] / AROUND_RATE), _rounded(min(1, rates[0] * AROUND_RATE)))
            return {"learning_rate": Choice((rates[0], *others))}
        return {
            "learning_rate": _around(rates, AROUND_RATE),
            "weight_decay": _around([group[0].resolved.weight_decay], AROUND_DECAY),
        }

    def _choices(self, training: Training) -> Values:
        """The choices of settings other than sizes, the usual value first."""
        entry, resolved, task = training.entry, training.resolved, self.job.task
        values: Values = {}
        if takes(entry, "model_size"):
            values["model_size"] = Choice(
                ("medium", "small", "large") if self.machine.gpus else ("small", "medium")
            )
        if takes(entry, "mixup_alpha") and resolved.recipe == "modern":
            if task is Task.CLASSIFICATION:
                values["mixup_alpha"] = Choice((resolved.mixup_alpha, 0.0))
            if "layer_decay" in entry.modern_for(task):
                values["layer_decay"] = Choice((resolved.layer_decay, 0.65, 0.85))
        if takes(entry, "large_scale_jitter"):
            values["large_scale_jitter"] = Choice(
                (resolved.large_scale_jitter, not resolved.large_scale_jitter)
            )
        if takes(entry, "weighted_loss") and self.facts.imbalance > IMBALANCED:
            values["weighted_loss"] = Choice((0, 1))
        if task.has_boxes and self.facts.imbalance > VERY_IMBALANCED:
            values["balanced_sampling"] = Choice((False, True))
        return values


def _usual(distributions: Mapping[str, Distribution], training: Training) -> dict[str, Any]:
    """What is searched, as it is usual for the model."""
    known = training.resolved.model_dump()
    return {
        name: training.entry.name
        if name == MODEL_NAME
        else value.values[0]
        if isinstance(value, Choice)
        else known[name]
        for name, value in distributions.items()
    }


def _around(values: Sequence[float], factor: float) -> LogUniform:
    return LogUniform(_rounded(min(values) / factor), min(1.0, _rounded(max(values) * factor)))


def _rounded(value: float) -> float:
    """To two digits."""
    return float(f"{value:.2g}")


def _time_in_words(job: Job, seconds: float, concurrent: int) -> str:
    minutes = f"up to {max(1, round(seconds / 60))} minutes for a trial"
    limits = job.limits
    if limits.timeout_minutes is None:
        return f"{minutes}, as the job has no time limit"
    at_a_time = f", {concurrent} at a time" if concurrent > 1 else ""
    return f"{limits.timeout_minutes} minutes for {limits.max_trials} trials{at_a_time}: {minutes}"


def _licences(trainings: Sequence[Training]) -> Iterator[str]:
    entries = [each.entry for each in trainings if "AGPL" in each.entry.card.licence]
    for library, licence in dict.fromkeys((entry.card.library, entry.card.licence) for entry in entries):
        names = dict.fromkeys(entry.name for entry in entries if entry.card.library == library)
        yield f"{', '.join(names)}: of {library}, under {licence}"
