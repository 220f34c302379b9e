"""Runs programs of this folder on the simulated device (cuda.py), each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal.cuda import runtime_library

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def _runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_library(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="module")
def rehearse(
    request: pytest.FixtureRequest, needs: Callable[[str, str], Path]
) -> Callable[[str, list[str]], dict[str, dict[str, Any]]]:
    """rehearse("steps", ["resnet18:image-classification"]) → what the program printed, by case."""
    if sys.platform != "linux":
        pytest.skip("the simulated device needs LD_PRELOAD")
    needs("gcc", "apt-get install gcc")
    library = request.getfixturevalue("_runtime")

    def run(program: str, arguments: list[str]) -> dict[str, dict[str, Any]]:
        command = [sys.executable, "-m", f"tests.rehearsal.{program}", *arguments]
        environment = {**os.environ, "LD_PRELOAD": str(library)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=540)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
        return {line.pop("case"): line for line in lines}

    return run
