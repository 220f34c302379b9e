"""Pipelines: one of their nodes is read as a job; nodes of Azure's catalog components too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.errors import JobError, Problem
from trainer.job.job import Job
from trainer.tasks import Task

# As in Azure's example pipelines.
PIPELINE = """\
$schema: https://azuremlschemas.azureedge.net/latest/pipelineJob.schema.json
type: pipeline
display_name: pipeline-with-automl
experiment_name: fridge
settings: {default_compute: azureml:gpu-cluster}
inputs:
  train: {type: mltable, path: data/training-mltable-folder}
  valid: {type: mltable, path: azureml:./data/validation-mltable-folder, mode: ro_mount}
  metric: accuracy
  epochs: {type: integer, default: 7}
  rate: 0.02
jobs:
  prepare:
    type: command
    component: file:./components/prepare.yaml
    inputs: {raw: "${{parent.inputs.train}}"}
  automl_node:
    type: automl
    task: image_classification
    primary_metric: ${{parent.inputs.metric}}
    limits: {max_trials: 4, max_concurrent_trials: 2}
    target_column_name: label
    training_data: ${{parent.inputs.train}}
    validation_data: {path: "${{ parent.inputs.valid }}", type: mltable}
    training_parameters: {number_of_epochs: "${{parent.inputs.epochs}}"}
    search_space:
      - model_name: seresnext
        learning_rate: {type: choice, values: [0.01, "${{parent.inputs.rate}}"]}
    outputs:
      best_model: {type: mlflow_model}
  tables:
    type: automl
    task: classification
    training_data: ${{parent.inputs.train}}
  register:
    type: command
    component: file:./components/register.yaml
    inputs: {model: "${{parent.jobs.automl_node.outputs.best_model}}"}
