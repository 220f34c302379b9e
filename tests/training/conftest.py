"""Small real data and jobs, shared by the tests of whole runs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from trainer.data.samples import SampleData, make
from trainer.job.job import Job
from trainer.runs import Run
from trainer.tasks import Task
from trainer.training.fit import fit

SMALL: dict[str, Any] = {
    "resnet18": {"training_crop_size": 48, "validation_crop_size": 48, "training_batch_size": 8},
    "yolo11n": {"image_size": 96, "training_batch_size": 4},
    "rtdetr-l": {},
    "timm/test_vit": {},
    "timm/test_resnet": {"training_crop_size": 48, "validation_crop_size": 48, "training_batch_size": 8},
    "maskrcnn_resnet18_fpn": {"min_size": 64, "max_size": 96},
}


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, SampleData]:
    # R-CNNs are slow on a CPU, and segmentation needs one: five images are enough.
    counts = {task: 5 if task is Task.SEGMENTATION else 20 for task in Task}
    return {task: make(task, tmp_path_factory.mktemp(task), images=counts[task], seed=1) for task in Task}


def job(digits: dict[Task, SampleData], task: Task, model: str, output: Path, **settings: Any) -> Job:
    return Job(
        task=task,
        training_data=(str(digits[task].train),),
        validation_data=(str(digits[task].validation),),
        model=model,
        weights="none",
        gpus=0,
        output=output,
        settings={"number_of_epochs": 2, "number_of_workers": 0, "seed": 7, **SMALL[model], **settings},
    )


def resume(directory: Path, settings: Mapping[str, Any], *, callbacks: Any = (), **changes: Any) -> Run:
    """Resume a run as trainer.resume does, but package no model."""
    run = Run.open(directory)
    job = Job.read(run.job, output=directory, settings=settings, **changes)
    return fit(job, earlier=run, callbacks=callbacks, packages=False)


def rows(run: Run) -> list[dict[str, str]]:
    with run.metrics.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def tracked_job(
    digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Job]:
    """tracked_job(name, tracking_uri=..., number_of_epochs=...) trains in tmp_path/runs/name."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    def make(name: str, **values: Any) -> Job:
        own = {key: values.pop(key) for key in tuple(values) if key in Job.model_fields}
        made = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "runs" / name, **values)
        return Job(**{**dict(made), **own})

    return make


@pytest.fixture(autouse=True)
def _warm_processes(warm_processes: None) -> None:
    """Training runs in processes of their own, and trials, start without importing anything."""
