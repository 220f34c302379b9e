"""The other forms of a job: older YAML, what the Python SDK and the REST interface write, and SDK v1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.errors import JobError, Problem
from trainer.job.forms import snake_case
from trainer.job.job import Job
from trainer.settings import Settings
from trainer.tasks import Task

SDK = """\
$schema: https://azuremlschemas.azureedge.net/latest/autoMLJob.schema.json
id: azureml:/subscriptions/0/resourceGroups/g/workspaces/w/jobs/apples
name: good_apple_4711
display_name: good apples
status: Completed
type: automl
creation_context: {created_at: '2024-05-06T07:08:09.000000+00:00', created_by: Somebody}
services:
  Studio: {endpoint: 'https://example.org', type: Studio}
experiment_name: apples
compute: azureml:gpu-cluster
identity: {type: aml_token}
resources: {instance_count: 1, shm_size: 2g}
environment_variables: {}
outputs:
  best_model: {mode: rw_mount, type: mlflow_model}
properties: {mlflow.source.git.branch: main}
tags: {fruit: apple}
log_verbosity: info
task: image_object_detection
primary_metric: mean_average_precision
target_column_name: label
training_data: {mode: eval_mount, path: 'azureml:azureml_apples_input_data_training_data:1', type: mltable}
validation_data: {path: ./valid, type: mltable}
validation_data_size: 0.2
limits: {max_concurrent_trials: 2, max_trials: 6, timeout_minutes: 90}
training_parameters: {early_stopping: true, evaluation_frequency: 1, optimizer: sgd}
sweep:
  sampling_algorithm: Random
  early_termination:
    {delay_evaluation: 6, evaluation_interval: 2, slack_amount: 0.0, slack_factor: 0.2, type: bandit}
search_space:
- learning_rate: {max_value: 0.01, min_value: 0.0001, type: uniform}
  model_name: {type: choice, values: [yolov5]}
  model_size: {type: choice, values: [small, medium]}
- min_size: {type: choice, values: [600, 800]}
  model_name: fasterrcnn_resnet50_fpn
  optimizer: {type: choice, values: [sgd, adam, adamw]}
