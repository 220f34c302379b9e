"""Model families behind one interface. A family's module loads only when one of its models is used."""

from __future__ import annotations

from importlib import import_module

from trainer.errors import JobError, Problem
from trainer.models.family import Family, Spec

__all__ = ["Family", "Spec", "create", "family_class"]


def family_class(name: str) -> type[Family]:
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
        problem = Problem(
            "model_name", "", f"needs {library}, which is not installed", hint=f"pip install {library}"
        )
        raise JobError("the model cannot be used", [problem]) from error
    return found


def create(spec: Spec) -> Family:
    """The family that `spec` names, bound to it.

    Raises:
        JobError: see `family_class`.
    """
    return family_class(spec.family)(spec)
