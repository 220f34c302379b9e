"""R-CNNs, RetinaNet and FCOS compute for a batch what torchvision computes image by image."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conformance.conftest import Case, make_case
from trainer.models import rcnn_boxes
from trainer.models.rcnn_boxes import sampled
from trainer.models.rcnn_one_stage import OneStagePass
from trainer.models.rcnn_two_stage import TwoStagePass
from trainer.tasks import Task

ONE_STAGE = ["retinanet_resnet50_fpn", "fcos_resnet50_fpn"]
TWO_STAGE = "maskrcnn_resnet18_fpn"


@cache
def made(model: str) -> tuple[Case, Any, list[Tensor], list[dict[str, Tensor]]]:
    """A case with its network, and a batch: images of two sizes, one of them without objects."""
    task = Task.SEGMENTATION if model.startswith("mask") else Task.DETECTION
    case = make_case(task, model)
    network: Any = case.build()
    torch.manual_seed(1)
    for name, parameter in network.named_parameters():
        if "cls" in name:  # scores that differ
            nn.init.normal_(parameter, std=0.3)
    if model == TWO_STAGE:
        network.rpn.min_size = 12.0  # drops some proposals
        for pooler in (network.roi_heads.box_roi_pool, network.roi_heads.mask_roi_pool):
            pooler.canonical_scale = 30  # small regions are pooled from all levels, too
    items = []
    for index in range(3):
        example = case.examples[index]
        tensor, geometry = case.family.preprocess(example.image[: 120 - 40 * (index == 2)])
        items.append(case.family.validation_item(tensor, example.target, geometry))
    images, targets = ([pair[part] for pair in items] for part in (0, 1))
    targets[1] = {name: values[:0] for name, values in targets[1].items()}
    thin = {"boxes": torch.tensor([[5.0, 5.0, 55.0, 9.0]]), "labels": torch.tensor([1])}  # as no anchor is
    if "masks" in targets[0]:
        thin["masks"] = torch.zeros_like(targets[0]["masks"][:1])
        thin["masks"][:, 5:9, 5:40] = 1
    targets[0] = {name: torch.cat([targets[0][name], added]) for name, added in thin.items()}
    return case, network, images, targets


def gradients(losses: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    total = torch.stack(list(losses.values())).sum()
    found = torch.autograd.grad(total, list(inputs.values()), retain_graph=True)
    return dict(zip(inputs, found, strict=True))


def assert_same_losses(
    losses: dict[str, Tensor], expected: dict[str, Tensor], inputs: dict[str, Tensor]
) -> None:
    """Check losses and their gradients."""
    assert losses.keys() == expected.keys()
    assert min(expected.values()) > 0
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)
    expected_gradients = gradients(expected, inputs)
    for name, gradient in gradients(losses, inputs).items():
        error = (gradient - expected_gradients[name]).norm()
        assert error <= 1e-3 * expected_gradients[name].norm() + 1e-6, name


@pytest.mark.parametrize(
    ("model", "kind"), [(ONE_STAGE[0], "l1"), (ONE_STAGE[0], "giou"), (ONE_STAGE[1], "")]
)
def test_losses_of_one_stage_are_those_of_torchvision(model: str, kind: str) -> None:
    _, network, images, targets = made(model)
    network.head.regression_head._loss_type = kind
    with torch.no_grad():
        seen = OneStagePass(network, images)
    outputs = {name: output.requires_grad_() for name, output in seen.outputs.items()}
    levels = {} if kind else {"num_anchors_per_level": seen._level_sizes}
    expected = network.compute_loss(targets, outputs, [seen._anchors] * len(images), **levels)
    assert_same_losses(seen.losses(targets, None), expected, outputs)


def test_losses_of_two_stages_are_those_of_torchvision() -> None:
    _, network, images, targets = made(TWO_STAGE)
    for sampler in (network.rpn.fg_bg_sampler, network.roi_heads.fg_bg_sampler):
        sampler.batch_size_per_image = 10**5  # a sample of everything is the same sample
    network.train()
    expected = network(images, targets)
    losses = TwoStagePass(network, images).losses(targets, None)
    assert_same_losses(losses, expected, dict(network.named_parameters()))


@pytest.mark.parametrize("at_once", [25_000, 30])
@pytest.mark.parametrize("model", [*ONE_STAGE, TWO_STAGE])
def test_detections_are_those_of_torchvision(
    model: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rcnn_boxes, "_MOST_AT_ONCE", at_once)
    _, network, images, _ = made(model)
    images = images[:2] if model == TWO_STAGE else images[1:]  # of one size, and of two
    network.eval()
    with torch.inference_mode():
        if model in ONE_STAGE:
            network.score_thresh, network.detections_per_img = 0.1, 9
            expected = network(images)
            found = OneStagePass(network, images)._detections_of_batch()
        else:
            network.roi_heads.score_thresh, network.roi_heads.detections_per_img = 0.1, 9
            batch, _ = network.transform(images)
            features = network.backbone(batch.tensors)
            proposals, _ = network.rpn(batch, features)
            expected, _ = network.roi_heads(features, proposals, batch.image_sizes)
            found = TwoStagePass(network, images).detections()
    assert [len(each["scores"]) for each in expected] == [9, 9]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, {name: other[name] for name in one}, rtol=1e-4, atol=1e-3)


def test_no_detections_where_no_score_reaches_the_threshold() -> None:
    for model in (ONE_STAGE[0], TWO_STAGE):
        case, network, images, _ = made(model)
        high = case.family.spec.parameters.model_copy(update={"box_score_threshold": 1.0})
        with torch.inference_mode():
            found = case.family.infer(network.eval(), images[:2], high)
        assert [len(each["scores"]) for each in found] == [0, 0]


def test_no_detections_where_there_is_no_proposal() -> None:
    case, network, images, _ = made(TWO_STAGE)
    network.rpn.min_size = 1e6
    parameters = case.family.spec.parameters.model_copy(update={"box_score_threshold": 0.0})
    with torch.inference_mode():
        found = case.family.infer(network.eval(), images[:2], parameters)
    assert [each["boxes"].shape for each in found] == [(0, 4), (0, 4)]
    assert [each["masks"].shape for each in found] == [(0, 1, 28, 28), (0, 1, 28, 28)]


def test_batch_without_objects_and_proposals_has_losses() -> None:
    """torchvision's are NaN."""
    _, network, images, targets = made(TWO_STAGE)
    network.rpn.min_size = 1e6
    without = [{name: values[:0] for name, values in target.items()} for target in targets]
    losses = TwoStagePass(network.train(), images).losses(without, None)
    assert losses.pop("loss_objectness") > 0
    assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys(losses, 0.0)
    torch.stack([*losses.values()]).sum().backward()
    assert all(each.grad is not None for each in network.roi_heads.parameters())