"""

TASK_DETAILS: dict[str, Any] = {
    "taskType": "ImageObjectDetection",
    "primaryMetric": "MeanAveragePrecision",
    "targetColumnName": "label",
    "logVerbosity": "Info",
    "trainingData": {"jobInputType": "mltable", "uri": "train", "mode": "ReadOnlyMount", "description": None},
    "validationData": None,
    "validationDataSize": 0.25,
    "limitSettings": {"maxTrials": 8, "maxConcurrentTrials": 2, "timeout": "PT1H30M"},
    "modelSettings": {
        "evaluationFrequency": 1,
        "earlyStopping": True,
        "checkpointModel": None,
        "learningRateScheduler": "WarmupCosine",
        "warmupCosineLRCycles": 0.4,
        "stepLRStepSize": 3,
    },
    "sweepSettings": {
        "samplingAlgorithm": "Bayesian",
        "earlyTermination": {"policyType": "MedianStopping", "evaluationInterval": 2, "delayEvaluation": 5},
    },
    "searchSpace": [
        {
            "modelName": "choice('yolov5')",
            "modelSize": "choice('small','medium')",
            "stepLRGamma": "uniform(0.1,0.9)",
        },
        {"modelName": "fasterrcnn_resnet50_fpn", "learningRate": "uniform(0.001,0.01)", "minSize": None},
    ],
}

BODY: dict[str, Any] = {
    "id": "/subscriptions/0/jobs/apples",
    "name": "apples",
    "type": "Microsoft.MachineLearningServices/workspaces/jobs",
    "systemData": {"createdAt": "2024-05-06T07:08:09Z"},
    "properties": {
        "jobType": "AutoML",
        "displayName": "good apples",
        "experimentName": "apples",
        "computeId": "/subscriptions/0/computes/gpu",
        "isArchived": False,
        "identity": {"identityType": "AMLToken"},
        "resources": {"instanceCount": 1},
        "tags": {"fruit": "apple"},
        "properties": {"node_count_per_trial": "2"},
        "outputs": None,
        "services": {},
        "taskDetails": TASK_DETAILS,
    },
}


def read(folder: Path, content: Any, name: str = "job.yml") -> tuple[Job, list[str]]:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    job = Job.read(path)
    return job, list(job.ignored_keys)


def read_v1(folder: Path, **content: Any) -> Job:
    together = {"task": "image-object-detection", "training_data": {"path": "train"}, **content}
    return read(folder, yaml.safe_dump(together))[0]


def problems_of(folder: Path, content: Any) -> list[Problem]:
    with pytest.raises(JobError) as caught:
        read(folder, content)
    return list(caught.value.problems)


def test_python_sdk_form_is_read(tmp_path: Path) -> None:
    mapped = SDK + "local: {data_assets: {azureml_apples_input_data_training_data: train}}\n"
    job, ignored = read(tmp_path, mapped)
    content = yaml.safe_load(SDK)
    assert (job.task, job.name, job.metric) == (Task.DETECTION, "good apples", "mean_average_precision")
    assert (job.training_data, job.validation_data) == (
        (str(tmp_path / "train"),),
        (str(tmp_path / "valid"),),
    )
    assert job.limits.model_dump() == content["limits"]
    assert job.settings == content["training_parameters"]
    assert list(job.search_space) == content["search_space"]
    assert job.sweep is not None
    assert job.sweep.sampling_algorithm.type == "random"
    assert job.sweep.early_termination == content["sweep"]["early_termination"]
    assert ignored == [
        "compute", "creation_context", "id", "identity", "log_verbosity", "outputs",
        "properties", "resources", "services", "status", "tags", "training_data.mode",
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["whole body", "its properties", "the task alone"])
@pytest.mark.parametrize("name", ["job.json", "job.yml"])
def test_rest_form_is_read(tmp_path: Path, form: str, name: str) -> None:
    bodies = {"whole body": BODY, "its properties": BODY["properties"], "the task alone": TASK_DETAILS}
    job, ignored = read(tmp_path, bodies[form], name)
    assert (job.task, job.metric) == (Task.DETECTION, "mean_average_precision")
    assert job.training_data == (str(tmp_path / "train"),)
    assert (job.validation_data, job.validation_data_size) == ((), 0.25)
    assert job.limits.model_dump() == {"timeout_minutes": 90, "max_trials": 8, "max_concurrent_trials": 2}
    assert job.settings == {
        "evaluation_frequency": 1,
        "early_stopping": True,
        "learning_rate_scheduler": "WarmupCosine",
        "warmup_cosine_lr_cycles": 0.4,
        "step_lr_step_size": 3,
    }
    assert job.sweep is not None
    assert job.sweep.sampling_algorithm.type == "bayesian"
    assert job.sweep.early_termination == {
        "type": "median_stopping",
        "evaluation_interval": 2,
        "delay_evaluation": 5,
    }
    assert job.search_space == (
        {
            "model_name": "choice('yolov5')",
            "model_size": "choice('small','medium')",
            "step_lr_gamma": "uniform(0.1,0.9)",
        },
        {"model_name": "fasterrcnn_resnet50_fpn", "learning_rate": "uniform(0.001,0.01)"},
    )
    assert job.target_column_name == "label"
    assert {"log_verbosity", "training_data.mode"} <= set(ignored)
    if form != "the task alone":
        assert (job.name, job.nodes) == ("good apples", 2)
        assert job.experiment_name == "apples"
        assert {"compute", "identity", "resources", "tags"} <= set(ignored)
        assert not {"properties", "outputs", "services"} & set(ignored)


def test_members_of_the_sdks_enumerations_are_read(tmp_path: Path) -> None:
    text = """\
