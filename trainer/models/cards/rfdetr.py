"""RF-DETRs: the library of its authors."""

from __future__ import annotations

from trainer.models.card import FamilyCard, ModelEntry
from trainer.models.cards import rtdetr
from trainer.models.cards.shared import SQUARE_SETTINGS
from trainer.tasks import Task

CARD = FamilyCard(
    name="rfdetr",
    module="trainer.models.rfdetr",
    words="RF-DETRs",
    library="rfdetr",
    licence="Apache-2.0",
    weights_licence="Apache-2.0",
    published_classes=90,
    extra="rfdetr",
    settings=SQUARE_SETTINGS,
    size_setting="image_size",
    defaults={
        **rtdetr.CARD.defaults,
        # 16 images a step, as its authors train it; 4 fit the memory of most GPUs.
        "training_batch_size": 4,
        "validation_batch_size": 4,
        "gradient_accumulation_step": 4,
        # Over the backbone's blocks.
        "layer_decay": 0.8,
    },
    epochs=50,
    # They accept few sizes, and the published one is the best known.
    searched_sides=(),
    smallest_models=("rfdetr-nano", "rfdetr-seg-nano"),
    tiny_settings={"image_size": 96},
    tiny_options=rtdetr.CARD.tiny_options,
    tiny_learning_rate=3e-4,
)


def _rfdetr(size: str, image_size: int, library_name: str) -> ModelEntry:
    task = Task.SEGMENTATION if size.startswith("seg-") else Task.DETECTION
    return ModelEntry(
        f"rfdetr-{size}", CARD, (task,), library_name, "COCO", {task: {"image_size": image_size}}
    )


ENTRIES = (
    _rfdetr("nano", 384, "RFDETRNano"),
    _rfdetr("small", 512, "RFDETRSmall"),
    _rfdetr("medium", 576, "RFDETRMedium"),
    _rfdetr("large", 704, "RFDETRLarge"),
    _rfdetr("seg-nano", 312, "RFDETRSegNano"),
    _rfdetr("seg-small", 384, "RFDETRSegSmall"),
    _rfdetr("seg-medium", 432, "RFDETRSegMedium"),
    _rfdetr("seg-large", 504, "RFDETRSegLarge"),
    _rfdetr("seg-xlarge", 624, "RFDETRSegXLarge"),
    _rfdetr("seg-2xlarge", 768, "RFDETRSeg2XLarge"),
)
