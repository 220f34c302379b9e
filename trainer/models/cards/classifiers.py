"""timm's classifiers: those with names of our own, and any other as `timm/NAME`."""

from __future__ import annotations

from typing import Any

from trainer.models.card import FamilyCard, ModelEntry, Sizing
from trainer.models.cards.shared import ADAMW_MODERN, CLASSIFICATION, HUB_PREFIX, RESNETS
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
        # For one label. benchmarks/RESULTS.md ("Few images") compares it with 1e-3.
        "learning_rate": 5e-4,
        # As in the recipes of timm, BEiT, MAE and ConvNeXt for adamw.
        "weight_decay": 0.05,
        # adamw divides gradients by their usual magnitude, so clipping their values would hardly matter.
        "gradient_clip_norm": 1.0,
        "gradient_clip_value": None,
        "average_weights": True,
        "interpolation": "published",
        # No effect on balanced data. There is no probe_first: it gains nothing, and loses on noisy labels.
        "weighted_loss": 1,
    },
    usual_recipe="modern",
    sizing=Sizing(steps_per_epoch=12, min_batch=8, min_steps=100, max_epochs=30),
    preload=True,
    smallest_models=("resnet18", "vits16r224"),
    tiny_settings={"validation_crop_size": 64, "training_crop_size": 64, "validation_resize_size": 64},
)

# No mixup or CutMix: they help in long runs on many images, and BiT uses mixup only above 20,000 (Kolesnikov
# et al. 2020). benchmarks/RESULTS.md has runs with mixup under "Few images".
_MODERN: dict[Task, dict[str, Any]] = {
    Task.CLASSIFICATION: {"label_smoothing": 0.1},
    # No smoothing: it would shift the probabilities that are compared with 0.5. CNNs need a higher rate, as
    # in the reference recipe: with 5e-4 a run ends before the classes are learned (benchmarks/RESULTS.md).
    Task.MULTILABEL: {"learning_rate": 1e-3},
}

_TRANSFORMERS = (
    "vit", "deit", "beit", "eva", "swin", "hiera", "cait", "xcit", "pvt", "twins", "coat", "former",
    "convnext", "dino", "clip", "jepa",
)  # fmt: skip
"""Parts of timm's names of transformers and of ConvNeXts, which are fine-tuned like transformers."""
# 1e-3 · batch size / 256 with a decay of .65 to .75, as MAE fine-tunes ViT-B and ViT-L (He et al. 2022).
_LAYER_DECAY, _TRANSFORMER_RATE = 0.75, 3e-4


def classifier(
    name: str,
    library_name: str,
    batch_size: int = 78,
    rates: tuple[float, float] = (0.01, 0.035),
    transformer_rate: float = _TRANSFORMER_RATE,
    *,
    card: FamilyCard = CARD,
    published: str = "ImageNet-1k",
    equal_crops: bool = False,
    **more: Any,
) -> ModelEntry:
    """The entry of a classifier.

    Args:
        rates: default learning rates, multiclass and multilabel.
        transformer_rate: learning rate of a transformer by the modern recipe.
        more: other defaults of both tasks.
    """
    shared = {"training_batch_size": batch_size, "validation_batch_size": batch_size, **more}
    defaults = {
        task: {**shared, "learning_rate": rate} for task, rate in zip(CLASSIFICATION, rates, strict=True)
    }
    transformer: dict[str, Any] = {}
    if any(part in library_name for part in _TRANSFORMERS):
        transformer = {"layer_decay": _LAYER_DECAY, "learning_rate": transformer_rate}
    return ModelEntry(
        name, card, CLASSIFICATION, library_name, published, defaults,
        modern={task: {**values, **transformer} for task, values in _MODERN.items()},
        equal_crops=equal_crops,
    )  # fmt: skip


def _vit(
    name: str, library_name: str, batch_size: int, rates: tuple[float, float], modern_rate: float
) -> ModelEntry:
    clipping: dict[str, Any] = {"gradient_clip_norm": 1.0, "gradient_clip_value": None}
    return classifier(name, library_name, batch_size, rates, modern_rate, equal_crops=True, **clipping)


ENTRIES = (
    classifier("mobilenetv2", "mobilenetv2_100"),
    *(classifier(f"resnet{depth}", f"resnet{depth}") for depth in RESNETS),
    classifier("resnest50", "resnest50d"),
    classifier("resnest101", "resnest101e"),
    classifier("seresnext", "seresnext50_32x4d"),
    _vit("vits16r224", "vit_small_patch16_224", 128, (0.0125, 0.025), 5e-4),
    _vit("vitb16r224", "vit_base_patch16_224", 48, (0.0125, 0.025), 2e-4),
    _vit("vitl16r224", "vit_large_patch16_224", 10, (0.001, 0.002), 4e-5),
)


def named(name: str) -> ModelEntry:
    """The entry of `timm/NAME` or `hf/timm/NAME`. Whether timm knows such a model, only timm can say."""
    return classifier(name, name.removeprefix(HUB_PREFIX).removeprefix(CARD.library_prefix))


OF_HUB = {
    "google/vit-base-patch16-224": ("vit_base_patch16_224.orig_in21k_ft_in1k", 224),
    "facebook/deit-base-patch16-224": ("deit_base_patch16_224.fb_in1k", 224),
    "microsoft/beit-base-patch16-224-pt22k-ft22k": ("beit_base_patch16_224.in22k_ft_in22k", 224),
    "microsoft/swinv2-base-patch4-window12-192-22k": ("swinv2_base_window12_192.ms_in22k", 192),
}
"""Hub names of the classifiers in Azure's catalog → timm's name of the same weights, and the image size."""


def of_hub(name: str) -> ModelEntry | None:
    """The entry of a classifier in Azure's catalog by its name on the Hub; None for other names."""
    if name not in OF_HUB:
        return None
    library_name, size = OF_HUB[name]
    data = "ImageNet-22k" if library_name.endswith("22k") else "ImageNet-1k"
    settings: dict[str, Any] = {
        "training_crop_size": size,
        "validation_crop_size": size,
        "validation_resize_size": round(size * 256 / 224),
        # As Azure's own ViTs.
        "gradient_clip_norm": 1.0,
        "gradient_clip_value": None,
    }
    return classifier(name, library_name, published=data, equal_crops=True, **settings)
