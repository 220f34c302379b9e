"""benchmarks/serving.py runs from end to end at a tiny size; its measurements there say nothing."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import serving
from benchmarks.measuring import Measurements

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.usefixtures("warm_processes")
def test_the_script_measures_and_prints_a_table(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "serving.py", "--models", "resnet18"]
    command += ["--network-size", "32", "--image-size", "64x48", "--clients", "3", "--rounds", "1"]
    command += ["--seconds", "1", "--warm-up", "0.3", "--memory", "--memory-requests", "60"]
    command += ["--contenders", "ceiling", "serve", "mlflow", "litserve"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ.copy(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in lines if line.startswith("| ")}
    for contender in ("ceiling", "serve", "mlflow", "litserve"):
        assert float(rows[contender][0].split()[0]) > 0
    p50, _, p99 = (float(cell.replace(",", "")) for cell in rows["serve"][1:4])
    assert p50 <= p99
    assert any(line.startswith("- serve / ceiling: ") for line in lines)
    assert any("after 60: " in line and "MB after 6 requests" in line for line in lines)
    assert lines[-1].startswith("goals ")


def test_a_server_that_does_not_start_is_named_and_the_others_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def measure(arguments: argparse.Namespace, contender: str, model: Path) -> Measurements:
        if contender == "mlflow":
            with serving.running(contender, tmp_path / "no model", "cpu"):
                raise AssertionError("nothing was to be served")
        return {"rate": 2.0, "p50": 1.0, "p95": 1.0, "p99": 1.0, "cpu": 1.0}

    monkeypatch.setattr(serving, "measure", measure)
    arguments = argparse.Namespace(contenders=["serve", "mlflow"], rounds=2)
    assert not serving.compare(arguments, "resnet18", tmp_path), "a goal could not be looked at"
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[1][1].strip() == "2 (2–2)"
    assert rows[2][1].strip().startswith("failed in round 1: ")
