"""The methods for classifiers by name. A new one is a module with its `METHOD`, and a line here."""

from __future__ import annotations

from importlib import import_module

from serving.explain.subject import Method

_MODULES = {
    "xrai": "serving.explain.xrai",
    "integrated_gradients": "serving.explain.integrated_gradients",
    "guided_gradcam": "serving.explain.guided_gradcam",
    "guided_backprop": "serving.explain.guided_backprop",
}

NAMES = tuple(_MODULES)


def find(name: str) -> Method:
    """A method; what it stands on is imported only now."""
    method: Method = import_module(_MODULES[name]).METHOD
    return method
