"""What `compile` compiles is what the losses call, in the run's precision: a module's own call is compiled,
not its methods."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conformance.conftest import TINY_CONFIGS, make_case
from trainer.annotations import Objects
from trainer.models import create, specify
from trainer.models.defaults import resolve
from trainer.tasks import Task

MODELS: dict[str, dict[str, Any]] = {
    "timm/test_resnet": {"training_crop_size": 64, "validation_crop_size": 64},
    "fasterrcnn_resnet18_fpn": {"min_size": 64, "max_size": 96},
    "yolo11n": {"image_size": 64},
    "rtdetr-resnet50": {"image_size": 64},
    "dfine-n": {},
    "rfdetr-nano": {},
}


@pytest.mark.parametrize("model", MODELS)
def test_the_losses_and_the_answers_call_what_is_compiled(model: str) -> None:
    task = Task.CLASSIFICATION if model.startswith("timm/") else Task.DETECTION
    if model in TINY_CONFIGS:
        family = make_case(task, model).family
    else:
        settings = resolve(task, model, MODELS[model])
        family = create(specify(task, model, settings, ("a", "b"), pretrained=False))
    network = family.build()
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    truth: Any = 1
    if task.has_boxes:
        box = np.array([[0.2, 0.1, 0.8, 0.7]], dtype=np.float32)
        truth = Objects(box, np.array([1]), np.array([False]))
    tensor, geometry = family.preprocess(image)
    batch = family.collate([family.validation_item(tensor, truth, geometry)] * 2)
    calls: Counter[nn.Module] = Counter()
    parts = family.parts_to_compile(network)
    assert parts
    for part in parts:
        part.register_forward_pre_hook(lambda module, _: calls.update([module]))
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    types: list[torch.dtype] = []
    handle = first.register_forward_hook(lambda _, __, output: types.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        family.losses(network.train(), batch)
    handle.remove()
    assert types == [torch.bfloat16]
    assert [calls[part] for part in parts] == [1] * len(parts)
    with torch.inference_mode():
        family.predict(network.eval(), [image])
    assert [calls[part] for part in parts] == [2] * len(parts)
