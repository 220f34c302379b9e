"""Model families behind one interface. A family's module loads only when one of its models is used."""

from __future__ import annotations

from importlib import import_module

from trainer.models.family import Family, Spec

__all__ = ["Family", "Spec", "create"]


def create(spec: Spec) -> Family:
    """The family that `spec` names, bound to it. Its module holds one subclass of Family, named FAMILY."""
    family: type[Family] = import_module(f"trainer.models.{spec.family}").FAMILY
    return family(spec)
