"""Mask transformers: transformers' Mask2Former and EoMT."""

from __future__ import annotations

from typing import Any

from trainer.models.card import FamilyCard, ModelEntry
from trainer.models.cards.shared import BOX_SETTINGS
from trainer.tasks import Task

CARD = FamilyCard(
    name="mask_transformers",
    module="trainer.models.mask_transformers",
    words="mask transformers",
    library="transformers",
    licence="Apache-2.0",
    weights_licence="MIT",  # EoMT's; Mask2Former's have another
    published_classes=80,
    settings=(*BOX_SETTINGS, "image_size", "large_scale_jitter"),
    size_setting="image_size",
    # What the authors' recipes have in common: Base-COCO-InstanceSegmentation.yaml of
    # facebookresearch/Mask2Former, and main.py and lightning_module.py of tue-mps/eomt.
    defaults={
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "weight_decay": 0.05,
        "gradient_clip_norm": 0.01,
        "gradient_clip_value": None,
        "large_scale_jitter": True,
        "number_of_epochs": 30,
        "box_score_threshold": 0.1,
        "box_detections_per_image": 100,
    },
    epochs=50,
    searched_sides=(),
    smallest_models=("mask2former-swin-t", "eomt-small"),
    # Objects of a tenth of their size are smaller than a pixel there.
    tiny_settings={"image_size": 64, "large_scale_jitter": False},
    tiny_learning_rate=2e-3,
)


def _entry(
    name: str, hub: str, side: int, data: str, batch: int, *settings: str, **defaults: Any
) -> ModelEntry:
    """A model.

    Args:
        batch: training images that fit the memory of most GPUs; a step takes 16, as the authors'.
        settings: that apply to this model and not to all.
    """
    values = {
        "image_size": side,
        "training_batch_size": batch,
        "validation_batch_size": batch,
        "gradient_accumulation_step": 16 // batch,
        **defaults,
    }
    task = Task.SEGMENTATION
    return ModelEntry(name, CARD, (task,), hub, data, {task: values}, settings=settings)


def _mask2former(letter: str, size: str) -> ModelEntry:
    hub = f"facebook/mask2former-swin-{size}-coco-instance"
    # The backbone's five groups learn, in their geometric mean, at 1/10 of the rate, as the authors'.
    return _entry(f"mask2former-swin-{letter}", hub, 384, "COCO", 4, "multi_scale", layer_decay=0.46)


def _eomt(name: str, hub: str, side: int, data: str, batch: int) -> ModelEntry:
    # Over the layers, as the authors.
    return _entry(f"eomt-{name}", f"tue-mps/{hub}", side, data, batch, layer_decay=0.8)


ENTRIES = (
    _mask2former("t", "tiny"),
    _mask2former("s", "small"),
    _eomt("small", "coco_panoptic_eomt_small_640_2x", 640, "COCO (panoptic)", 4),
    _eomt("base", "coco_panoptic_eomt_base_640_2x", 640, "COCO (panoptic)", 4),
    _eomt("large", "coco_instance_eomt_large_640", 640, "COCO", 4),
    _eomt("large-1280", "coco_instance_eomt_large_1280", 1280, "COCO", 1),
)
