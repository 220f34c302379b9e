"""Mixed precision, as it is on GPUs: boxes keep their digits, and what is scored is what is served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.annotations import Objects
from trainer.models import Family, create, rcnn_boxes, rcnn_one_stage, rcnn_two_stage, specify
from trainer.models.defaults import resolve
from trainer.models.rcnn_boxes import anchors_of
from trainer.tasks import Task

RCNN = [
    (Task.DETECTION, "fasterrcnn_resnet18_fpn"),
    (Task.SEGMENTATION, "maskrcnn_resnet18_fpn"),
    (Task.DETECTION, "retinanet_resnet50_fpn"),
    (Task.DETECTION, "fcos_resnet50_fpn"),
]
SIZES = {"min_size": 96, "max_size": 160}
IMAGE = np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8)


def made(task: Task, model: str, **values: Any) -> tuple[Family, nn.Module]:
    settings = resolve(task, model, {"box_score_threshold": 0.0, **values} if task.has_boxes else values)
    family = create(specify(task, model, settings, ("a", "b"), pretrained=False))
    torch.manual_seed(0)
    return family, family.build()


def mixed() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize(("task", "model"), RCNN, ids=[model for _, model in RCNN])
def test_boxes_are_scored_as_they_are_served(task: Task, model: str) -> None:
    family, network = made(task, model, **SIZES)
    network.eval()
    with torch.inference_mode():
        (served,) = family.predict(network, [IMAGE])
        with mixed():
            (scored,) = family.predict(network, [IMAGE])
    assert len(served.boxes)  # type: ignore[union-attr]
    np.testing.assert_array_equal(scored.boxes, served.boxes)  # type: ignore[union-attr]
    np.testing.assert_array_equal(scored.scores, served.scores)  # type: ignore[union-attr]


def test_classes_are_scored_as_they_are_served() -> None:
    family, network = made(Task.CLASSIFICATION, "timm/test_resnet", validation_crop_size=64)
    network.eval()
    with torch.inference_mode():
        (served,) = family.predict(network, [IMAGE])
        with mixed():
            (scored,) = family.predict(network, [IMAGE])
    np.testing.assert_array_equal(scored.probs, served.probs)  # type: ignore[union-attr]


@contextmanager
def outputs_of(network: nn.Module, *kinds: str) -> Iterator[list[Any]]:
    """What the modules of these classes answer."""
    found: list[Any] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: found.append(output))
        for module in network.modules()
        if type(module).__name__ in kinds
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("task", "model"), RCNN, ids=[model for _, model in RCNN])
def test_losses_are_of_boxes_in_full_precision(
    task: Task, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, network = made(task, model, **SIZES)
    box = np.array([[0.21, 0.13, 0.83, 0.77]], dtype=np.float32)
    masks = task is Task.SEGMENTATION
    polygons = ((box[0][[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2),),) if masks else None
    truth = Objects(box, np.array([1]), np.array([False]), polygons)
    tensor, geometry = family.preprocess(IMAGE)
    batch = family.collate([family.validation_item(tensor, truth, geometry)] * 2)

    def losses() -> tuple[dict[str, Tensor], list[Tensor]]:
        torch.manual_seed(1)
        network.train()
        with outputs_of(network, "Conv2d") as maps:
            return family.losses(network, batch), maps

    anchors: list[Tensor] = []

    def spied(*arguments: Any) -> Tensor:
        anchors.append(anchors_of(*arguments))
        return anchors[-1]

    for module in (rcnn_one_stage, rcnn_two_stage):
        monkeypatch.setattr(module, "anchors_of", spied)
    whole, _ = losses()
    rcnn_boxes._anchors.cache_clear()
    with mixed():
        half, maps = losses()
    assert any(made.dtype == torch.bfloat16 for made in maps)  # it is for speed, after all
    assert anchors[1].dtype == torch.float32
    assert torch.equal(anchors[0], anchors[1])
    for name, loss in whole.items():
        assert half[name].dtype == torch.float32
        assert half[name].item() == pytest.approx(loss.item(), rel=0.1, abs=0.02), name
