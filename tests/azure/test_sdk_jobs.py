"""Jobs as Azure's own Python SDK writes them resolve, in YAML and in the REST form."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.job.job import Job
from trainer.job.places import is_prefixed_path
from trainer.sweep.search import prepare_search

ASSETS = {"fridge-items": "data/fridge"}


def test_every_job_of_the_sdk_resolves(sdk_jobs: Path) -> None:
    files = sorted(sdk_jobs.iterdir())
    assert len(files) > 400
    for file in files:
        job = Job.read(file, data_assets=ASSETS)
        if job.search_space:
            prepare_search(job, str(file))
        elif not job.sweeps:
            job.resolve_settings(str(file))


def test_local_inputs_of_the_sdk_are_paths_relative_to_the_job(sdk_jobs: Path) -> None:
    job = Job.read(sdk_jobs / "detection-image_size.yaml")
    assert job.training_data == (str(sdk_jobs / "data/training-mltable-folder"),)
    assert job.validation_data == (str(sdk_jobs / "data/validation-mltable-folder"),)


def test_values_of_the_sdk_mean_what_they_say(sdk_jobs: Path) -> None:
    def settings(name: str) -> dict[str, object]:
        return Job.read(sdk_jobs / name).resolve_settings().model_dump()

    assert settings("detection-log_training_metrics.yaml")["log_training_metrics"] == "Enable"
    assert settings("detection-log_validation_loss.yaml")["log_validation_loss"] == "Disable"
    assert settings("segmentation-optimizer.json")["optimizer"] == "adamw"


@pytest.mark.parametrize(
    ("path", "is_path"),
    [
        ("azureml:./data/train", True),
        ("azureml:../train", True),
        ("azureml:/data/train", True),
        ("azureml:C:\\data\\train", True),
        ("azureml:here", True),
        ("azureml:fridge:1", False),
        ("azureml:fridge@latest", False),
        ("azureml://datastores/x/paths/y", False),
        ("azureml:/subscriptions/s/data/fridge/versions/1", False),
        ("./data/train", False),
    ],
)
def test_prefixed_paths_are_told_from_registered_names(path: str, is_path: bool, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert is_prefixed_path(path, tmp_path) is is_path


def test_zero_layers_to_freeze_freeze_none() -> None:
    job = Job(task="object-detection", training_data="x", settings={"layers_to_freeze": 0})
    assert job.resolve_settings().layers_to_freeze is None
