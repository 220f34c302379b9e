"""Small classifiers, one of them trained for some seconds, and the images that they are asked about."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import nn

from serving.payload import parse_rows
from serving.scorer import Scorer
from trainer.annotations import Image
from trainer.models import Family, Spec, create
from trainer.models.catalog import find
from trainer.models.defaults import resolve
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

CLASSES = ("blue", "green", "빨강")
COLOURS = ((60, 70, 230), (40, 190, 60), (225, 45, 40))
SIZE = 64


def bind(task: Task, model: str, **settings: Any) -> Family:
    """A family bound to a model for the three classes."""
    family = find(model, task).family
    module = import_module(f"trainer.models.{family}")
    options = module.FAMILY.options(task, model, resolve(task, model, settings), False)
    few = {"proposals": 60, "sampled_proposals": 32}
    options |= {name: value for name, value in few.items() if name in options}
    parameters = ScoringParameters(box_score_threshold=0.3)
    return create(
        Spec(family=family, model=model, task=task, classes=CLASSES, options=options, parameters=parameters)
    )


def classifier(model: str, task: Task = Task.CLASSIFICATION) -> tuple[Family, nn.Module]:
    """An untrained classifier of 64 × 64 pixels."""
    family = bind(
        task, model, validation_crop_size=SIZE, training_crop_size=SIZE, validation_resize_size=SIZE
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return family, family.build().eval().requires_grad_(False)


def scene(label: int, seed: int) -> tuple[Image, tuple[int, int, int, int]]:
    """Noise with one square of the class's colour: uint8 [64, 64, 3], and where it lies, xyxy in pixels."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(70, 170, (8, 8, 3), dtype=np.uint8)
    image = np.array(PILImage.fromarray(coarse).resize((SIZE, SIZE), PILImage.Resampling.BICUBIC))
    x, y = generator.integers(4, SIZE - 28, 2)
    image[y : y + 24, x : x + 24] = COLOURS[label] + generator.integers(-15, 15, (24, 24, 3))
    return image, (int(x), int(y), int(x) + 24, int(y) + 24)


def row(image: Image, **parameters: Any) -> dict[str, Any]:
    """A row that asks for an explanation."""
    file = io.BytesIO()
    PILImage.fromarray(image).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    return {"image_base64": text, "model_explainability": True, "xai_parameters": parameters}


def explain(scorer: Scorer, image: Image, **parameters: Any) -> dict[str, Any]:
    """The answer to one row that asks for an explanation."""
    (answer,) = scorer.score(parse_rows([row(image, **parameters)], scorer.spec.task), {})
    return answer


@dataclass(frozen=True)
class Trained:
    family: Any
    network: nn.Module
    scorer: Scorer


@cache
def _trained() -> Trained:
    family, network = classifier("resnet18")
    network.requires_grad_(True).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(14):
        labels = torch.arange(18) % 3
        images = [scene(int(label), 100 * step + place)[0] for place, label in enumerate(labels)]
        tensors = torch.stack([family.preprocess(image)[0] for image in images])
        loss = nn.functional.cross_entropy(network(tensors), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    return Trained(family, network, Scorer(family, network))


@pytest.fixture(scope="session")
def trained() -> Trained:
    """A ResNet-18 that knows the three colours."""
    return _trained()
