"""transformers' classifiers: those of the Hugging Face Hub, as `hf/ORG/NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainer.models.card import ModelEntry
from trainer.models.cards import classifiers
from trainer.models.cards.shared import CLASSIFICATION, HUB_PREFIX

if TYPE_CHECKING:
    from trainer.models.weights.description import Description

_SHORTEST_EDGE = 384
"""From this size on, ConvNeXt's preprocessor crops nothing."""


def sizes(description: Description) -> tuple[int, int]:
    """The sizes in pixels to which a model's preprocessor resizes images, and then crops them.

    Without a preprocessor_config.json both are config.json's image_size, or 224.
    """
    own = description.preprocessor
    size = own.get("size")
    if size is None or own.get("do_resize") is False:
        config = description.config
        size = config.get("image_size") or config.get("vision_config", {}).get("image_size") or 224
    resize = crop = _side(size)
    if own.get("crop_pct") and resize < _SHORTEST_EDGE:
        resize = int(crop / own["crop_pct"])
    elif description.config.get("model_type") == "levit":
        resize = int(crop * 256 / 224)  # as its preprocessor enlarges the size that it states
    if own.get("crop_size") and own.get("do_center_crop", True):
        crop = _side(own["crop_size"])
    return max(resize, crop), crop


def _side(size: Any) -> int:
    """The side of a square, or the short side, from any form in which a preprocessor states a size."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height") or 224
    return int(size[0] if isinstance(size, list) else size)


def _described(description: Description) -> dict[str, Any]:
    resize, crop = sizes(description)
    return {"validation_resize_size": resize, "validation_crop_size": crop, "training_crop_size": crop}


CARD = replace(
    classifiers.CARD,
    name="transformers_classifiers",
    module="trainer.models.transformers_classifiers",
    library="transformers",
    weights_licence="its model card's",
    library_prefix=HUB_PREFIX,
    hub_tasks=CLASSIFICATION,
    described_by_files=_described,
    described_settings=("validation_resize_size", "validation_crop_size", "training_crop_size"),
    defaults={"interpolation": "published"},
    preload=False,
    smallest_models=(),
)

ENTRIES: tuple[ModelEntry, ...] = ()


def named(name: str) -> ModelEntry:
    """The entry of `hf/ORG/NAME`, or of ORG/NAME. Whether there is such a model, only its files can say."""
    repository = name.removeprefix(HUB_PREFIX)
    clipping: dict[str, Any] = {"gradient_clip_norm": 1.0, "gradient_clip_value": None}
    return classifiers.classifier(
        name, repository, card=CARD, published=f"see https://huggingface.co/{repository.partition('@')[0]}",
        **clipping,
    )  # fmt: skip
