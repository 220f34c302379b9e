"""Classifiers' methods by name. To add one, name it in `Algorithm` and write its module with a `METHOD`."""

from __future__ import annotations

from importlib import import_module

from serving.explain.request import CLASSIFIER_ALGORITHMS
from serving.explain.subject import Method

NAMES = CLASSIFIER_ALGORITHMS
MODULES = {name: f"serving.explain.{name}" for name in NAMES}


def find(name: str) -> Method:
    """Import and return the method with this name."""
    method: Method = import_module(MODULES[name]).METHOD
    return method
