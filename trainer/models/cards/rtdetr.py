"""ultralytics' RT-DETRs."""

from __future__ import annotations

from dataclasses import replace

from trainer.models.card import ModelEntry
from trainer.models.cards import yolo
from trainer.tasks import Task

CARD = replace(  # the same library and licence, images and augmentation
    yolo.CARD,
    name="rtdetr",
    module="trainer.models.rtdetr",
    words="RT-DETRs",
    defaults={
        **yolo.CARD.defaults,
        # As in the paper.
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "gradient_clip_norm": 0.1,
        "gradient_clip_value": None,
    },
    modern={},
    sizing=None,
    epochs=60,
    smallest_models=("rtdetr-l",),
    tiny_settings={"image_size": 64},
    # Hundreds of queries take most of a step's time, and few are enough for what the tests show.
    tiny_options={"queries": 30, "decoder_layers": 2},
    tiny_learning_rate=3e-4,
)


def _rtdetr(size: str) -> ModelEntry:
    name = f"rtdetr-{size}"
    published = "ImageNet-1k (backbone only)" if size.startswith("resnet") else "COCO"
    return ModelEntry(name, CARD, (Task.DETECTION,), name, published)


ENTRIES = tuple(_rtdetr(size) for size in ("l", "x", "resnet50", "resnet101"))
