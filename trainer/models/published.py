"""What only the model libraries know about their models, so that `trainer models` need not load them.

`python -m tools.collect_published` generates published.json; a test says when that is due.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A model as its library publishes it.

    Attributes:
        parameters: their number, with the classes that the model is published for.
        files: names that its weights may have in a directory.
        hub: repository on the Hugging Face hub, or "".
        licence: the publisher's licence of these very weights, or "" if it states none.
    """

    parameters: int
    files: tuple[str, ...]
    hub: str
    licence: str


@cache
def library_versions() -> dict[str, str]:
    """The versions of the libraries from which the facts were collected, by name."""
    return dict(_content()["libraries"])


@cache
def published_models() -> dict[str, PublishedModel]:
    """Every published model by its name, followed by its size if it has several: `yolov5 medium`."""
    return {
        name: PublishedModel(**{**values, "files": tuple(values["files"])})
        for name, values in _content()["models"].items()
    }


@cache
def _content() -> Any:
    return json.loads((resources.files("trainer.models") / "published.json").read_text(encoding="utf-8"))
