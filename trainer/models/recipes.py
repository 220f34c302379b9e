"""`--recipe modern`: today's defaults for fine-tuning, where they differ from the reference's.

They are for networks that start from published weights. RT-DETR and RF-DETR are trained by their authors'
recipes, which are today's, anyway.
"""

from __future__ import annotations

from typing import Any

from trainer.models.catalog import ModelEntry
from trainer.tasks import Task

_ADAMW = {
    "optimizer": "adamw",
    # The cosine ends at 0, where the averaged weights have settled.
    "warmup_cosine_lr_cycles": 0.5,
}

_CLASSIFIER = {
    **_ADAMW,
    # Rate and batches of dozens as fast.ai fine-tunes CNNs (Howard and Gugger 2020).
    "learning_rate": 1e-3,
    # Of timm's, BEiT's, MAE's and ConvNeXt's recipes for adamw.
    "weight_decay": 0.05,
    # adamw divides a gradient by its size, so that a clipped value means nothing to it.
    "gradient_clip_norm": 1.0,
    "gradient_clip_value": None,
    "average_weights": True,
    "random_augment": True,
}

# Not with several labels: there, smoothed and mixed targets move the probabilities that are held against .5.
# CutMix pays in trainings of hundreds of epochs and costs in short ones.
_ONE_LABEL = {"label_smoothing": 0.1, "mixup_alpha": 0.2}  # of torchvision's recipe (Vryniotis 2021)

_TRANSFORMERS = (
    "vit", "deit", "beit", "eva", "swin", "hiera", "cait", "xcit", "pvt", "twins", "coat", "former",
    "convnext",
)  # fmt: skip
"""What timm's names of them contain; ConvNeXts are fine-tuned as transformers are."""
# 1e-3 · batch size / 256 with a decay of .65 to .75, as MAE fine-tunes ViT-B and ViT-L (He et al. 2022).
_LAYER_DECAY = 0.75
_TRANSFORMER_RATES = {"vits16r224": 5e-4, "vitb16r224": 2e-4, "vitl16r224": 4e-5}
_TRANSFORMER_RATE = 3e-4

_RCNN = {
    **_ADAMW,
    # As torchvision trains RetinaNet v2; its Mask R-CNN v2 has the jitter.
    "learning_rate": 1e-4,
    "weight_decay": 0.05,
    "average_weights": True,
    "large_scale_jitter": True,
}

_YOLO = {
    **_ADAMW,
    # What ultralytics chooses for short trainings: adamw, .01 / (4 + classes), here for six classes.
    "learning_rate": 1e-3,
    "weight_decay": 5e-4,
    "gradient_clip_norm": 10.0,
    "gradient_clip_value": None,
}


def modern(entry: ModelEntry, task: Task) -> dict[str, Any]:
    """Settings of the modern recipe for a model, by name; each may still be set by the user."""
    values: dict[str, Any] = {"recipe": "modern"}
    if entry.family == "rcnn":
        values |= _RCNN
    elif entry.family == "yolo":
        values |= _YOLO
    elif entry.family == "classifiers":
        values |= _CLASSIFIER
        if task is not Task.MULTILABEL:
            values |= _ONE_LABEL
        if any(part in entry.library_name for part in _TRANSFORMERS):
            values["layer_decay"] = _LAYER_DECAY
            values["learning_rate"] = _TRANSFORMER_RATES.get(entry.name, _TRANSFORMER_RATE)
    return values
