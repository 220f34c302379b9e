"""Designs the sub-spaces of AutoMode's search space: what is fixed and what is searched for each group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.automode.budgets import MIN_EPOCHS, Budget, BudgetPlanner
from trainer.automode.candidates import Group
from trainer.automode.data_statistics import DataStatistics
from trainer.automode.hardware import Hardware
from trainer.job.job import Job
from trainer.job.sweep import MODEL_NAME
from trainer.models import catalog
from trainer.models.defaults import has_recipes, takes
from trainer.sweep.space.distributions import Choice, Distribution, LogUniform, Scalar
from trainer.sweep.space.search_space import SubSpace
from trainer.tasks import Task

EVALUATIONS = 12
"""Approximate evaluations of each trial: so trials of different lengths can be compared by evaluations."""
RATE_FACTOR, DECAY_FACTOR = 3, 4
"""How far the search goes below and above the recipe's learning rate and weight decay."""
IMBALANCED, VERY_IMBALANCED = 2, 5
"""Frequency of the most frequent class divided by that of the rarest."""

Values = dict[str, Distribution | Scalar]


@dataclass(frozen=True)
class Part:
    """A sub-space with its first trials.

    Attributes:
        first_trials: for each model the usual values of all that is searched.
        evaluations: of each trial.
        probes: its trials start from a probe, which could be a trial of its own.
    """

    sub_space: SubSpace
    first_trials: tuple[dict[str, Any], ...]
    evaluations: int
    probes: bool


def design(
    job: Job, data: DataStatistics, hardware: Hardware, concurrent: int, groups: Sequence[Group]
) -> tuple[list[Part], list[str]]:
    """Design a sub-space for each group that has models for which memory and time suffice.

    Returns:
        The sub-spaces, at least one, and sentences on what was chosen and why.
    """
    planner = BudgetPlanner(job, data, hardware, concurrent)
    budgets_of_groups = [
        planner.plan([catalog.find(name, job.task) for name in group.models], group.recipe)
        for group in groups
    ]
    possible = planner.possible([budget for budgets in budgets_of_groups for budget in budgets])
    reasons = [_time_in_words(job, planner.seconds, concurrent), *planner.reasons]
    designer = _Designer(job, data, hardware, planner)
    parts = []
    for budgets in budgets_of_groups:
        if chosen := [budget for budget in budgets if budget in possible]:
            parts.append(designer.part(chosen))
            reasons.append(designer.in_words(chosen))
    reasons += _licences(possible)
    return parts, reasons


