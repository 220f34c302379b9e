"""The models by name, and one card for each family.

Free of torch and of every model library, so that `--help`, `trainer models` and the checks of a job
answer at once. A new model of a known family is one entry here; a new family is one module, one card and
its entries.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trainer.errors import JobError, Problem, did_you_mean
from trainer.models.card import FamilyCard, ModelEntry, Sizing
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

CLASSIFICATION = (Task.CLASSIFICATION, Task.MULTILABEL)

_BOX_SETTINGS = (
    *ScoringParameters.model_fields,
    "validation_metric_type",
    "validation_iou_threshold",
    "log_validation_loss",
    "log_training_metrics",
)
_SQUARE_SETTINGS = (*_BOX_SETTINGS, "image_size", "multi_scale")

# The modern recipes fine-tune published weights. RT-DETR and RF-DETR have none, because their defaults, their
# authors' recipes, are modern already.
_ADAMW = {
    "optimizer": "adamw",
    # The cosine ends at 0, where the averaged weights have settled. Most of the gain comes at its end, so
    # nothing stops a run before; the best epoch is packaged in any case.
    "warmup_cosine_lr_cycles": 0.5,
    "early_stopping": False,
}

CLASSIFIERS = FamilyCard(
    name="classifiers",
    module="trainer.models.classifiers",
    words="classifiers",
    library="timm",
    licence="Apache-2.0",
    weights_licence="not stated",
    published_classes=1000,
    library_prefix="timm/",
    settings=(
        "freeze_batch_norm",
        "focal_gamma",
        "probe_first",
        "label_smoothing",
        "validation_resize_size",
        "validation_crop_size",
        "training_crop_size",
        "interpolation",
        "random_augment",
        "mixup_alpha",
        "cutmix_alpha",
    ),
    size_setting="training_crop_size",
    modern={
        **_ADAMW,
        # As fast.ai fine-tunes CNNs, at any batch size (Howard and Gugger 2020).
        "learning_rate": 1e-3,
        # From timm's, BEiT's, MAE's and ConvNeXt's recipes for adamw.
        "weight_decay": 0.05,
        # adamw divides a gradient by its size, so clipping values has no effect on it.
        "gradient_clip_norm": 1.0,
        "gradient_clip_value": None,
        "average_weights": True,
        "interpolation": "published",
        # Without effect on balanced data.
        "weighted_loss": 1,
        "probe_first": True,
    },
    sizing=Sizing(steps_per_epoch=6, min_batch=8, min_steps=100, max_epochs=30),
    epochs=40,
    step_images=64,
    min_step_images=8,
    cost_model="resnet50",
    preload=True,
    smallest_models=("resnet18", "vits16r224"),
    tiny_settings={"validation_crop_size": 64, "training_crop_size": 64, "validation_resize_size": 64},
)

RCNN = FamilyCard(
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
    settings=(*_BOX_SETTINGS, "freeze_batch_norm", "min_size", "max_size", "large_scale_jitter", "backbone"),
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
        **_ADAMW,
        # As torchvision trains RetinaNet v2; its Mask R-CNN v2 has the jitter.
        "learning_rate": 1e-4,
        "weight_decay": 0.05,
        "average_weights": True,
        "large_scale_jitter": True,
    },
    # Detectron2's tutorial fine-tunes on 61 images for 300 steps of two, torchvision's references train for
    # 26 epochs; at most the 36 of Detectron2's longest schedule.
    sizing=Sizing(steps_per_epoch=1, min_batch=2, min_steps=1000, max_epochs=36),
    epochs=36,
    step_images=4,
    min_step_images=1,
    searched_sides=(320, 480, 600, 800, 1000),
    slowness=3.0,
    cost_model="fasterrcnn_resnet50_fpn_v2",
    smallest_models=(
        "fasterrcnn_resnet18_fpn",
        "retinanet_resnet50_fpn",
        "fcos_resnet50_fpn",
        "maskrcnn_resnet18_fpn",
    ),
    tiny_settings={"min_size": 64, "max_size": 96},
    # Thousands of proposals are a two-stage detector's cost, not its principle.
    tiny_options={"proposals": 60, "sampled_proposals": 16},
    tiny_learning_rate=3e-4,
)

YOLO = FamilyCard(
    name="yolo",
    module="trainer.models.yolo",
    words="YOLO models",
    library="ultralytics",
    licence="AGPL-3.0",
    weights_licence="AGPL-3.0",
    published_classes=80,
    pickled_weights=True,
    settings=(*_SQUARE_SETTINGS, "freeze_batch_norm"),
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
        **_ADAMW,
        # What ultralytics chooses for short runs: adamw, .01 / (4 + classes), here for six classes.
        "learning_rate": 1e-3,
        "weight_decay": 5e-4,
        "gradient_clip_norm": 10.0,
        "gradient_clip_value": None,
    },
    # 100 epochs are ultralytics' default; with over a thousand images fewer have as many steps.
    sizing=Sizing(steps_per_epoch=4, min_batch=8, min_steps=6000, max_epochs=100),
    epochs=100,
    step_images=16,
    min_step_images=4,
    searched_sides=(320, 416, 512, 640, 800, 960, 1280),
    mixing_seconds=0.02,
    cost_model="yolo11m",
    smallest_models=("yolov5", "yolo11n", "yolo26n", "yolo11n-seg", "yolo26n-seg"),
    tiny_settings={"image_size": 128},
)

RTDETR = replace(  # the same library and licence, images and augmentation
    YOLO,
    name="rtdetr",
    module="trainer.models.rtdetr",
    words="RT-DETRs",
    defaults={
        **YOLO.defaults,
        # As in the paper: transformers are trained by adamw, at low rates.
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "gradient_clip_norm": 0.1,
        "gradient_clip_value": None,
    },
    modern={},
    sizing=None,
    epochs=60,
    slowness=1.5,
    cost_model="rtdetr-l",
    smallest_models=("rtdetr-l",),
    tiny_settings={"image_size": 64},
    # Hundreds of queries are a transformer's cost, not its principle.
    tiny_options={"queries": 30, "decoder_layers": 2},
    tiny_learning_rate=3e-4,
)

RFDETR = FamilyCard(
    name="rfdetr",
    module="trainer.models.rfdetr",
    words="RF-DETRs",
    library="rfdetr",
    licence="Apache-2.0",
    weights_licence="Apache-2.0",
    published_classes=90,
    extra="rfdetr",
    settings=_SQUARE_SETTINGS,
    size_setting="image_size",
    defaults={
        **RTDETR.defaults,
        # 16 images a step, as its authors train it; 4 fit the memory of most GPUs.
        "training_batch_size": 4,
        "validation_batch_size": 4,
        "gradient_accumulation_step": 4,
        # Over the backbone's blocks.
        "layer_decay": 0.8,
    },
    epochs=50,
    step_images=16,
    min_step_images=4,
    # They accept few sizes, and the published one is the best known.
    searched_sides=(),
    slowness=2.0,
    cost_model="rfdetr-medium",
    smallest_models=("rfdetr-nano", "rfdetr-seg-nano"),
    tiny_settings={"image_size": 96},
    tiny_options=RTDETR.tiny_options,
    tiny_learning_rate=3e-4,
)

CARDS: dict[str, FamilyCard] = {card.name: card for card in (CLASSIFIERS, RCNN, YOLO, RTDETR, RFDETR)}
"""The card of each family, by its name."""

# Not for multilabel: there, smoothed targets move the probabilities that are compared with .5.
# No mixup or CutMix, which pay in long runs on many images: BiT mixes only above 20,000 (Kolesnikov et al.
# 2020). benchmarks/RESULTS.md has runs with mixup under "Few images".
_MODERN_ONE_LABEL = {"label_smoothing": 0.1}

_TRANSFORMERS = (
    "vit", "deit", "beit", "eva", "swin", "hiera", "cait", "xcit", "pvt", "twins", "coat", "former",
    "convnext",
)  # fmt: skip
"""Parts of timm's names of transformers; ConvNeXts are fine-tuned as transformers are."""
# 1e-3 · batch size / 256 with a decay of .65 to .75, as MAE fine-tunes ViT-B and ViT-L (He et al. 2022).
_LAYER_DECAY, _TRANSFORMER_RATE = 0.75, 3e-4


