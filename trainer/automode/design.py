"""Designs the sub-spaces of AutoMode's search space: what is fixed and what is searched for each group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.automode.candidates import Group, own_settings, recipe_of
from trainer.automode.data_statistics import DataStatistics
from trainer.automode.image_sizes import ImageSize, choose_size
from trainer.job.job import Job
from trainer.job.sweep import MODEL_NAME
from trainer.models import catalog
from trainer.models.card import ModelEntry
from trainer.models.defaults import (
    can_probe,
    default_settings,
    has_recipes,
    resolve,
    takes,
    values_for_images,
)
from trainer.models.effects import without_effect
from trainer.models.weights.choice import NONE
from trainer.settings import Settings, canonical
from trainer.sweep.space.distributions import Choice, Distribution, LogUniform, Scalar
from trainer.sweep.space.search_space import SubSpace
from trainer.tasks import Task

FROM_SCRATCH_FACTOR = 2
"""Training from scratch takes this many times the epochs of fine-tuning (He et al. 2018, Rethinking ImageNet
Pre-training)."""
EVALUATIONS = 12
"""Approximate evaluations of each trial: so trials of different lengths can be compared by evaluations."""
RATE_FACTOR = 3
"""The searched learning rates reach from the recipe's rate divided by this to the rate times this."""
IMBALANCED, VERY_IMBALANCED = 2, 5
"""Frequency of the most frequent class divided by that of the rarest."""

Values = dict[str, Distribution | Scalar]


@dataclass(frozen=True)
class Part:
    """A sub-space with its first trials.

    Attributes:
        first_trials: a trial for each model, with the usual values of the searched settings.
        evaluations: number of evaluations in each trial.
        probes: the probe of the first model may be a trial.
    """

    sub_space: SubSpace
    first_trials: tuple[dict[str, Any], ...]
    evaluations: int
    probes: bool


@dataclass(frozen=True)
class _Candidate:
    """A model with all of its usual settings."""

    entry: ModelEntry
    resolved: Settings
    size: ImageSize


def design(
    job: Job, data: DataStatistics, gpus: int, groups: Sequence[Group]
) -> tuple[list[Part], list[str]]:
    """Design a sub-space for each group.

    Args:
        gpus: number of GPUs of each trial; 0: it trains on the CPU.

    Returns:
        The sub-spaces, and sentences on what was chosen and why.
    """
    designer = _Designer(job, data, gpus)
    parts, reasons, entries = [], [], []
    for group in groups:
        candidates = [designer.candidate(catalog.find(name, job.task)) for name in group.models]
        parts.append(designer.part(candidates))
        reasons.append(designer.in_words(candidates))
        reasons += designer.without_effect(candidates)
        entries += [candidate.entry for candidate in candidates]
    return parts, [*reasons, *_licences(entries)]


