"""The models by name: which family builds each, for which tasks, with which default settings.

Free of torch and of every model library, so that `--help`, `trainer models` and the checks of a job
answer at once. A new model of a known family is one entry here; a new family is one module and its entries.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.errors import JobError, Problem
from trainer.tasks import Task

CLASSIFICATION = (Task.CLASSIFICATION, Task.MULTILABEL)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model as users name it.

    Attributes:
        family: module name under trainer.models.
        library_name: what the family's library calls it.
        published: what the library's publisher trained it on, in words.
        defaults: settings in which it differs from the general defaults, by task.
    """

    name: str
    family: str
    tasks: tuple[Task, ...]
    library_name: str
    published: str
    defaults: Mapping[Task, Mapping[str, Any]] = field(default_factory=dict)


def _classifier(
    name: str,
    library_name: str,
    batch_size: int = 78,
    rates: tuple[float, float] = (0.01, 0.035),
    **more: Any,
) -> ModelEntry:
    shared = {"training_batch_size": batch_size, "validation_batch_size": batch_size, **more}
    defaults = {
        task: {**shared, "learning_rate": rate} for task, rate in zip(CLASSIFICATION, rates, strict=True)
    }
    return ModelEntry(name, "classifiers", CLASSIFICATION, library_name, "ImageNet-1k", defaults)


_RCNN = {
    "training_batch_size": 2,
    "validation_batch_size": 1,
    "learning_rate": 0.005,
    "number_of_workers": 4,
    # conv1 and layer1, as torchvision's own recipe freezes them.
    "layers_to_freeze": 2,
}


def _rcnn(architecture: str, depth: int = 50, version: str = "") -> ModelEntry:
    name = f"{architecture}_resnet{depth}_fpn{version}"
    task = Task.SEGMENTATION if architecture == "maskrcnn" else Task.DETECTION
    published = "COCO" if depth == 50 else "ImageNet-1k (backbone only)"
    return ModelEntry(name, "rcnn", (task,), architecture + version, published, {task: _RCNN})


_YOLO = {
    "training_batch_size": 16,
    "validation_batch_size": 16,
    "learning_rate": 0.01,
    "number_of_epochs": 30,
    "box_score_threshold": 0.1,
    "box_detections_per_image": 300,
    # Part of ultralytics' recipe.
    "average_weights": True,
}


def _yolo(name: str) -> ModelEntry:
    task = Task.SEGMENTATION if name.endswith("-seg") else Task.DETECTION
    return ModelEntry(name, "yolo", (task,), name, "COCO", {task: _YOLO})


_RTDETR = {
    **_YOLO,
    # As in the paper: transformers are trained by adamw, at low rates.
    "optimizer": "adamw",
    "learning_rate": 1e-4,
    "gradient_clip_norm": 0.1,
    "gradient_clip_value": None,
}


def _rtdetr(size: str) -> ModelEntry:
    name = f"rtdetr-{size}"
    published = "ImageNet-1k (backbone only)" if size.startswith("resnet") else "COCO"
    return ModelEntry(name, "rtdetr", (Task.DETECTION,), name, published, {Task.DETECTION: _RTDETR})


_RFDETR = {
    **_RTDETR,
    # 16 images a step, as its authors train it; 4 fit the memory of most GPUs.
    "training_batch_size": 4,
    "validation_batch_size": 4,
    "gradient_accumulation_step": 4,
    # Of the backbone's blocks.
    "layer_decay": 0.8,
}


def _rfdetr(size: str, image_size: int, library_name: str) -> ModelEntry:
    name = f"rfdetr-{size}"
    task = Task.SEGMENTATION if size.startswith("seg-") else Task.DETECTION
    return ModelEntry(
        name, "rfdetr", (task,), library_name, "COCO", {task: {**_RFDETR, "image_size": image_size}}
    )


_VIT = {"gradient_clip_norm": 1.0, "gradient_clip_value": None}
_RESNETS = (18, 34, 50, 101, 152)

_ENTRIES = (
    _classifier("mobilenetv2", "mobilenetv2_100"),
    *(_classifier(f"resnet{depth}", f"resnet{depth}") for depth in _RESNETS),
    _classifier("resnest50", "resnest50d"),
    _classifier("resnest101", "resnest101e"),
    _classifier("seresnext", "seresnext50_32x4d"),
    _classifier("vits16r224", "vit_small_patch16_224", 128, (0.0125, 0.025), **_VIT),
    _classifier("vitb16r224", "vit_base_patch16_224", 48, (0.0125, 0.025), **_VIT),
    _classifier("vitl16r224", "vit_large_patch16_224", 10, (0.001, 0.002), **_VIT),
    *(_rcnn("fasterrcnn", depth) for depth in _RESNETS),
    _rcnn("fasterrcnn", version="_v2"),
    _rcnn("retinanet"),
    _rcnn("retinanet", version="_v2"),
    _rcnn("fcos"),
    *(_rcnn("maskrcnn", depth) for depth in _RESNETS),
    _rcnn("maskrcnn", version="_v2"),
    # Which of yolov5's four sizes is meant, the setting model_size says.
    _yolo("yolov5"),
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

TIMM = "timm/"
"""Before a name of timm's own: whether timm knows it, only timm can say."""

MODELS: Mapping[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}


def models_for(task: Task) -> tuple[ModelEntry, ...]:
    """Every model that the task can use."""
    return tuple(entry for entry in _ENTRIES if task in entry.tasks)


def find(name: str, task: Task) -> ModelEntry:
    """The entry of a model's name for a task.

    Raises:
        JobError: there is no such model, or it is made for another task.
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
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"`trainer models --task {task}` lists the names"
        )
    raise JobError("the model cannot be used", [Problem("model_name", "", rule, hint=hint)])
