"""Each family's training step, validation batch and `predict` on a GPU: no mixing, and few host waits."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

from tests.conformance.conftest import smallest_models
from trainer.models.catalog import find
from trainer.tasks import Task

LIKE_OTHERS = {"vits16r224", "fasterrcnn_resnet18_fpn", "yolo11n-seg"}
"""Models whose every part another case rehearses."""
CASES = [
    f"{model}:{task}"
    for task, model in smallest_models()
    if task is not Task.MULTILABEL
    and model not in LIKE_OTHERS
    # rfdetr matches by a package that only its extra `train` brings.
    and find(model, task).card.library != "rfdetr"
    and find_spec(find(model, task).card.library) is not None
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


@pytest.mark.parametrize("case", CASES)
def test_transfer_and_step_do_not_wait(steps: dict[str, dict[str, Any]], case: str) -> None:
    assert waits(steps, case, "transfer") == {}
    assert waits(steps, case, "step") == {}
