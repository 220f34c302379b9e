"""Detectors of the Hugging Face Hub, by `hf/ORG/NAME`: transformers' DETRs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainer.models.card import ModelEntry
from trainer.models.cards import detr
from trainer.models.cards.shared import HUB_PREFIX
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.models.weights.description import Description

_STEP = 32
"""Pixels; most networks take images whose side is a multiple of it."""
_USUAL_SIDE = 640


def side(description: Description) -> int:
    """The side of the square, in pixels, to which images are stretched.

    It is the one that the model's preprocessor states: the longer of two that differ, or the short side of
    images that keep their shape. Without a preprocessor_config.json it is config.json's image_size, or 640.
    """
    size = description.preprocessor.get("size")
    if size is None:
        size = description.config.get("image_size") or _USUAL_SIDE
    if isinstance(size, Mapping):
        if "height" in size and "width" in size:
            return int(max(size["height"], size["width"]))
        size = size.get("shortest_edge") or min(size.values())
    if isinstance(size, list):
        size = min(size)
    return -(-int(size) // _STEP) * _STEP


def _described(description: Description) -> dict[str, Any]:
    return {"image_size": side(description)}


CARD = replace(
    detr.CARD,
    name="transformers_detectors",
    module="trainer.models.transformers_detectors",
    weights_licence="its model card's",
    library_prefix=HUB_PREFIX,
    hub_tasks=(Task.DETECTION,),
    described_by_files=_described,
    described_settings=("image_size",),
    # Of architectures that differ in size: what fits most GPUs, and 1/10 of the rate for the backbone.
    defaults={**detr.CARD.defaults, **detr.FOUR_AT_A_TIME, "layer_decay": 0.46},
    smallest_models=(),
)

ENTRIES: tuple[ModelEntry, ...] = ()


def named(name: str) -> ModelEntry:
    """The entry of `hf/ORG/NAME`. Whether there is such a model, only its files can say."""
    repository = name.removeprefix(HUB_PREFIX)
    published = f"see https://huggingface.co/{repository.partition('@')[0]}"
    return ModelEntry(name, CARD, CARD.hub_tasks, repository, published, settings=("freeze_batch_norm",))
