"""The methods for classifiers by name. To add one, write a module with a `METHOD` and list it here."""

from __future__ import annotations

from importlib import import_module

from serving.explain.subject import Method

MODULES = {
    "xrai": "serving.explain.xrai",
    "integrated_gradients": "serving.explain.integrated_gradients",
    "guided_gradcam": "serving.explain.guided_gradcam",
    "guided_backprop": "serving.explain.guided_backprop",
}

NAMES = tuple(MODULES)


def find(name: str) -> Method:
    """Import and return the method with this name."""
    method: Method = import_module(MODULES[name]).METHOD
    return method
