"""Parameters of earlier interfaces: honoured where they have a meaning, else named and ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.errors import JobError
from trainer.fitting import fit
from trainer.job.job import Job

DETECTION: dict[str, Any] = {"task": "image_object_detection", "training_data": {"path": "train"}}


def read(folder: Path, content: dict[str, Any], **changes: Any) -> Job:
    path = folder / "job.yml"
    path.write_text(yaml.safe_dump({**DETECTION, **content}), encoding="utf-8")
    return Job.read(path, **changes)


@pytest.mark.parametrize("section", ["training_parameters", "modelSettings", "image_model"])
@pytest.mark.parametrize("name", ["split_ratio", "splitRatio"])
def test_split_ratio_is_the_size_of_the_validation_data(tmp_path: Path, section: str, name: str) -> None:
    job = read(tmp_path, {section: {name: 0.3, "number_of_epochs": 2}})
    assert (job.validation_data_size, job.settings, job.ignored_keys) == (0.3, {"number_of_epochs": 2}, ())


def test_split_ratio_gives_way_to_the_jobs_own_size(tmp_path: Path) -> None:
    job = read(tmp_path, {"validation_data_size": 0.1, "training_parameters": {"split_ratio": 0.3}})
    assert (job.validation_data_size, job.ignored_keys) == (0.1, ("split_ratio",))


def test_parameters_without_effect_are_named(tmp_path: Path) -> None:
    parameters = {
        "checkpoint_dataset_id": "4711" * 100,
        "checkpoint_filename": "model.pt",
        "checkpoint_model": {"job_input_type": "mlflow_model", "uri": "azureml:apples:1"},
        "export_as_image": True,
        "image_type": "png",
        "augmentations": None,
    }
    space = {"model_name": "yolov5", "split_ratio": "uniform(0.1, 0.2)"}
    job = read(
        tmp_path, {"training_parameters": parameters, "search_space": [space], "limits": {"max_trials": 2}}
    )
    assert job.settings == {}
    assert job.search_space == ({"model_name": "yolov5"},)
    assert job.ignored_keys == (
        *(
            "checkpoint_dataset_id",
            "checkpoint_filename",
            "checkpoint_model",
            "export_as_image",
            "image_type",
        ),
        "search_space.split_ratio",
    )


@pytest.mark.parametrize("form", ["{0}", "azureml:{0}", {"path": "{0}"}, {"uri": "{0}"}])
def test_checkpoint_model_at_a_path_is_where_training_starts(tmp_path: Path, form: Any) -> None:
    (tmp_path / "model").mkdir()
    named = dict.fromkeys(form, "./model") if isinstance(form, dict) else form.format("./model")
    job = read(tmp_path, {"training_parameters": {"checkpoint_model": named}})
    assert job.weights_choice == str(tmp_path / "model")
    assert job.ignored_keys == ()


def test_checkpoint_model_at_a_path_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    job = read(tmp_path, {"training_parameters": {"checkpoint_model": {"path": "azureml:./no-model"}}})
    assert (job.weights_choice, job.ignored_keys) == (str(tmp_path / "no-model"), ())
    address = "/subscriptions/s/resourceGroups/g/workspaces/w/models/apples/versions/1"
    job = read(tmp_path, {"training_parameters": {"checkpoint_model": address}})
    assert (job.weights, job.ignored_keys) == (None, ("checkpoint_model",))


def test_checkpoint_in_a_mapped_asset_is_where_training_starts(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    parameters = {"checkpoint_dataset_id": 4711, "checkpoint_filename": "model.pt"}
    job = read(tmp_path, {"training_parameters": parameters}, data_assets={"4711": str(tmp_path / "run")})
    assert job.weights_choice == str(tmp_path / "run" / "model.pt")
    model = {"training_parameters": {"checkpoint_model": "azureml:apples:1"}}
    job = read(tmp_path, model, data_assets={"apples": str(tmp_path / "run")})
    assert job.weights_choice == str(tmp_path / "run")
    assert read(tmp_path, model, weights="none").weights_choice == "none"


def test_python_takes_former_parameters_too() -> None:
    settings = {"split_ratio": 0.25, "image_type": "png", "seed": 1}
    job = Job(task="object-detection", training_data="x", settings=settings)
    assert (job.validation_data_size, job.settings) == (0.25, {"seed": 1})
    assert job.ignored_keys == ("image_type",)
    assert job.changed(settings={"seed": 2}).validation_data_size == 0.25
    for model in (Path("runs/a"), "azureml:runs/a"):
        job = Job(task="object-detection", training_data="x", settings={"checkpoint_model": model})
        assert job.weights == "runs/a"


def test_data_settings_of_2022_are_read(tmp_path: Path) -> None:
    settings = {
        "targetColumnName": "label",
        "trainingData": {"data": {"jobInputType": "mltable", "uri": "train"}},
        "validationData": {"data": {"uri": "valid", "mode": "EvalDownload"}, "validationDataSize": 0.25},
        "testData": {"data": {"uri": "test"}, "testDataSize": 0.1},
    }
    body = {
        "properties": {
            "jobType": "AutoML",
            "taskDetails": {
                "taskType": "ImageObjectDetection",
                "dataSettings": settings,
                "limitSettings": {"timeout": "PT1H30M", "maxTrials": 1, "maxConcurrentTrials": 1},
                "sweepSettings": {
                    "limits": {"maxTrials": 20, "maxConcurrentTrials": 4},
                    "samplingAlgorithm": "Grid",
                },
                "searchSpace": [{"modelName": "choice('yolov5')"}],
            },
        }
    }
    path = tmp_path / "job.json"
    path.write_text(json.dumps(body))
    job = Job.read(path)
    assert job.training_data == (str(tmp_path / "train"),)
    assert job.validation_data == (str(tmp_path / "valid"),)
    assert job.validation_data_size == 0.25
    assert job.limits.model_dump() == {"timeout_minutes": 90, "max_trials": 20, "max_concurrent_trials": 4}
    assert {"test_data", "test_data_size", "validation_data.mode"} <= set(job.ignored_keys)


def test_parameters_without_effect_are_logged_when_the_job_is_run(caplog: pytest.LogCaptureFixture) -> None:
    job = Job(
        task="object-detection",
        training_data="x",
        settings={"image_type": "png"},
        search_space={"learning_rate": "uniform(0.1, 0.2)"},
    )
    with caplog.at_level("INFO", "trainer"), pytest.raises(JobError):
        fit(job, callbacks=[object()])  # which a sweep does not take
    assert "without effect here: image_type" in caplog.text
