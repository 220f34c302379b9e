"""Each family's training step, validation batch and `predict` on a GPU: no mixing, and few host waits."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from tests.conformance.conftest import smallest_models
from tests.conftest import in_ci
from trainer.models.catalog import find
from trainer.tasks import Task

LIKE_OTHERS = {"vits16r224", "fasterrcnn_resnet18_fpn", "yolov5", "yolo26n", "yolo11n-seg"}
"""Models whose every part another case rehearses."""
CASES = [
    f"{model}:{task}"
    for task, model in smallest_models()
    if task is not Task.MULTILABEL
    and model not in LIKE_OTHERS
    and (in_ci() or find_spec(find(model, task).card.library) is not None)
]


@pytest.fixture(scope="module")
def steps(rehearse: Callable[[str, list[str]], dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What `tests.rehearsal.steps` counted, by case."""
    return rehearse("steps", ["tool", *CASES])


def waits(steps: dict[str, dict[str, Any]], case: str, part: str) -> dict[str, int]:
    counted: dict[str, int] = steps[case][part]["waits"]
    return counted


def test_tensors_left_on_the_cpu_are_seen(steps: dict[str, dict[str, Any]]) -> None:
    assert "MixedDevicesError" in steps["tool"]["mixing"]
    assert sum(steps["tool"]["waits"].values()) == 3


@pytest.mark.parametrize("case", CASES)
def test_step_validation_and_predict_run_on_the_device(steps: dict[str, dict[str, Any]], case: str) -> None:
    assert "error" not in steps[case], steps[case]["error"]
    assert steps[case]["without gradient"] == []


def test_tensors_of_a_batch_are_copied_to_the_cpu_in_one_transfer(steps: dict[str, dict[str, Any]]) -> None:
    copies = steps["tool"]["copies"]
    assert copies["waits"] == 1
    expected = {
        "a": [torch.arange(3), torch.tensor([[False], [False], [True]])],
        "b": (torch.zeros(0), None, torch.arange(3).half()),
    }
    assert copies["value"] == repr(expected)


def test_tensors_made_for_the_device_are_not_waited_for(steps: dict[str, dict[str, Any]]) -> None:
    copies = steps["tool"]["copies"]
    assert copies["made"] == [2.0, 2.0]
    assert copies["waits of making"] == {}


@pytest.mark.parametrize("case", CASES)
def test_transfer_and_step_do_not_wait(steps: dict[str, dict[str, Any]], case: str) -> None:
    assert waits(steps, case, "transfer") == {}
    assert waits(steps, case, "step") == {}


BUDGETS = {  # of a batch of 4: losses, backward pass, validation; of 8 images: predict
    "resnet18": (0, 0, 2, 1),
    "maskrcnn_resnet18_fpn": (2, 0, 8, 6),
    "retinanet_resnet50_fpn": (1, 0, 5, 4),
    "fcos_resnet50_fpn": (1, 0, 5, 4),
    "yolo11n": (2, 0, 3, 1),
    "yolo26n-seg": (22, 0, 23, 1),
    "rtdetr-l": (8, 0, 8, 6),
    "rtdetrv2-r18": (22, 0, 19, 8),
    "dfine-n": (27, 0, 17, 6),
    "rfdetr-nano": (12, 0, 13, 2),
    "rfdetr-seg-nano": (12, 0, 13, 2),
    "lwdetr-tiny": (12, 0, 13, 2),
    "deformable-detr-two-stage": (14, 0, 14, 2),
    "mask2former-swin-t": (1, 0, 2, 1),
    "eomt-small": (1, 0, 2, 1),
}
"""The most waits of the host. None grow with a batch's images; those of transformers' DETRs grow with the
decoder's layers, and both heads of YOLO26's segmenters match objects by masks."""


@pytest.mark.parametrize("case", [case for case in CASES if case.partition(":")[0] in BUDGETS])
def test_waits_stay_within_their_budget(steps: dict[str, dict[str, Any]], case: str) -> None:
    parts = ("losses", "backward", "validation", "predict")
    for part, most in zip(parts, BUDGETS[case.partition(":")[0]], strict=True):
        counted = waits(steps, case, part)
        assert sum(counted.values()) <= most, (part, counted)
