"""Writes jobs with Azure's own Python SDK: python write_jobs.py FOLDER (in an environment with azure-ai-ml).

One job for each training parameter, search-space expression, sampler and early termination policy of each
task, and those of the public image notebooks; each as job.dump() writes it (NAME.yaml) and as the REST
interface receives it (NAME.json).
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")  # the SDK's own

from azure.ai.ml import Input, Output, automl, load_component  # noqa: E402
from azure.ai.ml.automl import LogTrainingMetrics, LogValidationLoss, SearchSpace  # noqa: E402
from azure.ai.ml.dsl import pipeline  # noqa: E402
from azure.ai.ml.sweep import (  # noqa: E402
    BanditPolicy,
    Choice,
    LogNormal,
    LogUniform,
    MedianStoppingPolicy,
    Normal,
    QLogNormal,
    QLogUniform,
    QNormal,
    QUniform,
    Randint,
    TruncationSelectionPolicy,
    Uniform,
)

TASKS = {
    "classification": (automl.image_classification, "accuracy", "vitb16r224"),
    "multilabel": (automl.image_classification_multilabel, "iou", "seresnext"),
    "detection": (automl.image_object_detection, "mean_average_precision", "yolov5"),
    "segmentation": (automl.image_instance_segmentation, "mean_average_precision", "maskrcnn_resnet50_fpn"),
}

SHARED = {
    "advanced_settings": '{"stream_image_files": false}',
    "ams_gradient": True,
    "beta1": 0.8,
    "beta2": 0.99,
    "checkpoint_frequency": 2,
    "distributed": True,
    "early_stopping": False,
    "early_stopping_delay": 3,
    "early_stopping_patience": 4,
    "enable_onnx_normalization": True,
    "evaluation_frequency": 2,
    "gradient_accumulation_step": 2,
    "layers_to_freeze": 2,
    "learning_rate": 0.002,
    "learning_rate_scheduler": "warmup_cosine",
    "momentum": 0.8,
    "nesterov": False,
    "number_of_epochs": 7,
    "number_of_workers": 2,
    "optimizer": "adamw",
    "random_seed": 42,
    "step_lr_gamma": 0.4,
    "step_lr_step_size": 3,
    "training_batch_size": 4,
    "validation_batch_size": 4,
    "warmup_cosine_lr_cycles": 0.4,
    "warmup_cosine_lr_warmup_epochs": 1,
    "weight_decay": 0.001,
}
CLASSIFIERS = {
    "training_crop_size": 224,
    "validation_crop_size": 224,
    "validation_resize_size": 288,
    "weighted_loss": 2,
}
DETECTORS = {
    "box_score_threshold": 0.2,
    "nms_iou_threshold": 0.4,
    "validation_iou_threshold": 0.6,
    "validation_metric_type": "coco_voc",
    "log_training_metrics": LogTrainingMetrics.ENABLE,
    "log_validation_loss": LogValidationLoss.DISABLE,
}
PARAMETERS = {
    "classification": SHARED | CLASSIFIERS,
    "multilabel": SHARED | CLASSIFIERS,
    "detection": SHARED
    | DETECTORS
    | {
        "image_size": 320,
        "model_size": "small",
        "multi_scale": True,
        "tile_grid_size": "3x2",
        "tile_overlap_ratio": 0.3,
        "tile_predictions_nms_threshold": 0.3,
    },
    "segmentation": SHARED | DETECTORS | {"box_detections_per_image": 50, "max_size": 800, "min_size": 400},
}
TOGETHER = {
    # what a parameter needs to have a meaning
    "step_lr_gamma": {"learning_rate_scheduler": "step"},
    "step_lr_step_size": {"learning_rate_scheduler": "step"},
    "momentum": {"optimizer": "sgd"},
    "nesterov": {"optimizer": "sgd"},
    "tile_overlap_ratio": {"tile_grid_size": "3x2"},
    "tile_predictions_nms_threshold": {"tile_grid_size": "3x2"},
}

EXPRESSIONS = {
    "choice_text": ("optimizer", Choice(["sgd", "adam", "adamw"])),
    "choice_number": ("layers_to_freeze", Choice([0, 2])),
    "choice_bool": ("early_stopping", Choice([True, False])),
    "uniform": ("learning_rate", Uniform(0.0001, 0.01)),
    "loguniform": ("learning_rate", LogUniform(-9.2, -4.6)),
    "quniform": ("learning_rate", QUniform(0.01, 0.05, 0.01)),
    "qloguniform": ("learning_rate", QLogUniform(-6.0, -3.0, 0.001)),
    "normal": ("momentum", Normal(0.8, 0.02)),
    "lognormal": ("learning_rate", LogNormal(-6.9, 0.1)),
    "qnormal": ("momentum", QNormal(0.8, 0.02, 0.01)),
    "qlognormal": ("learning_rate", QLogNormal(-4.0, 0.1, 0.001)),
    "randint": ("random_seed", Randint(100)),
}
POLICIES = {
    "bandit_factor": BanditPolicy(slack_factor=0.2, evaluation_interval=2, delay_evaluation=6),
    "bandit_amount": BanditPolicy(slack_amount=0.1, evaluation_interval=1),
    "median": MedianStoppingPolicy(evaluation_interval=1, delay_evaluation=5),
    "truncation": TruncationSelectionPolicy(
        truncation_percentage=20, evaluation_interval=2, delay_evaluation=4
    ),
}


def new_job(
    task: str, *, path: str = "./data/training-mltable-folder", target_column_name: str = "label"
) -> Any:
    make, metric, _ = TASKS[task]
    return make(
        compute="gpu-cluster",
        experiment_name="images",
        training_data=Input(type="mltable", path=path),
        validation_data=Input(type="mltable", path="./data/validation-mltable-folder"),
        target_column_name=target_column_name,
        primary_metric=metric,
        tags={"my_custom_tag": "custom value"},
    )


def write(folder: Path, name: str, job: Any) -> None:
    job.dump(str(folder / f"{name}.yaml"))
    rest = job._to_rest_object()
    content = rest.as_dict() if hasattr(rest, "as_dict") else rest.serialize()
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")


def write_parameters(folder: Path) -> None:
    for task, parameters in PARAMETERS.items():
        write(folder, f"{task}-target_column_name", new_job(task, target_column_name="species"))
        for name, value in parameters.items():
            job = new_job(task)
            job.set_limits(timeout_minutes=60)
            job.set_training_parameters(model_name=TASKS[task][2], **{**TOGETHER.get(name, {}), name: value})
            write(folder, f"{task}-{name}", job)


def write_none(folder: Path) -> None:
    """A job in which everything that may be none is."""
    job = new_job("detection")
    names = ("optimizer", "learning_rate_scheduler", "model_size", "validation_metric_type")
    job.set_training_parameters(model_name="yolov5", **dict.fromkeys(names, "none"))
    write(folder, "detection-none", job)


def write_sweeps(folder: Path) -> None:
    for task in TASKS:
        for name, (parameter, expression) in EXPRESSIONS.items():
            job = new_job(task)
            job.set_limits(timeout_minutes=60, max_trials=10, max_concurrent_trials=2)
            space = {"model_name": Choice([TASKS[task][2]]), parameter: expression}
            job.extend_search_space([SearchSpace(**space)])
            job.set_sweep(sampling_algorithm="Random")
            write(folder, f"{task}-space-{name}", job)
        for name, policy in POLICIES.items():
            job = new_job(task)
            job.set_limits(timeout_minutes=60, max_trials=10, max_concurrent_trials=2)
            job.extend_search_space([SearchSpace(learning_rate=Uniform(0.0001, 0.01))])
            job.set_sweep(sampling_algorithm="Random", early_termination=policy)
            write(folder, f"{task}-policy-{name}", job)
        for sampler in ("Random", "Grid", "Bayesian"):
            job = new_job(task)
            job.set_limits(max_trials=4)
            job.extend_search_space([SearchSpace(optimizer=Choice(["sgd", "adamw"]))])
            job.set_sweep(sampling_algorithm=sampler)
            write(folder, f"{task}-sampler-{sampler.lower()}", job)


NOTEBOOK_SPACES = {
    "classification": [
        {
            "model_name": Choice(["vitb16r224"]),
            "learning_rate": Uniform(0.001, 0.01),
            "number_of_epochs": Choice([15, 30]),
        },
        {
            "model_name": Choice(["seresnext", "resnet50"]),
            "learning_rate": Uniform(0.001, 0.01),
            "layers_to_freeze": Choice([0, 2]),
        },
    ],
    "multilabel": [
        {
            "model_name": Choice(["vitb16r224"]),
            "learning_rate": Uniform(0.005, 0.05),
            "number_of_epochs": Choice([15, 30]),
            "gradient_accumulation_step": Choice([1, 2]),
        },
        {
            "model_name": Choice(["seresnext"]),
            "learning_rate": Uniform(0.005, 0.05),
            "validation_resize_size": Choice([288, 320, 352]),
            "validation_crop_size": Choice([224, 256]),
            "training_crop_size": Choice([224, 256]),
        },
    ],
    "detection": [
        {
            "model_name": Choice(["yolov5"]),
            "learning_rate": Uniform(0.0001, 0.01),
            "model_size": Choice(["small", "medium"]),
        },
        {
            "model_name": Choice(["fasterrcnn_resnet50_fpn"]),
            "learning_rate": Uniform(0.0001, 0.001),
            "optimizer": Choice(["sgd", "adam", "adamw"]),
            "min_size": Choice([600, 800]),
            "warmup_cosine_lr_warmup_epochs": Choice([0, 3]),
        },
    ],
    "segmentation": [
        {
            "model_name": Choice(["maskrcnn_resnet50_fpn"]),
            "learning_rate": Uniform(0.0001, 0.001),
            "optimizer": Choice(["sgd", "adam", "adamw"]),
            "min_size": Choice([600, 800]),
            "warmup_cosine_lr_warmup_epochs": Choice([0, 3]),
        },
    ],
}
PATHS = {
    "classification": "azureml:fridge-items:1",
    "multilabel": "azureml://datastores/workspaceblobstore/paths/LocalUpload/training-mltable-folder",
    "detection": "./data/training-mltable-folder",
    "segmentation": "/data/training-mltable-folder",
}


def write_notebooks(folder: Path) -> None:
    """Jobs as the public image notebooks build them: AutoMode, one model by hand, and a sweep."""
    for task, spaces in NOTEBOOK_SPACES.items():
        job = new_job(task, path=PATHS[task])
        job.set_limits(timeout_minutes=60, max_trials=10, max_concurrent_trials=2)
        write(folder, f"notebook-{task}-automode", job)

        job = new_job(task, path=PATHS[task])
        job.set_limits(timeout_minutes=60)
        job.set_training_parameters(model_name=TASKS[task][2], early_stopping=1, evaluation_frequency=1)
        job.resources = {"instance_type": "Standard_NC6s_v3", "instance_count": 1}
        write(folder, f"notebook-{task}-model", job)

        write(
            folder, f"notebook-{task}-sweep", sweep_of_notebook(task, new_job(task, path=PATHS[task]), spaces)
        )


def sweep_of_notebook(task: str, job: Any, spaces: list[dict[str, Any]]) -> Any:
    job.set_limits(timeout_minutes=60, max_trials=10, max_concurrent_trials=2)
    job.set_training_parameters(early_stopping=True, evaluation_frequency=1)
    job.extend_search_space([SearchSpace(**space) for space in spaces])
    job.set_sweep(
        sampling_algorithm="Random",
        early_termination=BanditPolicy(evaluation_interval=2, slack_factor=0.2, delay_evaluation=6),
    )
    return job


COMPONENT = """\
$schema: https://azuremlschemas.azureedge.net/latest/commandComponent.schema.json
type: command
name: train_object_detection_model
version: 0.0.13
inputs:
  training_data: {type: mltable}
  validation_data: {type: mltable, optional: true}
  model_name: {type: string, optional: true}
  number_of_epochs: {type: integer, optional: true}
  learning_rate: {type: number, optional: true}
