"""The models by name, and the card of each family.

Free of torch and of every model library, so that `--help`, `trainer models` and the checks of a job
answer at once. A new model of a known family is one entry in its module in `cards/`; a new family is one
module, and one there with its card and entries.
"""

from __future__ import annotations

import re

from trainer.errors import JobError, Problem, did_you_mean
from trainer.models.card import FamilyCard, ModelEntry
from trainer.models.cards import (
    classifiers,
    detr,
    mask_transformers,
    rcnn,
    rtdetr,
    transformers_classifiers,
    transformers_detectors,
    yolo,
)
from trainer.models.cards.shared import HUB_PREFIX
from trainer.tasks import Task

_CARDS = (
    classifiers,
    transformers_classifiers,
    rcnn,
    yolo,
    rtdetr,
    detr,
    transformers_detectors,
    mask_transformers,
)
_OF_HUB = (transformers_classifiers, transformers_detectors)
"""The modules of families that train models of the Hub by their names there."""

CARDS: dict[str, FamilyCard] = {module.CARD.name: module.CARD for module in _CARDS}
"""The card of each family, by its name."""

MODELS: dict[str, ModelEntry] = {entry.name: entry for module in _CARDS for entry in module.ENTRIES}
"""Every model with an entry, by its name. Models of a library that have none are named by `TIMM`."""

TIMM = classifiers.CARD.library_prefix
"""Prefix of timm's own model names. Whether timm knows a model, only timm can say."""

OF_AZURES_CATALOG = tuple(classifiers.OF_HUB)
"""Names on the Hub of the classifiers in Azure's catalog, whose weights timm has too."""


def models_for(task: Task) -> tuple[ModelEntry, ...]:
    """Every model that can be trained for a task."""
    return tuple(entry for entry in MODELS.values() if task in entry.tasks)


def find(name: str, task: Task) -> ModelEntry:
    """The entry of a model that can be trained for a task.

    Raises:
        JobError: no model has this name, or it cannot be trained for the task.
    """
    entry = MODELS.get(name) or _named(name, task)
    if entry is not None and task in entry.tasks:
        return entry
    names = [entry.name for entry in models_for(task)]
    if entry is not None:
        rule = f"{name} is a model for {' and '.join(tasks_of(entry))}, not for {task}"
        hint = f"choose one of {', '.join(names)}"
    else:
        rule = f"no model is named {name!r}"
        hint = did_you_mean(name, names, otherwise=f"`trainer models --task {task}` lists the names")
    raise JobError("the model cannot be used", [Problem("model_name", "", rule, hint=hint)])


def find_for_any_task(name: str, field: str) -> ModelEntry:
    """The entry of a model, whatever it can be trained for.

    Args:
        field: the flag or key that named it, for the error.

    Raises:
        JobError: no model has this name.
    """
    entry = MODELS.get(name) or _named(name)
    if entry is not None:
        return entry
    hint = did_you_mean(name, MODELS, otherwise="`trainer models` lists the names")
    raise JobError("the model cannot be used", [Problem(field, "", f"no model is named {name!r}", hint=hint)])


def _named(name: str, task: Task | None = None) -> ModelEntry | None:
    """The entry of a model by its library's or the Hub's name; None if the name has no such form.

    hf/timm/NAME is timm/NAME. ORG/NAME without a prefix is a model of the Hub, as Azure's jobs name them;
    those of Azure's catalog are timm's, which has the same weights.
    """
    name_of_timm = name.removeprefix(HUB_PREFIX)
    if name_of_timm.startswith(TIMM) and len(name_of_timm) > len(TIMM):
        return classifiers.named(name)
    if (entry := classifiers.of_hub(name)) is not None:
        return entry
    if not re.fullmatch(rf"(?:{HUB_PREFIX})?[\w.-]+/[\w.-]+(?:@[\w./-]+)?", name):
        return None
    entries: list[ModelEntry] = [module.named(name) for module in _OF_HUB]
    return next((entry for entry in entries if task in entry.tasks), entries[0])


def tasks_of(entry: ModelEntry) -> tuple[Task, ...]:
    """The tasks that a model can be trained for; for one of the Hub, those of any of its models."""
    cards = [module.CARD for module in _OF_HUB] if entry.card.hub_tasks else []
    return tuple(dict.fromkeys((*entry.tasks, *(task for card in cards for task in card.hub_tasks))))


def network_name(entry: ModelEntry) -> str:
    """A name that all entries of one network share.

    A network of a library whose own names are accepted has several: ours, the library's, and the library's
    with a tag of its weights, or with a revision.
    """
    if entry.card.described_by_files is not None:
        return entry.library_name.partition("@")[0]
    return entry.library_name.partition(".")[0] if entry.card.library_prefix else entry.name
