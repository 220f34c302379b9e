"""transformers' detectors and segmenters, all of them DETRs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.models.card import FamilyCard, ModelEntry
from trainer.models.cards.shared import SQUARE_SETTINGS
from trainer.tasks import Task

CARD = FamilyCard(
    name="detr",
    module="trainer.models.detr",
    words="DETRs",
    library="transformers",
    licence="Apache-2.0",
    weights_licence="Apache-2.0",
    published_classes=80,
    option_modules={"timm": "trainer.models.detr_timm"},
    settings=SQUARE_SETTINGS,
    size_setting="image_size",
    defaults={
        "training_batch_size": 16,
        "validation_batch_size": 16,
        "number_of_epochs": 30,
        "box_score_threshold": 0.1,
        "box_detections_per_image": 300,
        # What the authors' recipes have in common.
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "gradient_clip_norm": 0.1,
        "gradient_clip_value": None,
        "average_weights": True,
    },
    epochs=50,
    # AutoMode keeps the published size: some networks accept few others.
    searched_sides=(),
    smallest_models=(
        "rtdetrv2-r18",
        "dfine-n",
        "rfdetr-nano",
        "rfdetr-seg-nano",
        "lwdetr-tiny",
        "deformable-detr-two-stage",
    ),
    tiny_settings={"image_size": 64},
    tiny_learning_rate=2e-3,
)

FOUR_AT_A_TIME = {
    # The authors train with 16 images per step; most GPUs have memory for 4.
    "training_batch_size": 4,
    "validation_batch_size": 4,
    "gradient_accumulation_step": 4,
    # As the authors, over the backbone's blocks.
    "layer_decay": 0.8,
}
"""Settings of networks that take much memory for an image."""


def _entry(name: str, hub: str, side: int, *, norms: bool, **defaults: Any) -> ModelEntry:
    task = Task.SEGMENTATION if "-seg-" in name else Task.DETECTION
    values: Mapping[str, Any] = {"image_size": side, **defaults}
    settings = ("freeze_batch_norm",) if norms else ()
    return ModelEntry(name, CARD, (task,), hub, "COCO", {task: values}, settings=settings)


def _rt_detr_v2(size: str, **defaults: Any) -> ModelEntry:
    return _entry(f"rtdetrv2-{size}", f"PekingU/rtdetr_v2_{size}vd", 640, norms=True, **defaults)


def _d_fine(size: str, word: str, **defaults: Any) -> ModelEntry:
    name = f"ustc-community/dfine-{word}-coco"
    return _entry(f"dfine-{size}", name, 640, norms=True, **defaults)


def _rf_detr(size: str, side: int) -> ModelEntry:
    name = f"Roboflow/rf-detr-{size.replace('2xlarge', 'xxlarge')}"
    return _entry(f"rfdetr-{size}", name, side, norms=False, **FOUR_AT_A_TIME)


def _lw_detr(size: str) -> ModelEntry:
    name = f"AnnaZhang/lwdetr_{size}_60e_coco"
    return _entry(f"lwdetr-{size}", name, 640, norms=True, **FOUR_AT_A_TIME)


def _resnet(name: str, hub: str) -> ModelEntry:
    """A DETR on a ResNet-50, whose authors keep the images' shape and make the short side 800 pixels."""
    values = {**FOUR_AT_A_TIME, "layer_decay": 0.46}  # 1/10
    return _entry(name, hub, 800, norms=True, **values)


def _yolos(size: str, side: int) -> ModelEntry:
    values = {**FOUR_AT_A_TIME, "layer_decay": 1.0, "learning_rate": 5e-5}
    return _entry(f"yolos-{size}", f"hustvl/yolos-{size}", side, norms=False, **values)


_DEIM_V2_N = {"learning_rate": 4e-4, "layer_decay": 0.79}  # 1/2
_DEIM_V2_S = {"learning_rate": 2.5e-4, "layer_decay": 0.61}  # 1/20, over thirteen groups

# Rates are the authors' at 16 images a step. A backbone's five groups learn, in their
# geometric mean, at layer_decay³ of the rate: the fraction that the authors give the backbone.
ENTRIES = (
    _rf_detr("nano", 384),
    _rf_detr("small", 512),
    _rf_detr("medium", 576),
    _rf_detr("large", 704),
    _rf_detr("seg-nano", 312),
    _rf_detr("seg-small", 384),
    _rf_detr("seg-medium", 432),
    _rf_detr("seg-large", 504),
    _rf_detr("seg-xlarge", 624),
    _rf_detr("seg-2xlarge", 768),
    _d_fine("n", "nano", layer_decay=0.79),  # 1/2
    _d_fine("s", "small", layer_decay=0.79),
    _d_fine("m", "medium", layer_decay=0.46),  # 1/10
    _d_fine("l", "large", layer_decay=0.37, learning_rate=1.25e-4),  # 1/20
    _d_fine("x", "xlarge", layer_decay=0.22, learning_rate=1.25e-4),  # 1/100
    _lw_detr("tiny"),
    _lw_detr("small"),
    _lw_detr("medium"),
    _lw_detr("large"),
    _lw_detr("xlarge"),
    _rt_detr_v2("r18"),
    _rt_detr_v2("r34"),
    _rt_detr_v2("r50", layer_decay=0.46),  # 1/10
    _rt_detr_v2("r101", layer_decay=0.46),
    _entry("deimv2-n", "harshaljanjani/DEIMv2_HGNetv2_N_COCO_Transformers", 640, norms=True, **_DEIM_V2_N),
    _entry("deimv2-s", "harshaljanjani/DEIMv2_DINOv3_S_COCO_Transformers", 640, norms=True, **_DEIM_V2_S),
    _yolos("tiny", 512),
    _yolos("small", 800),
    _yolos("base", 800),
    _resnet("deformable-detr", "SenseTime/deformable-detr"),
    _resnet("deformable-detr-refine", "SenseTime/deformable-detr-with-box-refine"),
    _resnet("deformable-detr-two-stage", "SenseTime/deformable-detr-with-box-refine-two-stage"),
    _resnet("conditional-detr-r50", "microsoft/conditional-detr-resnet-50"),
)