class _Designer:
    def __init__(self, job: Job, data: DataStatistics, hardware: Hardware, planner: BudgetPlanner) -> None:
        self.job, self.data, self.hardware, self.planner = job, data, hardware, planner

    def part(self, budgets: Sequence[Budget]) -> Part:
        """The sub-space of one or several models of the same family and recipe."""
        first = budgets[0]
        names = tuple(budget.entry.name for budget in budgets)
        epochs, frequency = self._epochs_and_frequency(budgets)
        values: Values = {MODEL_NAME: Choice(names) if len(names) > 1 else names[0]}
        if has_recipes(first.entry):
            values["recipe"] = first.resolved.recipe
        values |= {"number_of_epochs": epochs, "evaluation_frequency": frequency}
        if epochs < MIN_EPOCHS:
            values["warmup_cosine_lr_warmup_epochs"] = epochs // 4
        values |= self._batches(budgets) | first.size.settings | self._numbers(budgets)
        values |= self._choices(first)
        fixed = self.planner.fixed
        sub_space = SubSpace({name: value for name, value in values.items() if name not in fixed})
        return Part(
            sub_space,
            tuple(_usual_values(sub_space.distributions, budget) for budget in budgets),
            math.ceil(epochs / frequency),
            first.resolved.probe_first and "number_of_epochs" not in fixed,
        )

    def in_words(self, budgets: Sequence[Budget]) -> str:
        first = budgets[0]
        names = ", ".join(budget.entry.name for budget in budgets)
        recipe = f" by the {first.resolved.recipe} recipe" if has_recipes(first.entry) else ""
        epochs, _ = self._epochs_and_frequency(budgets)
        wanted = max(budget.epochs for budget in budgets)
        shortened = f" instead of {wanted}, to save time" if epochs < wanted else ""
        size = f"; {first.size.reason}" if first.size.reason else ""
        minutes = math.ceil(max(budget.seconds_per_epoch for budget in budgets) * epochs / 60)
        return f"{names}{recipe}: {epochs} epochs{shortened}, about {minutes} min per trial{size}"

    def _epochs_and_frequency(self, budgets: Sequence[Budget]) -> tuple[int, int]:
        """Epochs, and epochs from one evaluation to the next."""
        epochs = min(map(self.planner.affordable_epochs, budgets))
        if "evaluation_frequency" in self.planner.fixed:
            return epochs, budgets[0].resolved.evaluation_frequency
        return epochs, max(1, round(epochs / EVALUATIONS))

    def _batches(self, budgets: Sequence[Budget]) -> Values:
        first = budgets[0]
        if "training_batch_size" in self.planner.fixed:
            return {}
        batch = min(budget.batch for budget in budgets)
        values: Values = {"training_batch_size": batch}
        accumulation_steps = max(1, first.step // (batch * max(1, self.hardware.gpus)))
        if accumulation_steps != first.resolved.gradient_accumulation_step:
            values["gradient_accumulation_step"] = accumulation_steps
        if self.job.task.has_boxes and self.data.most_objects > first.resolved.box_detections_per_image:
            values["box_detections_per_image"] = 100 * math.ceil(1.2 * self.data.most_objects / 100)
        return values

    def _numbers(self, budgets: Sequence[Budget]) -> Values:
        """The range of each number that is searched; for a grid three learning rates."""
        rates = [budget.resolved.learning_rate for budget in budgets]
        if self.job.sweep is not None and self.job.sweep.sampling_algorithm.type == "grid":
            others = (_rounded(rates[0] / RATE_FACTOR), _rounded(min(1, rates[0] * RATE_FACTOR)))
            return {"learning_rate": Choice((rates[0], *others))}
        return {
            "learning_rate": _range_around(rates, RATE_FACTOR),
            "weight_decay": _range_around([budgets[0].resolved.weight_decay], DECAY_FACTOR),
        }

    def _choices(self, budget: Budget) -> Values:
        """The choices that are not sizes, the usual value first."""
        entry, resolved, task = budget.entry, budget.resolved, self.job.task
        values: Values = {}
        if takes(entry, "model_size"):
            sizes = ("medium", "small", "large") if self.hardware.gpus else ("small", "medium")
            values["model_size"] = Choice(sizes)
        if takes(entry, "mixup_alpha") and resolved.recipe == "modern":
            if task is Task.CLASSIFICATION and self.job.augments_itself:
                values["mixup_alpha"] = Choice((0.0, 0.2))
            if "layer_decay" in entry.modern_for(task):
                values["layer_decay"] = Choice((resolved.layer_decay, 0.65, 0.85))
        if takes(entry, "large_scale_jitter") and self.job.augments_itself:
            jitter = resolved.large_scale_jitter
            values["large_scale_jitter"] = Choice((jitter, not jitter))
        if task.is_classification and self.data.imbalance > IMBALANCED:
            values["weighted_loss"] = Choice((0, 1))
        if task.has_boxes and self.data.imbalance > VERY_IMBALANCED:
            values["balanced_sampling"] = Choice((False, True))
        return values


def _usual_values(distributions: Mapping[str, Distribution], budget: Budget) -> dict[str, Any]:
    """The model's usual value of each parameter that is searched."""
    usual = {**budget.resolved.model_dump(), MODEL_NAME: budget.entry.name}
    return {
        name: distribution.values[0]
        if isinstance(distribution, Choice) and name != MODEL_NAME
        else usual[name]
        for name, distribution in distributions.items()
    }


def _range_around(values: Sequence[float], factor: float) -> LogUniform:
    low, high = _rounded(min(values) / factor), min(1.0, _rounded(max(values) * factor))
    return LogUniform(math.log(low), math.log(high))


def _rounded(value: float) -> float:
    """The value with two significant digits."""
    return float(f"{value:.2g}")


def _time_in_words(job: Job, seconds: float, concurrent: int) -> str:
    per_trial = f"up to {max(1, round(seconds / 60))} minutes per trial"
    limits = job.limits
    if limits.timeout_minutes is None:
        return f"{per_trial}, as the job has no time limit"
    at_a_time = f", {concurrent} at a time" if concurrent > 1 else ""
    return f"{limits.timeout_minutes} minutes for {limits.max_trials} trials{at_a_time}: {per_trial}"


def _licences(budgets: Sequence[Budget]) -> Iterator[str]:
    entries = [budget.entry for budget in budgets if "AGPL" in budget.entry.card.licence]
    for library, licence in dict.fromkeys((entry.card.library, entry.card.licence) for entry in entries):
        names = dict.fromkeys(entry.name for entry in entries if entry.card.library == library)
        yield f"{', '.join(names)}: models of {library}, under {licence}"
