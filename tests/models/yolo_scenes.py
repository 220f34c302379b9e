"""Families of ultralytics' networks, and small examples for them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch

from trainer.annotations import Example, FloatArray, Objects
from trainer.models import Family, Spec, catalog, create
from trainer.models.defaults import resolve
from trainer.scoring import ScoringParameters
from trainer.settings import Settings

CLASSES = ("가위", "바위", "보")
PLAIN = {"advanced_settings": {"apply_automl_train_augmentations": False}}
TINY_DECODER = {"queries": 20, "decoder_layers": 2}


def family_of(
    model: str, classes: Sequence[str] = CLASSES, **values: Any
) -> tuple[Family, Settings, dict[str, Any]]:
    (task,) = catalog.MODELS[model].tasks
    settings = resolve(task, model, {"image_size": 128, **values})
    module = import_module(f"trainer.models.{catalog.MODELS[model].family}")
    options = module.FAMILY.options(task, model, settings, False)
    options |= {name: value for name, value in TINY_DECODER.items() if name in options}
    spec = Spec(
        family=catalog.MODELS[model].family,
        model=model,
        task=task,
        classes=tuple(classes),
        options=options,
        parameters=ScoringParameters(),
    )
    return create(spec), settings, options


def build(family: Family, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return family.build()


class Scenes:
    """Examples of given images and truths."""

    def __init__(self, *examples: Example) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    @property
    def targets(self) -> list[Any]:
        return [example.target for example in self.examples]


def rectangle(x1: float, y1: float, x2: float, y2: float) -> FloatArray:
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], dtype=np.float32)


def objects(*polygons: tuple[FloatArray, ...], crowd: Sequence[bool] = ()) -> Objects:
    """Objects of class 0, 1, … by their segments."""
    boxes = [
        [*np.concatenate(segments).min(axis=0), *np.concatenate(segments).max(axis=0)]
        for segments in polygons
    ]
    flags = np.array(crowd, dtype=bool) if crowd else np.zeros(len(polygons), dtype=bool)
    return Objects(
        np.array(boxes, dtype=np.float32).reshape(-1, 4), np.arange(len(polygons)), flags, tuple(polygons)
    )


def noise(height: int = 96, width: int = 128, seed: int = 3) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
