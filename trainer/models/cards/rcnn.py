"""torchvision's detectors and segmenters: R-CNNs, RetinaNet and FCOS."""

from __future__ import annotations

from trainer.models.card import FamilyCard, ModelEntry, Sizing
from trainer.models.cards.shared import ADAMW_MODERN, BOX_SETTINGS, RESNETS
from trainer.tasks import Task

CARD = FamilyCard(
    name="rcnn",
    module="trainer.models.rcnn",
    words="R-CNNs",
    library="torchvision",
    licence="BSD-3-Clause",
    # "may have their own licenses or terms and conditions derived from the dataset": torchvision's README
    weights_licence="the data's own terms",
    published_classes=90,
    backbones="classifiers",
    option_modules={"backbone": "trainer.models.timm_backbone"},
    settings=(*BOX_SETTINGS, "freeze_batch_norm", "min_size", "max_size", "large_scale_jitter", "backbone"),
    size_setting="min_size",
    defaults={
        "training_batch_size": 2,
        "validation_batch_size": 1,
        "learning_rate": 0.005,
        "number_of_workers": 4,
        # conv1 and layer1, as torchvision's own recipe freezes them.
        "layers_to_freeze": 2,
    },
    modern={
        **ADAMW_MODERN,
        # As torchvision's recipe for RetinaNet v2; the jitter is that of its Mask R-CNN v2.
        "learning_rate": 1e-4,
        "weight_decay": 0.05,
        "average_weights": True,
        "large_scale_jitter": True,
    },
    # Detectron2's tutorial fine-tunes on 61 images for 300 steps of 2; torchvision's references train for 26
    # epochs. The limit of 36 epochs is Detectron2's longest schedule.
    sizing=Sizing(steps_per_epoch=1, min_batch=2, min_steps=1000, max_epochs=36),
    searched_sides=(320, 480, 600, 800, 1000),
    smallest_models=(
        "fasterrcnn_resnet18_fpn",
        "retinanet_resnet50_fpn",
        "fcos_resnet50_fpn",
        "maskrcnn_resnet18_fpn",
    ),
    tiny_settings={"min_size": 64, "max_size": 96},
    # Thousands of proposals take most of a step's time, and few are enough for what the tests show.
    tiny_options={"proposals": 60, "sampled_proposals": 16},
    tiny_learning_rate=1e-4,
)


def _rcnn(architecture: str, depth: int = 50, version: str = "") -> ModelEntry:
    name = f"{architecture}_resnet{depth}_fpn{version}"
    task = Task.SEGMENTATION if architecture == "maskrcnn" else Task.DETECTION
    published = "COCO" if depth == 50 else "ImageNet-1k (backbone only)"
    return ModelEntry(name, CARD, (task,), name, published)


ENTRIES = (
    *(_rcnn("fasterrcnn", depth) for depth in RESNETS),
    _rcnn("fasterrcnn", version="_v2"),
    _rcnn("retinanet"),
    _rcnn("retinanet", version="_v2"),
    _rcnn("fcos"),
    *(_rcnn("maskrcnn", depth) for depth in RESNETS),
    _rcnn("maskrcnn", version="_v2"),
)