class _Designer:
    def __init__(self, job: Job, data: DataStatistics, gpus: int) -> None:
        self.job, self.data, self.gpus = job, data, gpus
        self.fixed = {canonical(name) for name in job.settings}
        self.recipe = recipe_of(job)
        self.is_from_scratch = job.weights_choice == NONE

    def candidate(self, entry: ModelEntry) -> _Candidate:
        """The model with its recipe's settings for this number of images."""
        values = own_settings(self.job, entry)
        if has_recipes(entry):
            values = {"recipe": self.recipe, **values}
        resolved = resolve(
            self.job.task, entry.name, values,
            augments_itself=self.job.augments_itself, from_scratch=self.is_from_scratch,
        )  # fmt: skip
        if not resolved.number_of_epochs and "number_of_epochs" not in self.fixed:
            # With a frozen backbone the default is a probe, 0 epochs. It is a trial of its own; others train.
            epochs = default_settings(self.job.task, entry.name, self.recipe)["number_of_epochs"]
            resolved = resolved.model_copy(update={"number_of_epochs": epochs})
        images = self.data.images // max(1, self.gpus)
        sized = values_for_images(self.job.task, entry.name, resolved, self.fixed, images)
        if "number_of_epochs" not in self.fixed:
            epochs = entry.card.epochs or sized.get("number_of_epochs", resolved.number_of_epochs)
            sized["number_of_epochs"] = epochs * (FROM_SCRATCH_FACTOR if self.is_from_scratch else 1)
        resolved = resolved.model_copy(update=sized)
        size = choose_size(entry, self.data, self.fixed, on_gpu=self.gpus > 0)
        return _Candidate(entry, resolved, size)

    def part(self, candidates: Sequence[_Candidate]) -> Part:
        """The sub-space of one or several models of the same family."""
        first = candidates[0]
        names = tuple(candidate.entry.name for candidate in candidates)
        epochs, frequency = self._epochs_and_frequency(candidates)
        values: Values = {MODEL_NAME: Choice(names) if len(names) > 1 else names[0]}
        if has_recipes(first.entry):
            values["recipe"] = first.resolved.recipe
        values |= {"number_of_epochs": epochs, "evaluation_frequency": frequency}
        most = first.resolved.box_detections_per_image
        if self.job.task.has_boxes and self.data.most_objects > most:
            values["box_detections_per_image"] = 100 * math.ceil(1.2 * self.data.most_objects / 100)
        values |= first.size.settings | self._rates(candidates) | self._choices(first)
        sub_space = SubSpace({name: value for name, value in values.items() if name not in self.fixed})
        return Part(
            sub_space,
            tuple(_usual_values(sub_space.distributions, candidate) for candidate in candidates),
            math.ceil(epochs / frequency),
            self._can_probe(first.entry),
        )

    def _can_probe(self, entry: ModelEntry) -> bool:
        is_open = not self.is_from_scratch and "number_of_epochs" not in self.fixed
        return is_open and can_probe(entry, self.job.settings)

    def in_words(self, candidates: Sequence[_Candidate]) -> str:
        first = candidates[0]
        names = ", ".join(candidate.entry.name for candidate in candidates)
        recipe = f" by the {first.resolved.recipe} recipe" if has_recipes(first.entry) else ""
        epochs, _ = self._epochs_and_frequency(candidates)
        size = f"; {first.size.reason}" if first.size.reason else ""
        return f"{names}{recipe}: {epochs} epochs{size}"

    def without_effect(self, candidates: Sequence[_Candidate]) -> list[str]:
        """A sentence for each of the user's settings that has no effect on these models' trials."""
        names = ", ".join(candidate.entry.name for candidate in candidates)
        given = self.fixed - set(self.job.listed_settings)
        return [f"{names}: {sentence}" for sentence in without_effect(candidates[0].resolved, given)]

    def _epochs_and_frequency(self, candidates: Sequence[_Candidate]) -> tuple[int, int]:
        """Epochs, and epochs from one evaluation to the next."""
        epochs = max(candidate.resolved.number_of_epochs for candidate in candidates)
        if "evaluation_frequency" in self.fixed:
            return epochs, candidates[0].resolved.evaluation_frequency
        return epochs, max(1, round(epochs / EVALUATIONS))

    def _rates(self, candidates: Sequence[_Candidate]) -> Values:
        """The range of learning rates; three values for a grid."""
        rates = [candidate.resolved.learning_rate for candidate in candidates]
        if self.job.sweep is not None and self.job.sweep.sampling_algorithm.type == "grid":
            others = (_rounded(rates[0] / RATE_FACTOR), _rounded(min(1, rates[0] * RATE_FACTOR)))
            return {"learning_rate": Choice((rates[0], *others))}
        low, high = _rounded(min(rates) / RATE_FACTOR), min(1.0, _rounded(max(rates) * RATE_FACTOR))
        return {"learning_rate": LogUniform(math.log(low), math.log(high))}

    def _choices(self, candidate: _Candidate) -> Values:
        """The choices that are not sizes, the usual value first."""
        entry, resolved, task = candidate.entry, candidate.resolved, self.job.task
        values: Values = {}
        if takes(entry, "model_size"):
            values["model_size"] = Choice(("medium", "small", "large") if self.gpus else ("small", "medium"))
        mixes = takes(entry, "mixup_alpha") and resolved.recipe == "modern" and self.job.augments_itself
        if mixes and task is Task.CLASSIFICATION:
            values["mixup_alpha"] = Choice((0.0, 0.2))
        if takes(entry, "large_scale_jitter") and self.job.augments_itself:
            jitter = resolved.large_scale_jitter
            values["large_scale_jitter"] = Choice((jitter, not jitter))
        if task.is_classification and self.data.imbalance > IMBALANCED:
            usual = resolved.weighted_loss
            values["weighted_loss"] = Choice((usual, 1 - min(1, usual)))
        if task.has_boxes and self.data.imbalance > VERY_IMBALANCED:
            values["balanced_sampling"] = Choice((False, True))
        return values


def _usual_values(distributions: Mapping[str, Distribution], candidate: _Candidate) -> dict[str, Any]:
    """The model's usual value of each parameter that is searched."""
    usual = {**candidate.resolved.model_dump(), MODEL_NAME: candidate.entry.name}
    return {
        name: distribution.values[0]
        if isinstance(distribution, Choice) and name != MODEL_NAME
        else usual[name]
        for name, distribution in distributions.items()
    }


def _rounded(value: float) -> float:
    """The value with two significant digits."""
    return float(f"{value:.2g}")


def _licences(entries: Sequence[ModelEntry]) -> Iterator[str]:
    strict = [entry for entry in entries if "AGPL" in entry.card.licence]
    for library, licence in dict.fromkeys((entry.card.library, entry.card.licence) for entry in strict):
        names = dict.fromkeys(entry.name for entry in strict if entry.card.library == library)
        yield f"{', '.join(names)}: models of {library}, under {licence}"