"""
REGISTRY = "azureml://registries/azureml/components"


def write(folder: Path, content: Any) -> Path:
    path = folder / "pipeline.yml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def problems_of(path: Path, **changes: Any) -> list[Problem]:
    with pytest.raises(JobError) as caught:
        Job.read(path, **changes)
    return list(caught.value.problems)


def component(folder: Path, reference: Any, inputs: dict[str, Any], **more: Any) -> Path:
    """A pipeline with one node of a component."""
    node = {"type": "command", "component": reference, "inputs": {"training_data": "t", **inputs}, **more}
    return write(folder, {"type": "pipeline", "jobs": {"train": node}})


def test_the_only_node_for_images_runs_with_the_pipelines_inputs(tmp_path: Path) -> None:
    job = Job.read(write(tmp_path, PIPELINE))
    assert (job.task, job.metric, job.name) == (Task.CLASSIFICATION, "accuracy", "automl_node")
    assert job.experiment_name == "fridge"
    assert job.training_data == (str(tmp_path / "data/training-mltable-folder"),)
    assert job.validation_data == (str(tmp_path / "data/validation-mltable-folder"),)
    assert job.settings == {"number_of_epochs": 7}
    assert job.limits.max_trials == 4
    assert job.search_space == (
        {"model_name": "seresnext", "learning_rate": {"type": "choice", "values": [0.01, 0.02]}},
    )
    left_out = {"jobs.prepare", "jobs.register", "jobs.tables", "settings", "outputs"}
    assert left_out <= set(job.ignored_keys)


def test_one_of_several_nodes_is_chosen_by_its_name(tmp_path: Path) -> None:
    content = yaml.safe_load(PIPELINE)
    second = {"type": "automl", "task": "image_object_detection", "training_data": "boxes"}
    content["jobs"]["detect"] = second
    path = write(tmp_path, content)
    (problem,) = problems_of(path)
    assert "2 nodes that train image models: automl_node, detect" in problem.rule
    assert "--node automl_node" in problem.hint
    assert Job.read(path, node="detect").task is Task.DETECTION
    assert Job.read(path, node="automl_node").task is Task.CLASSIFICATION
    (problem,) = problems_of(path, node="detct")
    assert problem.hint == "did you mean detect?"
    (problem,) = problems_of(path, node="tables")
    assert problem.hint == "there are automl_node, detect"


def test_pipeline_without_a_node_for_images_is_rejected_with_its_nodes(tmp_path: Path) -> None:
    text = "type: pipeline\njobs:\n  a: {type: command}\n  b: {type: automl, task: text_ner}\n"
    (problem,) = problems_of(write(tmp_path, text))
    assert "its nodes are a, b" in problem.rule
    (problem,) = problems_of(component(tmp_path, "file:./parts/spec.yaml", {}))
    assert problem.hint.endswith(f"; missing component files: {tmp_path / 'parts/spec.yaml'}")


def test_misspelt_task_of_a_node_is_reported_as_such(tmp_path: Path) -> None:
    text = "type: pipeline\njobs:\n  a: {type: automl, task: image_clasification, training_data: x}\n"
    (problem,) = problems_of(write(tmp_path, text))
    assert problem.field == "task"


def test_node_of_a_file_that_is_no_pipeline_is_rejected(tmp_path: Path) -> None:
    (problem,) = problems_of(write(tmp_path, "task: object-detection\ntraining_data: x\n"), node="a")
    assert problem.field == "--node"


def test_data_that_another_node_makes_must_be_given(tmp_path: Path) -> None:
    content = yaml.safe_load(PIPELINE)
    content["jobs"]["automl_node"]["training_data"] = "${{parent.jobs.prepare.outputs.train}}"
    path = write(tmp_path, content)
    (problem,) = problems_of(path)
    assert problem.field == "jobs.automl_node.training_data"
    assert "made by the node prepare" in problem.rule
    assert "--data PATH" in problem.hint
    assert Job.read(path, training_data="mine.jsonl").training_data == ("mine.jsonl",)


@pytest.mark.parametrize(
    ("inputs", "rule"),
    [
        (
            {"trein": "a"},
            "must be an input of the pipeline, got ${{parent.inputs.train}}; did you mean trein?",
        ),
        ({"train": {"type": "mltable"}}, "the pipeline's input train has no value; write it there"),
        (None, "must be an input of the pipeline"),
    ],
)
def test_input_without_a_value_is_rejected(tmp_path: Path, inputs: Any, rule: str) -> None:
    node = {"type": "automl", "task": "image_classification", "training_data": "${{parent.inputs.train}}"}
    (problem,) = problems_of(write(tmp_path, {"type": "pipeline", "inputs": inputs, "jobs": {"n": node}}))
    assert str(problem).startswith(f"{tmp_path / 'pipeline.yml'}: jobs.n.training_data: {rule}")


@pytest.mark.parametrize(
    "reference",
    [
        "train_object_detection_model",
        "azureml:train_object_detection_model:0.0.13",
        "azureml:train_object_detection_model@latest",
        f"{REGISTRY}/train_object_detection_model/versions/0.0.13",
        f"{REGISTRY}/train_object_detection_model/labels/latest",
        "azureml:/subscriptions/s/resourceGroups/g/workspaces/w/components/train_object_detection_model/versions/1",
        "file:./spec.yaml",
        "./spec.yaml",
        {"name": "train_object_detection_model", "type": "command", "inputs": {}},
        "name: train_object_detection_model\nversion: 1\n",
    ],
)
def test_components_are_recognised_however_they_are_referred_to(tmp_path: Path, reference: Any) -> None:
    (tmp_path / "spec.yaml").write_text("name: train_object_detection_model\ntype: command\n")
    job = Job.read(component(tmp_path, reference, {"model_name": "yolov5", "number_of_epochs": 3}))
    assert (job.task, job.model, job.settings) == (Task.DETECTION, "yolov5", {"number_of_epochs": 3})
    assert job.training_data == (str(tmp_path / "t"),)


@pytest.mark.parametrize(
    ("name", "inputs", "task"),
    [
        ("train_image_classification_model", {"task_type": "image-classification"}, Task.CLASSIFICATION),
        (
            "train_image_classification_model",
            {"task_type": "image-classification-multilabel"},
            Task.MULTILABEL,
        ),
        ("train_instance_segmentation_model", {}, Task.SEGMENTATION),
        ("image_classification_pipeline", {"task_type": "image-classification"}, Task.CLASSIFICATION),
        ("image_object_detection_pipeline", {"task_type": "image-object-detection"}, Task.DETECTION),
        ("image_instance_segmentation_pipeline", {}, Task.SEGMENTATION),
        (
            "transformers_image_classification_pipeline",
            {"task_name": "image-classification-multilabel"},
            Task.MULTILABEL,
        ),
        (
            "mmdetection_image_objectdetection_instancesegmentation_pipeline",
            {"task_name": "image-instance-segmentation"},
            Task.SEGMENTATION,
        ),
    ],
)
def test_every_component_has_its_task(tmp_path: Path, name: str, inputs: Any, task: Task) -> None:
    assert Job.read(component(tmp_path, f"{REGISTRY}/{name}/versions/1", inputs)).task is task


def test_older_components_inputs_have_their_meaning(tmp_path: Path) -> None:
    inputs = {
        "task_name": "image-classification",
        "mlflow_model": {
            "type": "mlflow_model",
            "path": "azureml://registries/azureml/models/google-vit-base-patch16-224/versions/5",
        },
        "metric_for_best_model": "accuracy",
        "image_width": 384,
        "image_height": "384",
        "optimizer": "adamw_hf",
        "extra_optim_args": '"momentum=0.5; nesterov=True"',
        "max_grad_norm": 1.0,
        "label_smoothing_factor": 0.1,
        "apply_augmentations": False,
        "warmup_steps": 10,
        "compute_finetune": "gpu",
        "learning_rate": {"value": "5e-5", "job_input_type": "literal"},
        "max_steps": -1,
        "test_data": {"type": "mltable", "path": "t"},
    }
    path = component(tmp_path, f"{REGISTRY}/transformers_image_classification_pipeline/labels/latest", inputs)
    job = Job.read(path)
    resolved = job.resolve_settings()
    assert job.model == "google/vit-base-patch16-224"
    assert (resolved.learning_rate, resolved.optimizer, resolved.momentum) == (5e-5, "adamw", 0.5)
    assert (resolved.training_crop_size, resolved.validation_crop_size) == (384, 384)
    assert (resolved.gradient_clip_norm, resolved.label_smoothing) == (1.0, 0.1)
    assert (resolved.early_stopping, resolved.random_seed) == (False, 42)
    assert not resolved.advanced_settings.apply_automl_train_augmentations
    assert set(job.ignored_keys) == {"inputs.warmup_steps", "inputs.compute_finetune", "test_data"}


def test_a_name_on_the_hub_keeps_its_revision_and_a_registered_one_has_none(tmp_path: Path) -> None:
    kind = f"{REGISTRY}/transformers_image_classification_pipeline/labels/latest"
    for given, model in (("acme/tiny@0123abc", "acme/tiny@0123abc"), ("azureml:resnet18@latest", "resnet18")):
        inputs = {"task_name": "image-classification", "model_name": given}
        assert Job.read(component(tmp_path, kind, inputs)).model == model


def test_values_of_components_with_wrong_types_or_tasks_are_rejected(tmp_path: Path) -> None:
    inputs = {"task_type": "image-classification", "model_name": "yolov5"}
    (problem,) = problems_of(component(tmp_path, "train_object_detection_model", inputs))
    assert problem.field == "jobs.train.inputs.task_type"
    assert problem.rule == "must be object-detection, the task of train_object_detection_model"
    job = Job.read(component(tmp_path, "train_object_detection_model", {"optimizer": ["sgd"]}))
    with pytest.raises(JobError, match="optimizer"):
        job.resolve_settings()


def test_wrong_inputs_of_a_component_are_rejected(tmp_path: Path) -> None:
    inputs = {"lerning_rate": 1, "image_width": 224, "image_height": 384, "task_name": "image-classification"}
    problems = problems_of(component(tmp_path, "transformers_image_classification_pipeline", inputs))
    assert {problem.field: problem.hint or problem.rule for problem in problems} == {
        "jobs.train.inputs.lerning_rate": "did you mean learning_rate?",
        "jobs.train.inputs.image_height": "must equal image_width; images are cropped to squares",
    }


@pytest.mark.parametrize(
    "inputs",
    [
        {"mlflow_model": "azureml:vit-base:1", "model_name": "microsoft/beit-base-patch16-224"},
        {"metric_for_best_model": "loss", "primary_metric": "accuracy"},
        {"label_column_name": "a", "target_column_name": "b"},
        {"gradient_clip_norm": 2, "max_grad_norm": 1},
        {"extra_optim_args": "momentum=0.5", "momentum": 0.9},
        {"image_width": 32, "training_crop_size": 64},
    ],
)
def test_inputs_that_contradict_each_other_are_both_named(tmp_path: Path, inputs: Any) -> None:
    first, second = inputs
    inputs = {"task_name": "image-classification", **inputs}
    (problem,) = problems_of(component(tmp_path, "transformers_image_classification_pipeline", inputs))
    assert problem.field == f"jobs.train.inputs.{second}"
    assert problem.rule.startswith(f"contradicts inputs.{first}, which says ")


def test_two_names_of_one_model_agree(tmp_path: Path) -> None:
    inputs = {
        "task_name": "image-classification",
        "model_name": "google/vit-base-patch16-224",
        "mlflow_model": "azureml://registries/azureml/models/google-vit-base-patch16-224/versions/5",
    }
    path = component(tmp_path, "transformers_image_classification_pipeline", inputs)
    assert Job.read(path).model == "google/vit-base-patch16-224"


@pytest.mark.parametrize("text", ["momentum", "momentum=0.5; nesterov", "=0.5", "momentum=", "a=b=c", 0.5])
def test_optimizer_arguments_have_names_and_values(tmp_path: Path, text: Any) -> None:
    inputs = {"task_name": "image-classification", "extra_optim_args": text}
    (problem,) = problems_of(component(tmp_path, "transformers_image_classification_pipeline", inputs))
    assert problem.rule == "must be name=value, or several of these separated by ;"
    assert problem.got == repr(text)


def test_rest_form_of_a_pipeline_is_read(tmp_path: Path) -> None:
    inputs = {
        "training_data": {"value": "${{parent.inputs.train}}", "job_input_type": "literal"},
        "number_of_epochs": {"value": "${{parent.inputs.epochs}}", "job_input_type": "literal"},
        "learning_rate": {"value": "0.01", "job_input_type": "literal"},
    }
    body = {
        "properties": {
            "jobType": "Pipeline",
            "experimentName": "fridge",
            "inputs": {
                "train": {"uri": "./data/train", "jobInputType": "mltable"},
                "epochs": {"value": "5", "jobInputType": "literal"},
            },
            "jobs": {
                "train": {
                    "type": "command",
                    "computeId": "gpu",
                    "componentId": "name: train_object_detection_model\ntype: command\n",
                    "inputs": inputs,
                }
            },
        }
    }
    path = tmp_path / "pipeline.json"
    path.write_text(json.dumps(body))
    job = Job.read(path)
    resolved = job.resolve_settings()
    assert (job.task, job.experiment_name) == (Task.DETECTION, "fridge")
    assert job.training_data == (str(tmp_path / "data/train"),)
    assert (resolved.number_of_epochs, resolved.learning_rate) == (5, 0.01)


@pytest.mark.parametrize("kind", ["inline", "component", "file"])
def test_node_of_a_pipeline_inside_the_pipeline_runs_with_the_outer_inputs(tmp_path: Path, kind: str) -> None:
    inner = {
        "type": "pipeline",
        "inputs": {"data": {"type": "mltable"}, "epochs": {"type": "integer", "default": 3}, "rate": 0.1},
        "jobs": {
            "train": {
                "type": "automl",
                "task": "image_object_detection",
                "training_data": "${{parent.inputs.data}}",
                "training_parameters": {
                    "number_of_epochs": "${{parent.inputs.epochs}}",
                    "learning_rate": "${{parent.inputs.rate}}",
                },
            }
        },
    }
    (tmp_path / "inner.yml").write_text(yaml.safe_dump(inner))
    given = {"data": "${{parent.inputs.train}}", "rate": {"path": "${{parent.inputs.rate}}"}}
    node: dict[str, Any] = {
        "inline": {**inner, "inputs": {**inner["inputs"], **given}},
        "component": {"type": "pipeline", "component": inner, "inputs": given},
        "file": {"type": "pipeline", "component": "./inner.yml", "inputs": given},
    }[kind]
    inputs = {"train": {"type": "mltable", "path": "./t"}, "rate": 0.02}
    job = Job.read(write(tmp_path, {"type": "pipeline", "inputs": inputs, "jobs": {"outer": node}}))
    assert job.training_data == (str(tmp_path / "t"),)
    assert job.settings == {"number_of_epochs": 3, "learning_rate": 0.02}
    assert (job.name, job.ignored_keys) == ("train", ())


def test_component_file_that_refers_to_itself_ends(tmp_path: Path) -> None:
    node = {"type": "pipeline", "component": "./pipeline.yml"}
    (problem,) = problems_of(write(tmp_path, {"type": "pipeline", "jobs": {"a": node, "b": node}}))
    assert "without a node that trains an image model" in problem.rule


@pytest.mark.parametrize("root", ["./data", {"type": "uri_folder", "path": "azureml:./data"}])
def test_expression_may_be_part_of_a_path(tmp_path: Path, root: Any) -> None:
    content = yaml.safe_load(PIPELINE)
    content["inputs"]["root"] = root
    content["jobs"]["automl_node"]["training_data"] = "${{parent.inputs.root}}/train"
    assert Job.read(write(tmp_path, content)).training_data == (str(tmp_path / "data/train"),)


def test_local_options_that_are_no_mapping_are_reported(tmp_path: Path) -> None:
    content = yaml.safe_load(PIPELINE)
    content["local"] = {"gpus": 0}
    assert Job.read(write(tmp_path, content)).gpus == 0
    content["jobs"]["automl_node"]["local"] = "x"
    (problem,) = problems_of(write(tmp_path, content))
    assert (problem.field, problem.rule) == ("local", "must be a mapping")


def test_optional_input_without_a_value_is_left_out(tmp_path: Path) -> None:
    content = yaml.safe_load(PIPELINE)
    content["inputs"]["valid"] = {"type": "mltable", "optional": True}
    assert Job.read(write(tmp_path, content)).validation_data == ()