task: TaskType.IMAGE_OBJECT_DETECTION
primary_metric: ObjectDetectionPrimaryMetrics.MEAN_AVERAGE_PRECISION
training_data: {path: train, type: AssetTypes.MLTABLE}
"""
    job, _ = read(tmp_path, text)
    assert (job.task, job.metric) == (Task.DETECTION, "mean_average_precision")


@pytest.mark.parametrize("key", ["target_column_name", "targetColumnName", "label_column_name"])
def test_target_column_has_a_name_in_every_form(tmp_path: Path, key: str) -> None:
    content = {"task": "image_classification", "training_data": {"path": "train"}, key: "species"}
    job, ignored = read(tmp_path, content, "job.yml")
    assert (job.target_column_name, ignored) == ("species", [])
    assert yaml.safe_load(job.to_yaml())["target_column_name"] == "species"


def test_snake_case_recovers_every_settings_name() -> None:
    for name in Settings.model_fields:
        first, *others = name.split("_")
        camel = first + "".join(word.upper() if word == "lr" else word.capitalize() for word in others)
        assert snake_case(camel) == name


@pytest.mark.parametrize(
    ("duration", "minutes"),
    [
        *(("PT60M", 60), ("PT2H", 120), ("P1D", 1440), ("P1DT1H1M", 1501), ("PT90S", 2), ("pt0.5h", 30)),
        *(("P1W", 10080), ("P1W1DT1H", 11580)),
        *((60, 60), ("60", 60), ("PT1H30M", 90), ("PT0.1H", 6)),
    ],
)
def test_duration_becomes_minutes(tmp_path: Path, duration: Any, minutes: int) -> None:
    job, _ = read(tmp_path, TASK_DETAILS | {"limitSettings": {"timeout": duration, "maxTrials": 2}})
    assert job.limits.timeout_minutes == minutes
    text = yaml.safe_dump({"task": "object-detection", "training_data": "a", "limits": {"timeout": duration}})
    assert read(tmp_path, text)[0].limits.timeout_minutes == minutes
    for name in ("timeout", "timeout_minutes"):
        job = Job(task="object-detection", training_data="a", limits={name: duration})
        assert job.limits.timeout_minutes == minutes


@pytest.mark.parametrize("duration", ["PT", "P", "", "PT0M", 0, -1, True, "one hour"])
def test_malformed_duration_is_rejected_with_an_example(tmp_path: Path, duration: Any) -> None:
    (problem,) = problems_of(
        tmp_path, TASK_DETAILS | {"limitSettings": {"timeout": duration, "maxTrials": 2}}
    )
    assert problem.field == "limits.timeout"
    assert "PT60M" in problem.rule


def test_older_form_has_limits_inside_the_sweep(tmp_path: Path) -> None:
    text = """\
task: image_instance_segmentation
training_data: {path: train}
limits: {timeout_minutes: 60, max_trials: 1, max_concurrent_trials: 1}
image_model: {early_stopping: True}
sweep:
  limits: {max_trials: 10, max_concurrent_trials: 2}
  sampling_algorithm: random
search_space:
  - model_name: "maskrcnn_resnet50_fpn"
    learning_rate: "uniform(0.0001, 0.001)"
