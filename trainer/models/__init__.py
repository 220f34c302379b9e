"""Model families behind one interface. A family's module loads only when one of its models is used."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainer.errors import JobError, Problem
from trainer.models.card import FamilyCard
from trainer.models.catalog import CARDS, find
from trainer.models.libraries import install_command, is_installed, missing_library
from trainer.models.spec import Spec
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.models.family import Family
    from trainer.models.weights.description import Description
    from trainer.settings import Settings

__all__ = ["Family", "Spec", "create", "specify"]


def __getattr__(name: str) -> Any:
    """Import the interface when it is used: it needs NumPy, and the commands' help does not."""
    if name != "Family":
        raise AttributeError(f"module 'trainer.models' has no attribute {name!r}")
    return import_module("trainer.models.family").Family


def _family_class(card: FamilyCard, model: str, task: Task) -> type[Family]:
    """Import the class of a model's family.

    Raises:
        JobError: the family's model library is not installed, or does not work in the installed version.
    """
    if not is_installed(card):
        raise JobError("the model cannot be used", [missing_library(card, [model], task)])
    try:
        family: type[Family] = import_module(card.module).FAMILY
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("", "trainer"):  # a library of the system is missing, or the mistake is ours
            raise
        command = install_command(card) if card.extra or library == card.library else f"pip install {library}"
        rule = f"{model} cannot use the installed {card.library}: {error}"
        problem = Problem("", "model_name", rule, hint=command)
        raise JobError("the model cannot be used", [problem]) from error
    return family


def create(spec: Spec) -> Family:
    """Bind a spec's family to the spec.

    Raises:
        JobError: the family's model library is not installed, or an earlier version had the family.
    """
    card = CARDS.get(spec.family)
    if card is None:
        rule = f"{spec.model} was trained by a version with the family {spec.family!r}, which this one lacks"
        hint = "score it with that version or with MLflow, for which it carries its code, or train it again"
        raise JobError("the model cannot be used", [Problem("", "model_name", rule, hint=hint)])
    return _family_class(card, spec.model, spec.task)(spec)


def specify(
    task: Task,
    model: str,
    settings: Settings,
    classes: Sequence[str],
    *,
    pretrained: bool,
    description: Description | None = None,
) -> Spec:
    """Make the spec of a model with these settings.

    Args:
        classes: sorted class names.
        pretrained: the network will start from weights, not from scratch.
        description: what the model's files say, for a model of the Hub.

    Raises:
        JobError: no model has this name, it cannot be trained for the task, or its library is not installed.
    """
    card = find(model, task).card
    family = _family_class(card, model, task)
    parameters = {name: getattr(settings, name) for name in ScoringParameters.model_fields}
    return Spec(
        family=card.name,
        model=model,
        task=task,
        classes=tuple(classes),
        options=family.options(task, model, settings, pretrained)
        if description is None
        else family.described_options(task, model, settings, description, pretrained),
        parameters=ScoringParameters(**parameters),
        enable_onnx_normalization=settings.enable_onnx_normalization,
    )
