"""Data that the commands' tests share."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.cli.program import trainer


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small detection set, made by the command."""
    folder = tmp_path_factory.mktemp("data") / "작은 숫자"
    done = trainer("sample-data", "object-detection", folder, "--images", 10)
    assert done.returncode == 0, done.stderr
    assert str(folder / "train.jsonl") in done.stdout
    typed = shlex.quote(str(folder / "train.jsonl"))
    assert f"trainer fit --task object-detection --data {typed}" in done.stdout
    return folder
