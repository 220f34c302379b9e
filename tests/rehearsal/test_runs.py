"""Whole runs on a GPU: training by Lightning, resume, packaging, and the service with explanations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def runs(
    rehearse: Callable[[str, list[str]], dict[str, dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What `tests.rehearsal.runs` said, by case."""
    directory: Path = tmp_path_factory.mktemp("runs")
    return rehearse("runs", [str(directory), "classifier", "detector"])


@pytest.mark.parametrize(
    ("case", "methods"),
    [
        ("classifier", ["xrai", "integrated_gradients", "guided_gradcam", "guided_backprop"]),
        ("detector", ["drise"]),
    ],
)
def test_run_trains_resumes_packages_and_serves_on_the_device(
    runs: dict[str, dict[str, Any]], case: str, methods: list[str]
) -> None:
    said = runs[case]
    assert "error" not in said, said["error"]
    assert (said["device"], said["served on"]) == ("cuda", "cuda")
    assert (said["epochs"], said["predictions"]) == (2, 2)
    assert said["backward"].keys() == {"bfloat16"}
    assert said["products"] == ["high"]
    assert said["exact backward"].keys() == {"float32"}
    assert said["exact products"] == ["highest"]
    assert said["afterwards"] == ["highest", "highest"]
    assert said["answers"] == [200, 8]
    for method in methods:
        assert said[method] == [200, 1], said[method]
