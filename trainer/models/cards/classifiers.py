"""Classifiers: timm's, under our own names and any other by `timm/NAME`."""

from __future__ import annotations

from typing import Any

from trainer.models.card import FamilyCard, ModelEntry, Sizing
from trainer.models.cards.shared import ADAMW_MODERN, CLASSIFICATION, RESNETS
from trainer.tasks import Task

CARD = FamilyCard(
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
        "test_time_flip",
        "random_augment",
        "mixup_alpha",
        "cutmix_alpha",
    ),
    size_setting="training_crop_size",
    modern={
        **ADAMW_MODERN,
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
    preload=True,
    smallest_models=("resnet18", "vits16r224"),
    tiny_settings={"validation_crop_size": 64, "training_crop_size": 64, "validation_resize_size": 64},
)

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
        name, CARD, CLASSIFICATION, library_name, "ImageNet-1k", defaults,
        modern={Task.CLASSIFICATION: {**modern, **_MODERN_ONE_LABEL}, Task.MULTILABEL: modern},
        equal_crops=equal_crops,
    )  # fmt: skip


def _vit(
    name: str, library_name: str, batch_size: int, rates: tuple[float, float], modern_rate: float
) -> ModelEntry:
    clipping = {"gradient_clip_norm": 1.0, "gradient_clip_value": None}
    return _classifier(name, library_name, batch_size, rates, modern_rate, equal_crops=True, **clipping)


ENTRIES = (
    _classifier("mobilenetv2", "mobilenetv2_100"),
    *(_classifier(f"resnet{depth}", f"resnet{depth}") for depth in RESNETS),
    _classifier("resnest50", "resnest50d"),
    _classifier("resnest101", "resnest101e"),
    _classifier("seresnext", "seresnext50_32x4d"),
    _vit("vits16r224", "vit_small_patch16_224", 128, (0.0125, 0.025), 5e-4),
    _vit("vitb16r224", "vit_base_patch16_224", 48, (0.0125, 0.025), 2e-4),
    _vit("vitl16r224", "vit_large_patch16_224", 10, (0.001, 0.002), 4e-5),
)


def named(name: str) -> ModelEntry:
    """The entry of `timm/NAME`. Whether timm knows such a model, only timm can say."""
    return _classifier(name, name.removeprefix(CARD.library_prefix))
