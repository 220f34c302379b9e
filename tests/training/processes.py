"""Processes that tests start as a user does, and tiny jobs for them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import warm
from tests.training.conftest import rows
from trainer.data.samples import SampleData
from trainer.job.job import Job
from trainer.runs import Run
from trainer.tasks import Task

ROOT = Path(__file__).parents[2]

# A ViT has no batch norms: ranks that divide a batch train the same as one rank with all of it.
VIT = {"validation_crop_size": 32, "training_crop_size": 32, "number_of_workers": 0, "seed": 3}


def job(data: SampleData, output: Path, model: str = "timm/test_vit", **values: Any) -> Job:
    settings = {"number_of_workers": 0, "seed": 3, **values.pop("settings", {})}
    task = Task.CLASSIFICATION if model.startswith("timm/") else Task.DETECTION
    places = {"training_data": str(data.train), "validation_data": str(data.validation), "output": output}
    fixed = {"task": task, "model": model, "weights": "none", "gpus": 0, "tracking_uri": "none"}
    return Job(**{**places, **fixed, "settings": settings, **values})


def metrics_of(run: Run) -> list[dict[str, float]]:
    return [
        {name: float(value or "nan") for name, value in row.items() if name != "seconds"} for row in rows(run)
    ]


def start(command: Sequence[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def children(process: subprocess.Popen[str]) -> list[int]:
    found = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    return [pid for pid in found if Path(f"/proc/{pid}/comm").read_text().strip() != warm.NAME]
