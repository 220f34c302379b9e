"""Model families behind one interface. A family's module loads only when one of its models is used."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from trainer.errors import JobError, Problem
from trainer.models.catalog import find
from trainer.models.family import Family, Spec
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings

__all__ = ["Family", "Spec", "create", "specify"]

_EXTRAS = ("rfdetr",)
"""Libraries that this project does not install unasked, by the names of its extras."""


def _family_class(name: str) -> type[Family]:
    """The family of a name: its module under trainer.models holds one subclass of Family, named FAMILY.

    Raises:
        JobError: the family's model library is not installed.
    """
    try:
        found: type[Family] = import_module(f"trainer.models.{name}").FAMILY
    except ModuleNotFoundError as error:
        library = (error.name or "").split(".")[0]
        if library == "trainer":
            raise
        what = f"'image-trainer[{library}]'" if library in _EXTRAS else library
        problem = Problem(
            "model_name", "", f"needs {library}, which is not installed", hint=f"pip install {what}"
        )
        raise JobError("the model cannot be used", [problem]) from error
    return found


def create(spec: Spec) -> Family:
    """The family that `spec` names, bound to it.

    Raises:
        JobError: the family's model library is not installed.
    """
    return _family_class(spec.family)(spec)


def specify(task: Task, model: str, settings: Settings, classes: Sequence[str], *, pretrained: bool) -> Spec:
    """The spec of a model with these settings and sorted class names.

    Args:
        pretrained: the network will start from weights, not from scratch.

    Raises:
        JobError: the model is unknown or made for another task, or its library is not installed.
    """
    family = find(model, task).family
    return Spec(
        family=family,
        model=model,
        task=task,
        classes=tuple(classes),
        options=_family_class(family).options(task, model, settings, pretrained),
        parameters=ScoringParameters(
            **{name: getattr(settings, name) for name in ScoringParameters.model_fields}
        ),
        enable_onnx_normalization=settings.enable_onnx_normalization,
    )
