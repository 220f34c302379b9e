"""The test suite's own promises: a missing system part skips on a user's machine and fails in CI."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Needs = Callable[[str, str], Path]


def test_a_program_that_is_there_is_found(needs: Needs, monkeypatch: pytest.MonkeyPatch) -> None:
    python = Path(sys.executable)
    monkeypatch.setenv("PATH", str(python.parent))
    assert needs(python.name, "it runs this test") == python


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_a_missing_program_skips_or_fails_and_says_how_to_install_it(
    needs: Needs, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match=r"needs no-such-program, .* apt-get install it"):
        needs("no-such-program", "apt-get install it")


def test_libraries_write_neither_home_nor_abroad() -> None:
    assert Path(os.environ["YOLO_CONFIG_DIR"]).is_dir()
    assert os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:///")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
