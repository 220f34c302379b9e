"""The models by name, and the card of each family.

Free of torch and of every model library, so that `--help`, `trainer models` and the checks of a job
answer at once. A new model of a known family is one entry in its module in `cards/`; a new family is one
module, and one there with its card and entries.
"""

from __future__ import annotations

from trainer.errors import JobError, Problem, did_you_mean
from trainer.models.card import FamilyCard, ModelEntry
from trainer.models.cards import classifiers, rcnn, rfdetr, rtdetr, yolo
from trainer.tasks import Task

_CARDS = (classifiers, rcnn, yolo, rtdetr, rfdetr)

CARDS: dict[str, FamilyCard] = {module.CARD.name: module.CARD for module in _CARDS}
"""The card of each family, by its name."""

MODELS: dict[str, ModelEntry] = {entry.name: entry for module in _CARDS for entry in module.ENTRIES}
"""Every model with an entry, by its name. Models of a library that have none are named by `TIMM`."""

TIMM = classifiers.CARD.library_prefix
"""Prefix of timm's own model names. Whether timm knows a model, only timm can say."""


def models_for(task: Task) -> tuple[ModelEntry, ...]:
    """Every model that can be trained for a task."""
    return tuple(entry for entry in MODELS.values() if task in entry.tasks)


def find(name: str, task: Task) -> ModelEntry:
    """The entry of a model that can be trained for a task.

    Raises:
        JobError: no model has this name, or it cannot be trained for the task.
    """
    entry = MODELS.get(name)
    if entry is None and name.startswith(TIMM) and len(name) > len(TIMM):
        entry = classifiers.named(name)
    if entry is not None and task in entry.tasks:
        return entry
    names = [entry.name for entry in models_for(task)]
    if entry is not None:
        rule = f"{name} is a model for {' and '.join(entry.tasks)}, not for {task}"
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
    if name.startswith(TIMM):
        return find(name, Task.CLASSIFICATION)
    if name in MODELS:
        return MODELS[name]
    hint = did_you_mean(name, MODELS, otherwise="`trainer models` lists the names")
    raise JobError("the model cannot be used", [Problem(field, "", f"no model is named {name!r}", hint=hint)])


def network_name(entry: ModelEntry) -> str:
    """A name that all entries of one network share.

    A network of a library whose own names are accepted has several: ours, the library's, and the library's
    with a tag of its weights.
    """
    return entry.library_name.partition(".")[0] if entry.card.library_prefix else entry.name
