"""What tests of scoring send, and how they compare answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serving.scorer import Scorer
from trainer.tasks import Task

Packaged = Callable[..., Path]


def body(*rows: Any, **more: Any) -> dict[str, Any]:
    return {"input_data": {"columns": ["image"], "data": list(rows)}, **more}


def scorer_of(packaged: Packaged, task: Task = Task.CLASSIFICATION) -> Scorer:
    return Scorer.load(packaged(task) / "artifacts")


def check_error(answer: httpx.Response, status: int, code: str, reason: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert reason in error["message"]


def metric(client: httpx.Client, name: str) -> float:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(lines[0].split()[1])


def assert_alike(left: Any, right: Any) -> None:
    """Equal JSON, numbers but for the rounding that goes with a batch."""
    if isinstance(left, dict):
        assert set(left) == set(right)
        for key, value in left.items():
            assert_alike(value, right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_alike(one, other)
    elif isinstance(left, float):
        assert left == pytest.approx(right, abs=1e-4)
    else:
        assert left == right


def assert_close(one: Any, other: Any) -> None:
    np.testing.assert_allclose(numbers(one), numbers(other), atol=2e-3)


def assert_differ(one: Any, other: Any) -> None:
    assert numbers(one) != pytest.approx(numbers(other), abs=1e-6)


def numbers(answer: Any) -> list[float]:
    """All numbers in an answer but those of polygons, whose points may jump."""
    if isinstance(answer, dict):
        return [number for key, value in answer.items() if key != "polygon" for number in numbers(value)]
    if isinstance(answer, list):
        return [number for value in answer for number in numbers(value)]
    return [] if isinstance(answer, str) else [answer]