"""
    job, _ = read(tmp_path, text)
    assert job.limits.model_dump() == {"timeout_minutes": 60, "max_trials": 10, "max_concurrent_trials": 2}
    assert job.settings == {"early_stopping": True}
    assert job.search_space == (
        {"model_name": "maskrcnn_resnet50_fpn", "learning_rate": "uniform(0.0001, 0.001)"},
    )


def test_sdk_v1_arguments_are_read(tmp_path: Path) -> None:
    job = read_v1(
        tmp_path,
        compute_target="gpu-cluster",
        label_column_name="label",
        validation_size=0.3,
        hyperparameter_sampling={
            "name": "RandomParameterSampling",
            "seed": 3,
            "parameter_space": {
                "model_name": ["choice", [["yolov5", "fasterrcnn_resnet50_fpn"]]],
                "learning_rate": ["uniform", [0.001, 0.01]],
                "weight_decay": ["loguniform", [-9, -7]],
                "optimizer": ["choice", ["sgd", "adam"]],
            },
        },
        policy={"name": "BanditPolicy", "properties": {"slack_factor": 0.2, "evaluation_interval": 2}},
        iterations=20,
        max_concurrent_iterations=4,
        experiment_timeout_hours=0.25,
        arguments=["--early_stopping", 1, "--grad_accumulation_step", 2],
        checkpoint_run_id="0123456789abcdef0123456789abcdef",
    )
    assert job.task is Task.DETECTION
    assert job.limits.model_dump() == {"timeout_minutes": 15, "max_trials": 20, "max_concurrent_trials": 4}
    assert job.validation_data_size == 0.3
    assert job.settings == {
        "early_stopping": 1,
        "grad_accumulation_step": 2,
        "checkpoint_run_id": "0123456789abcdef0123456789abcdef",
    }
    assert job.search_space == (
        {
            "model_name": {"type": "choice", "values": ["yolov5", "fasterrcnn_resnet50_fpn"]},
            "learning_rate": "uniform(0.001, 0.01)",
            "weight_decay": "loguniform(-9, -7)",
            "optimizer": {"type": "choice", "values": ["sgd", "adam"]},
        },
    )
    assert job.sweep is not None
    algorithm = job.sweep.sampling_algorithm
    assert (algorithm.type, algorithm.seed) == ("random", 3)
    assert job.sweep.early_termination == {"type": "bandit", "slack_factor": 0.2, "evaluation_interval": 2}


def test_sdk_v1_choice_of_maps_becomes_sub_spaces(tmp_path: Path) -> None:
    models = [
        {"model_name": "choice('yolov5')", "model_size": "choice('small', 'medium')"},
        {"model_name": "choice('fasterrcnn_resnet50_fpn')", "min_size": "choice(600, 800)"},
    ]
    sampling = {
        "name": "GRID",
        "parameter_space": {"seed": "choice(1, 2)", "model": {"type": "choice", "values": models}},
    }
    job = read_v1(tmp_path, hyperparameter_sampling=sampling, iterations=3)
    assert job.search_space == tuple({"seed": "choice(1, 2)", **model} for model in models)
    assert job.sweep is not None
    assert job.sweep.sampling_algorithm.type == "grid"


@pytest.mark.parametrize("policy", ["NoTerminationPolicy", {"name": "DEFAULT"}, {"policyType": "none"}])
def test_names_for_no_policy_are_read_as_none(tmp_path: Path, policy: Any) -> None:
    job = read_v1(tmp_path, early_termination_policy=policy, iterations=2)
    assert job.sweep is None


@pytest.mark.parametrize(
    "name",
    [
        *("BayesianParameterSampling", "BAYESIANOPTIMIZATION", "Bayesian", "bayesian"),
        "SamplingAlgorithmType.BAYESIAN",
    ],
)
def test_sampling_algorithm_may_have_any_of_azures_names(tmp_path: Path, name: str) -> None:
    job = read_v1(tmp_path, hyperparameter_sampling=name, iterations=2)
    assert job.sweep is not None
    assert job.sweep.sampling_algorithm.type == "bayesian"


@pytest.mark.parametrize(("hours", "minutes"), [(2, 120), ("0.5", 30), (0.01, 1)])
def test_sdk_v1_hours_become_minutes(tmp_path: Path, hours: Any, minutes: int) -> None:
    assert read_v1(tmp_path, experiment_timeout_hours=hours).limits.timeout_minutes == minutes


@pytest.mark.parametrize("hours", [10**400, 0, -1, "an hour", float("nan"), True, [1]])
def test_hours_must_be_a_positive_number(tmp_path: Path, hours: Any) -> None:
    with pytest.raises(JobError, match="experiment_timeout_hours: must be a number of hours over 0"):
        read_v1(tmp_path, experiment_timeout_hours=hours)


@pytest.mark.parametrize("arguments", ["--seed 1", ["--seed"], ["seed", 1], [1, 2]])
def test_sdk_v1_arguments_must_be_pairs(tmp_path: Path, arguments: Any) -> None:
    (problem,) = problems_of(
        tmp_path, {"task": "image-object-detection", "training_data": "a", "arguments": arguments}
    )
    assert problem.field == "arguments"


def test_contradicting_spellings_of_a_key_are_rejected(tmp_path: Path) -> None:
    content = {
        "task": "image_classification",
        "taskType": "ImageObjectDetection",
        "training_data": {"path": "a", "uri": "b"},
        "limits": {"max_trials": 3},
        "iterations": 4,
    }
    problems = {problem.field: problem.rule for problem in problems_of(tmp_path, content)}
    assert problems == {
        "taskType": "contradicts task, its other name",
        "training_data.uri": "contradicts path, its other name",
        "iterations": "contradicts limits.max_trials, its other name",
    }


@pytest.mark.parametrize(
    "task",
    [{"task": None, "taskType": "ImageObjectDetection"}, {"task": "image_object_detection"}],
    ids=["rest", "yaml"],
)
def test_null_under_one_spelling_leaves_the_value_of_the_other(task: Any, tmp_path: Path) -> None:
    job, _ = read(
        tmp_path,
        {
            **task,
            "training_data": {"path": "a", "uri": None, "type": None, "mode": None},
            "limits": {"max_trials": 3, "maxTrials": None},
            "iterations": None,
            "validation_data_size": 0.3,
            "data_settings": {"validation_data_size": None},
            "training_parameters": {"learningRate": 0.1, "learning_rate": None, "nesterov": None},
            "search_space": [{"optimizer": "choice('sgd', 'adam')"}],
            "sweep": {"sampling_algorithm": {"type": None}, "early_termination": {"type": None}},
        },
    )
    assert job.sweep is not None
    assert (job.sweep.sampling_algorithm.type, job.sweep.early_termination) == ("random", None)
    assert job.task is Task.DETECTION
    assert (job.limits.max_trials, job.validation_data_size) == (3, 0.3)
    assert [Path(path).name for path in job.training_data] == ["a"]
    assert job.settings["learning_rate"] == 0.1


def test_null_leaves_a_setting_to_its_default_unless_it_is_a_value(tmp_path: Path) -> None:
    nulls = ("learning_rate", "number_of_epochs", "layers_to_freeze", "advanced_settings")
    content = {"task": "image_object_detection", "training_data": "a"}
    job, _ = read(tmp_path, content | {"training_parameters": dict.fromkeys(nulls)})
    default, _ = read(tmp_path, content | {"training_parameters": {"layers_to_freeze": None}})
    assert job.resolve_settings() == default.resolve_settings()
    assert job.resolve_settings().layers_to_freeze is None  # by default 2 for this model


def test_unknown_key_is_reported_in_its_own_spelling(tmp_path: Path) -> None:
    details = TASK_DETAILS | {"primaryMetrics": "x", "limitSettings": {"maxTrails": 3}}
    problems = {problem.field: problem.hint for problem in problems_of(tmp_path, {"taskDetails": details})}
    assert problems == {
        "primaryMetrics": "did you mean primary_metric?",
        "limits.maxTrails": "did you mean max_trials?",
    }
    job, _ = read(
        tmp_path,
        TASK_DETAILS
        | {
            "modelSettings": {"learningRte": 1},
            "searchSpace": None,
            "sweepSettings": None,
            "limitSettings": None,
        },
    )
    with pytest.raises(JobError, match=r"learningRte: is not a setting; did you mean learning_rate"):
        job.resolve_settings()


def test_null_is_unset_in_rest_and_a_value_in_yaml(tmp_path: Path) -> None:
    body = TASK_DETAILS | {"modelSettings": {"layersToFreeze": None}}
    assert read(tmp_path, body)[0].settings == {}
    text = "task: object-detection\ntraining_data: a\ntraining_parameters: {layers_to_freeze: null}\n"
    assert read(tmp_path, text)[0].settings == {"layers_to_freeze": None}