outputs:
  mlflow_model_folder: {type: mlflow_model}
environment: azureml://registries/azureml/environments/automl-dnn-vision-gpu/versions/27
command: python -m object_detection.run --training_data ${{inputs.training_data}}
"""


def write_pipelines(folder: Path) -> None:
    """A pipeline with an AutoML node for each task, and one with a node of a catalog component besides."""
    source = folder / "component" / "spec.yaml"
    source.parent.mkdir()
    source.write_text(COMPONENT)
    train = load_component(source=str(source))

    def automl_node(task: str, training_data: Any, validation_data: Any) -> Any:
        make, metric, _ = TASKS[task]
        node = make(
            training_data=training_data,
            validation_data=validation_data,
            target_column_name="label",
            primary_metric=metric,
            outputs={"best_model": Output(type="mlflow_model")},
        )
        return sweep_of_notebook(task, node, NOTEBOOK_SPACES[task])

    for task in TASKS:

        @pipeline(default_compute="gpu-cluster")
        def with_one_node(train_in, valid_in):  # type: ignore[no-untyped-def]
            automl_node(task, train_in, valid_in)  # noqa: B023

        write(folder, f"pipeline-{task}", with_one_node(*pipeline_inputs()))

    @pipeline(default_compute="gpu-cluster")
    def with_two_nodes(train_in, valid_in, epochs=5):  # type: ignore[no-untyped-def]
        node = automl_node("classification", train_in, valid_in)
        train(
            training_data=train_in,
            validation_data=valid_in,
            model_name="yolov5",
            number_of_epochs=epochs,
            learning_rate=0.02,
        )
        return {"model": node.outputs.best_model}

    write(source.parent, "two-nodes", with_two_nodes(*pipeline_inputs()))


def pipeline_inputs() -> tuple[Input, Input]:
    return (
        Input(type="mltable", path="./data/training-mltable-folder"),
        Input(type="mltable", path="./data/validation-mltable-folder"),
    )


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_parameters(target)
    write_none(target)
    write_sweeps(target)
    write_notebooks(target)
    write_pipelines(target)
