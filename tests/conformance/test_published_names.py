"""Every name in the catalog is built at its published size, stepped once and scored, on tiny inputs.

The suite next to this file trains one model of each architecture; here no name is left out.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.conformance.conftest import Case, make_case
from trainer.models import catalog
from trainer.models.training_items import Draw, Progress
from trainer.tasks import Task

SAME = {"eomt-large-1280"}  # eomt-large's network for larger images, which are as tiny here
NAMES = [(entry.tasks[0], entry.name) for entry in catalog.MODELS.values() if entry.name not in SAME]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def step(case: Case, network: nn.Module, items: list[Any]) -> dict[str, float]:
    """A step of gradient descent that holds one gradient at a time: all of them would not fit."""

    def descend(parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        parameter.data.add_(parameter.grad, alpha=-1e-3)
        parameter.grad = None

    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(descend)
    losses = case.family.losses(network.train(), case.family.collate(items), Progress(0, 1))
    torch.stack(list(losses.values())).sum().backward()
    return {name: loss.item() for name, loss in losses.items()}


def first_matrix(network: nn.Module) -> nn.Parameter:
    """The first parameter that a single step moves.

    Not a Deformable DETR's embedding of levels: it moves where attention looks, by weights that start at 0.
    """
    return next(
        parameter
        for name, parameter in network.named_parameters()
        if parameter.ndim > 1 and not name.endswith("level_embed")
    )


@pytest.mark.parametrize(("task", "name"), NAMES, ids=[name for _, name in NAMES])
def test_builds_steps_and_scores(task: Task, name: str) -> None:
    case: Case = make_case(task, name)
    network = case.build()
    dataset = case.family.training_dataset(case.examples, case.settings, seed=0)
    items = [dataset.item(Draw(0, index)) for index in range(2)]
    before = first_matrix(network).detach().clone()
    losses = step(case, network, items)
    assert losses
    assert all(math.isfinite(loss) for loss in losses.values())
    assert not torch.equal(before, first_matrix(network))
    with torch.inference_mode():
        predictions = case.family.predict(network.eval(), case.examples.images[:2])
    assert len(predictions) == 2
    assert len(case.family.freeze_groups(network)) >= 5


def test_yolov5_has_its_four_sizes() -> None:
    counts = []
    for size in ("small", "medium", "large", "extra_large"):
        case = make_case(Task.DETECTION, "yolov5", model_size=size)
        counts.append(sum(parameter.numel() for parameter in case.build().parameters()))
    assert counts == sorted(set(counts))