def _classifier(
    name: str,
    library_name: str,
    batch_size: int = 78,
    rates: tuple[float, float] = (0.01, 0.035),
    transformer_rate: float = _TRANSFORMER_RATE,
    *,
    equal_crops: bool = False,
    **more: Any,
) -> ModelEntry:
    shared = {"training_batch_size": batch_size, "validation_batch_size": batch_size, **more}
    defaults = {
        task: {**shared, "learning_rate": rate} for task, rate in zip(CLASSIFICATION, rates, strict=True)
    }
    modern: dict[str, Any] = {}
    if any(part in library_name for part in _TRANSFORMERS):
        modern = {"layer_decay": _LAYER_DECAY, "learning_rate": transformer_rate}
    return ModelEntry(
        name, CLASSIFIERS, CLASSIFICATION, library_name, "ImageNet-1k", defaults,
        modern={Task.CLASSIFICATION: {**modern, **_MODERN_ONE_LABEL}, Task.MULTILABEL: modern},
        equal_crops=equal_crops,
    )  # fmt: skip


def _vit(
    name: str, library_name: str, batch_size: int, rates: tuple[float, float], modern_rate: float
) -> ModelEntry:
    clipping = {"gradient_clip_norm": 1.0, "gradient_clip_value": None}
    return _classifier(name, library_name, batch_size, rates, modern_rate, equal_crops=True, **clipping)


