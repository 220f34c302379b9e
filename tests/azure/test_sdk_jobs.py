"""Jobs as Azure's own Python SDK writes them resolve, in YAML and in the REST form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trainer.errors import JobError
from trainer.files import is_prefixed_path
from trainer.job.job import Job
from trainer.sweep.search import prepare_search
from trainer.tasks import Task

ASSETS = {"fridge-items": "data/fridge"}


def test_every_job_of_the_sdk_resolves(sdk_jobs: Path) -> None:
    files = sorted(path for path in sdk_jobs.iterdir() if path.is_file())
    assert len(files) > 420
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


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_pipelines_of_the_sdk_run_as_the_node_that_is_chosen(sdk_jobs: Path, form: str) -> None:
    path = sdk_jobs / "component" / f"two-nodes.{form}"
    with pytest.raises(JobError, match="--node"):
        Job.read(path)
    job = Job.read(path, node="train_object_detection_model")
    resolved = job.resolve_settings()
    assert (job.task, job.model) == (Task.DETECTION, "yolov5")
    assert (resolved.number_of_epochs, resolved.learning_rate) == (5, 0.02)
    assert job.training_data == (str(path.parent / "data/training-mltable-folder"),)
    job = Job.read(path, node="node")
    assert (job.task, job.limits.max_trials) == (Task.CLASSIFICATION, 10)
    assert job.validation_data == (str(path.parent / "data/validation-mltable-folder"),)


def test_exponents_of_the_sdk_are_drawn_as_documented(sdk_jobs: Path) -> None:
    for form in ("yaml", "json"):
        space = prepare_search(Job.read(sdk_jobs / f"detection-space-loguniform.{form}")).space
        distribution = space.sub_spaces[0].distributions["learning_rate"]
        assert distribution.bounds == (math.exp(-9.2), math.exp(-4.6))


@pytest.mark.parametrize("form", ["yaml", "json"])
@pytest.mark.parametrize("task", ["classification", "multilabel", "detection", "segmentation"])
def test_jobs_take_the_target_column_of_the_sdk(task: str, form: str, sdk_jobs: Path) -> None:
    job = Job.read(sdk_jobs / f"{task}-target_column_name.{form}")
    assert job.target_column_name == "species"
    assert "target_column_name" not in job.ignored_keys


def test_values_of_the_sdk_mean_what_they_say(sdk_jobs: Path) -> None:
    def settings(name: str) -> dict[str, object]:
        return Job.read(sdk_jobs / name).resolve_settings().model_dump()

    assert settings("detection-log_training_metrics.yaml")["log_training_metrics"] == "Enable"
    assert settings("detection-log_validation_loss.yaml")["log_validation_loss"] == "Disable"
    assert settings("segmentation-optimizer.json")["optimizer"] == "adamw"


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_none_of_the_sdk_means_the_default(sdk_jobs: Path, form: str) -> None:
    path = sdk_jobs / f"detection-none.{form}"
    assert "none" in path.read_text().lower()
    resolved = Job.read(path).resolve_settings()
    assert (resolved.optimizer, resolved.learning_rate_scheduler) == ("sgd", "warmup_cosine")
    assert (resolved.model_size, resolved.validation_metric_type) == ("medium", "voc")


@pytest.mark.parametrize(
    ("path", "is_path"),
    [
        ("azureml:./data/train", True),
        ("azureml:../train", True),
        ("azureml:/data/train", True),
        ("azureml:C:\\data\\train", True),
        ("azureml:here", True),
        ("azureml:data/not-there", True),
        ("azureml:~/train", True),
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