def test_sample_is_of_torchvisions_numbers_and_uniform() -> None:
    sampler = SimpleNamespace(batch_size_per_image=8, positive_fraction=0.25)
    is_object = torch.zeros(4, 40, dtype=torch.bool)
    is_object[0, :10] = is_object[1, :1] = is_object[2, :5] = True
    is_background = ~is_object
    is_background[:, 30:] = False  # these are ignored
    is_background[2, 8:] = False
    torch.manual_seed(0)
    drawn = torch.zeros(4, 40)
    for _ in range(500):
        chosen, are_valid = sampled(is_object, is_background, sampler)
        assert chosen.shape == (4, 8)
        assert are_valid.sum(dim=1).tolist() == [8, 8, 5, 8]
        objects = is_object.gather(1, chosen) & are_valid
        assert objects.sum(dim=1).tolist() == [2, 1, 2, 0]
        assert (objects[:, :-1] >= objects[:, 1:]).all()
        drawn.scatter_add_(1, chosen, are_valid.float())
    drawn /= 500
    assert not drawn[~(is_object | is_background)].any()
    assert drawn[0, :10].tolist() == pytest.approx([0.2] * 10, abs=0.06)
    assert drawn[0, 10:30].tolist() == pytest.approx([6 / 20] * 20, abs=0.07)
    assert drawn[2, :5].tolist() == pytest.approx([2 / 5] * 5, abs=0.07)
    assert drawn[3, :30].tolist() == pytest.approx([8 / 30] * 30, abs=0.07)