def _rcnn(architecture: str, depth: int = 50, version: str = "") -> ModelEntry:
    name = f"{architecture}_resnet{depth}_fpn{version}"
    task = Task.SEGMENTATION if architecture == "maskrcnn" else Task.DETECTION
    published = "COCO" if depth == 50 else "ImageNet-1k (backbone only)"
    return ModelEntry(name, RCNN, (task,), name, published)


def _yolo(name: str, *settings: str) -> ModelEntry:
    task = Task.SEGMENTATION if name.endswith("-seg") else Task.DETECTION
    return ModelEntry(name, YOLO, (task,), name, "COCO", settings=settings)


def _rtdetr(size: str) -> ModelEntry:
    name = f"rtdetr-{size}"
    published = "ImageNet-1k (backbone only)" if size.startswith("resnet") else "COCO"
    return ModelEntry(name, RTDETR, (Task.DETECTION,), name, published)


def _rfdetr(size: str, image_size: int, library_name: str) -> ModelEntry:
    task = Task.SEGMENTATION if size.startswith("seg-") else Task.DETECTION
    return ModelEntry(
        f"rfdetr-{size}", RFDETR, (task,), library_name, "COCO", {task: {"image_size": image_size}}
    )


_RESNETS = (18, 34, 50, 101, 152)

_ENTRIES = (
    _classifier("mobilenetv2", "mobilenetv2_100"),
    *(_classifier(f"resnet{depth}", f"resnet{depth}") for depth in _RESNETS),
    _classifier("resnest50", "resnest50d"),
    _classifier("resnest101", "resnest101e"),
    _classifier("seresnext", "seresnext50_32x4d"),
    _vit("vits16r224", "vit_small_patch16_224", 128, (0.0125, 0.025), 5e-4),
    _vit("vitb16r224", "vit_base_patch16_224", 48, (0.0125, 0.025), 2e-4),
    _vit("vitl16r224", "vit_large_patch16_224", 10, (0.001, 0.002), 4e-5),
    *(_rcnn("fasterrcnn", depth) for depth in _RESNETS),
    _rcnn("fasterrcnn", version="_v2"),
    _rcnn("retinanet"),
    _rcnn("retinanet", version="_v2"),
    _rcnn("fcos"),
    *(_rcnn("maskrcnn", depth) for depth in _RESNETS),
    _rcnn("maskrcnn", version="_v2"),
    # The setting model_size says which of yolov5's four sizes is meant.
    _yolo("yolov5", "model_size"),
    *(_yolo(f"yolo{version}{size}") for version in (11, 26) for size in "nsmlx"),
    *(_yolo(f"yolo{version}{size}-seg") for version in (11, 26) for size in "nsmlx"),
    *(_rtdetr(size) for size in ("l", "x", "resnet50", "resnet101")),
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

MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}
"""Every model with an entry, by its name. Models of a library that have none are named by `TIMM`."""

TIMM = CLASSIFIERS.library_prefix
"""Prefix of timm's own model names. Whether timm knows a model, only timm can say."""


def models_for(task: Task) -> tuple[ModelEntry, ...]:
    """Every model that can be trained for a task."""
    return tuple(entry for entry in MODELS.values() if task in entry.tasks)


def find(name: str, task: Task) -> ModelEntry:
    """The entry of a model that can be trained for a task.

    Raises:
        JobError: no model has this name, or it cannot be trained for the task.
    """
    entry = MODELS.get(name)
    if entry is None and name.startswith(TIMM) and len(name) > len(TIMM):
        entry = _classifier(name, name.removeprefix(TIMM))
    if entry is not None and task in entry.tasks:
        return entry
    names = [entry.name for entry in models_for(task)]
    if entry is not None:
        rule = f"{name} is a model for {' and '.join(entry.tasks)}, not for {task}"
        hint = f"choose one of {', '.join(names)}"
    else:
        rule = f"no model is named {name!r}"
        hint = did_you_mean(name, names, otherwise=f"`trainer models --task {task}` lists the names")
    raise JobError("the model cannot be used", [Problem("model_name", "", rule, hint=hint)])


def find_for_any_task(name: str, field: str) -> ModelEntry:
    """The entry of a model, whatever it can be trained for.

    Args:
        field: the flag or key that named it, for the error.

    Raises:
        JobError: no model has this name.
    """
    if name.startswith(TIMM):
        return find(name, Task.CLASSIFICATION)
    if name in MODELS:
        return MODELS[name]
    hint = did_you_mean(name, MODELS, otherwise="`trainer models` lists the names")
    raise JobError("the model cannot be used", [Problem(field, "", f"no model is named {name!r}", hint=hint)])


def network_name(entry: ModelEntry) -> str:
    """A name that all entries of one network share.

    A network of a library whose own names are accepted has several: ours, the library's, and the library's
    with a tag of its weights.
    """
    return entry.library_name.partition(".")[0] if entry.card.library_prefix else entry.name
