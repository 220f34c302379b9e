"""benchmarks/serving.py runs from end to end at a tiny size; what it measures there means nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_script_measures_and_prints_a_table(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "serving.py", "--models", "resnet18"]
    command += ["--network-size", "32", "--image-size", "64x48", "--clients", "3", "--rounds", "1"]
    command += ["--seconds", "1", "--warm-up", "0.3", "--memory", "--memory-requests", "60"]
    command += ["--contenders", "ceiling", "serve", "litserve"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ.copy(), capture_output=True, text=True, timeout=300, check=False
    )
    # 1 says that a goal was missed, as at this size it may be.
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in lines if line.startswith("| ")}
    assert float(rows["ceiling"][0].split()[0]) > 0
    assert float(rows["serve"][0].split()[0]) > 0
    assert float(rows["litserve"][0].split()[0]) > 0
    assert float(rows["serve"][1]) <= float(rows["serve"][3])  # p50 and p99, in ms
    assert any(line.startswith("- serve / ceiling: ") for line in lines)
    assert any("after 60: " in line and "MB after 6 requests" in line for line in lines)
    assert lines[-1].startswith("goals ")
