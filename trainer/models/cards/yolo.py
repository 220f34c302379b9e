"""ultralytics' YOLO models."""

from __future__ import annotations

from trainer.models.card import FamilyCard, ModelEntry, Sizing
from trainer.models.cards.shared import ADAMW_MODERN, SQUARE_SETTINGS
from trainer.tasks import Task

CARD = FamilyCard(
    name="yolo",
    module="trainer.models.yolo",
    words="YOLO models",
    library="ultralytics",
    licence="AGPL-3.0",
    weights_licence="AGPL-3.0",
    published_classes=80,
    pickled_weights=True,
    extra="yolo",
    settings=(*SQUARE_SETTINGS, "freeze_batch_norm"),
    size_setting="image_size",
    defaults={
        "training_batch_size": 16,
        "validation_batch_size": 16,
        "learning_rate": 0.01,
        "number_of_epochs": 30,
        "box_score_threshold": 0.1,
        "box_detections_per_image": 300,
        # Part of ultralytics' recipe.
        "average_weights": True,
    },
    modern={
        **ADAMW_MODERN,
        # What ultralytics chooses for short runs: adamw, .01 / (4 + classes), here for six classes.
        "learning_rate": 1e-3,
        "weight_decay": 5e-4,
        "gradient_clip_norm": 10.0,
        "gradient_clip_value": None,
    },
    # 100 epochs are ultralytics' default. Above about a thousand images, fewer have as many steps.
    sizing=Sizing(steps_per_epoch=4, min_batch=8, min_steps=6000, max_epochs=100),
    searched_sides=(320, 416, 512, 640, 800, 960, 1280),
    smallest_models=("yolov5", "yolo11n", "yolo26n", "yolo11n-seg", "yolo26n-seg"),
    tiny_settings={"image_size": 128},
)


def _yolo(name: str, *settings: str) -> ModelEntry:
    task = Task.SEGMENTATION if name.endswith("-seg") else Task.DETECTION
    return ModelEntry(name, CARD, (task,), name, "COCO", settings=settings)


ENTRIES = (
    # The setting model_size chooses one of yolov5's four sizes.
    _yolo("yolov5", "model_size"),
    *(_yolo(f"yolo{version}{size}") for version in (11, 26) for size in "nsmlx"),
    *(_yolo(f"yolo{version}{size}-seg") for version in (11, 26) for size in "nsmlx"),
)
