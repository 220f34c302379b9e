"""Copies between the CPU and a device, and targets that need not be counted there."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.conformance.conftest import make_case
from trainer.models.training_items import Draw
from trainer.models.transfers import on_cpu, without_waits
from trainer.tasks import Task


class Pair(NamedTuple):
    one: Tensor
    other: Any


def test_what_is_on_the_cpu_is_not_copied() -> None:
    nested = {"a": [torch.ones(2), 3], "b": Pair(torch.zeros(1), None)}
    assert on_cpu(nested) is nested


def test_padded_targets_are_those_that_ultralytics_makes() -> None:
    case = make_case(Task.DETECTION, "yolo11n")
    network: Any = case.build()
    criterion = network.init_criterion()
    dataset = case.family.training_dataset(case.examples, case.settings, seed=0)
    from trainer.models.yolo import _in_pixels

    batch = case.family.collate([dataset.item(Draw(0, index)) for index in range(4)])
    scale = torch.tensor([128.0, 96.0, 128.0, 96.0])
    rows = torch.cat((batch["batch_idx"].view(-1, 1), batch["cls"].view(-1, 1), batch["bboxes"]), 1)
    expected = criterion.preprocess(rows, 4, scale)
    assert batch["counts"] == [1, 2, 1, 2]
    torch.testing.assert_close(_in_pixels(batch["targets"], rows, 4, scale_tensor=scale), expected)


def test_loss_of_masks_is_that_of_ultralytics() -> None:
    case = make_case(Task.SEGMENTATION, "yolo11n-seg")
    network: Any = case.build()
    criterion = network.init_criterion()
    from trainer.models.yolo import _mask_loss

    torch.manual_seed(0)
    chosen = torch.rand(3, 20) < 0.4
    chosen[1] = False  # an image without objects
    corners = torch.rand(3, 20, 2) * 30
    boxes = torch.cat([corners, corners + 20], dim=2)
    prototypes, coefficients = torch.randn(3, 32, 16, 16), torch.randn(3, 20, 32)
    masks, objects = torch.randint(0, 4, (3, 16, 16)).float(), torch.randint(0, 3, (3, 20))
    losses, gradients = [], []
    for compute in (criterion.calculate_segmentation_loss, partial(_mask_loss, criterion.single_mask_loss)):
        inputs = [tensor.clone().requires_grad_() for tensor in (prototypes, coefficients)]
        size = torch.tensor([64.0, 64.0])
        loss = compute(chosen, masks, objects, boxes, torch.zeros(0), *inputs, size)
        loss.backward()
        losses.append(loss)
        gradients.append([tensor.grad for tensor in inputs])
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_nothing_changes_on_the_cpu() -> None:
    with without_waits(torch.device("cpu")):
        assert torch.tensor([1, 2])[[1]].tolist() == [2]
