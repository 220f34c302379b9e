"""The jobs of Azure's public image notebooks resolve: three of each task, its pipeline and its fine-tuning.

Each has the essentials of the notebook's job: the form, the models, the parameters and their ranges.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.job.job import Job
from trainer.models import catalog
from trainer.sweep.search import prepare_search
from trainer.sweep.space.distributions import Choice
from trainer.tasks import Task

REGISTRY = "azureml://registries/azureml"
HF, MMD = "transformers_image_classification_pipeline", (
    "mmdetection_image_objectdetection_instancesegmentation_pipeline"
)  # fmt: skip
DEFORMABLE = "mmd-3x-deformable-detr_refine_twostage_r50_16xb2-50e_coco"
SWIN = "mmd-3x-mask-rcnn_swin-t-p4-w7_fpn_1x_coco"
CATALOG = {
    "classification": [
        "microsoft/beit-base-patch16-224-pt22k-ft22k",
        "google/vit-base-patch16-224",
        "facebook/deit-base-patch16-224",
        "microsoft/swinv2-base-patch4-window12-192-22k",
    ],
    "detection": [
        DEFORMABLE,
        "mmd-3x-sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco",
        "mmd-3x-sparse-rcnn_r101_fpn_300-proposals_crop-ms-480-800-3x_coco",
        "mmd-3x-vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco",
        "mmd-3x-vfnet_x101-64x4d-mdconv-c3-c5_fpn_ms-2x_coco",
        "mmd-3x-yolof_r50_c5_8x8_1x_coco",
    ],
    "segmentation": [SWIN],
}
"""The models that the notebooks name of Azure's catalog."""
TASKS: dict[str, tuple[Task, str, str, str]] = {
    "classification": (Task.CLASSIFICATION, "image_classification", "accuracy", "classification"),
    "multilabel": (Task.MULTILABEL, "image_classification_multilabel", "iou", "classification"),
    "detection": (Task.DETECTION, "image_object_detection", "mean_average_precision", "detection"),
    "segmentation": (
        Task.SEGMENTATION, "image_instance_segmentation", "mean_average_precision", "segmentation",
    ),
}  # fmt: skip
"""By the notebooks' kind: our task, Azure's, its metric, and the key in CATALOG."""
ADAMW = {"optimizer": {"type": "choice", "values": ["sgd", "adam", "adamw"]}}
SIZES = {"min_size": {"type": "choice", "values": [600, 800]}}
LEGACY: dict[str, list[dict[str, Any]]] = {
    "classification": [
        {"model_name": "vitb16r224", "number_of_epochs": {"type": "choice", "values": [15, 30]}},
        {"model_name": "seresnext", "layers_to_freeze": {"type": "choice", "values": [0, 2]}},
    ],
    "multilabel": [
        {"model_name": "vitb16r224", "gradient_accumulation_step": {"type": "choice", "values": [1, 2]}},
        {"model_name": "seresnext", "validation_resize_size": {"type": "choice", "values": [288, 352]}},
    ],
    "detection": [
        {"model_name": "yolov5", "model_size": {"type": "choice", "values": ["small", "medium"]}},
        {"model_name": "fasterrcnn_resnet50_fpn", **ADAMW, **SIZES},
    ],
    "segmentation": [{"model_name": "maskrcnn_resnet50_fpn", **ADAMW, **SIZES}],
}
FINE_TUNING = {
    "apply_augmentations": True, "number_of_workers": 8, "apply_deepspeed": False, "apply_ort": False,
    "precision": 32, "random_seed": 42, "evaluation_strategy": "epoch", "evaluation_steps": 500,
    "logging_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": -1, "early_stopping": False,
    "early_stopping_patience": 1, "resume_from_checkpoint": False, "save_as_mlflow_model": True,
    "number_of_epochs": 15, "training_batch_size": 4, "learning_rate": "5e-5",
}  # fmt: skip


def automl(kind: str, **more: Any) -> dict[str, Any]:
    _, task, metric, _ = TASKS[kind]
    return {
        "type": "automl",
        "task": task,
        "primary_metric": metric,
        "target_column_name": "label",
        "training_data": {"type": "mltable", "path": "data/training-mltable-folder"},
        "validation_data": {"type": "mltable", "path": "data/validation-mltable-folder"},
        **more,
    }


def sweep(kind: str) -> dict[str, Any]:
    models = {"type": "choice", "values": [*CATALOG[TASKS[kind][3]]]}
    spaces = [{**space, "learning_rate": {"type": "uniform", "min_value": 1e-4, "max_value": 1e-2}}
              for space in (*LEGACY[kind], {"model_name": models})]  # fmt: skip
    policy = {"type": "bandit", "evaluation_interval": 2, "slack_factor": 0.2, "delay_evaluation": 6}
    return {
        "limits": {"timeout_minutes": 60, "max_trials": 10, "max_concurrent_trials": 2},
        "training_parameters": {"early_stopping": True, "evaluation_frequency": 1},
        "sweep": {"sampling_algorithm": "random", "early_termination": policy},
        "search_space": spaces,
    }


def fine_tuning(kind: str) -> dict[str, Any]:
    task, _, _, models = TASKS[kind]
    name = CATALOG[models][0]
    inputs = {
        "task_name": task.value,
        "training_data": {"type": "mltable", "path": "data/training-mltable-folder"},
        "validation_data": {"type": "mltable", "path": "data/validation-mltable-folder"},
        "mlflow_model": {
            "type": "mlflow_model",
            "path": f"{REGISTRY}/models/{name.replace('/', '-')}/versions/12",
        },
        **FINE_TUNING,
    }
    component = f"{REGISTRY}/components/{HF if models == 'classification' else MMD}/labels/latest"
    node = {"type": "pipeline", "component": component, "inputs": inputs}
    return {"type": "pipeline", "jobs": {"finetune": node}}


def notebooks() -> dict[str, dict[str, Any]]:
    limits = {"timeout_minutes": 60, "max_trials": 10, "max_concurrent_trials": 2}
    jobs: dict[str, dict[str, Any]] = {}
    for kind, (*_, models) in TASKS.items():
        jobs[f"{kind}-automode"] = automl(kind, limits=limits)
        chosen = {"model_name": CATALOG[models][0], "early_stopping": 1, "evaluation_frequency": 1}
        jobs[f"{kind}-model"] = automl(kind, training_parameters=chosen)
        jobs[f"{kind}-sweep"] = automl(kind, **sweep(kind))
        jobs[f"{kind}-pipeline"] = {"type": "pipeline", "jobs": {"node": automl(kind, **sweep(kind))}}
        jobs[f"{kind}-fine-tuning"] = fine_tuning(kind)
    jobs["detection-batch-scoring"] = automl("detection", training_parameters={"model_name": "yolov5"})
    return jobs


NOTEBOOKS = notebooks()


def test_there_are_twenty_one() -> None:
    assert len(NOTEBOOKS) == 21


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebooks_job_resolves(name: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yml"
    path.write_text(yaml.safe_dump(NOTEBOOKS[name]), encoding="utf-8")
    sweeps_others = name in ("detection-sweep", "detection-pipeline")  # than the one that is the same here
    job = Job.read(path, **({"allow_substitute_models": True} if sweeps_others else {}))
    assert job.task is TASKS[name.split("-")[0]][0]
    if job.search_space:
        spaces = prepare_search(job, str(path)).space.sub_spaces
        choices = [space.parameters["model_name"] for space in spaces]
        models = [each for it in choices for each in (it.values if isinstance(it, Choice) else [it])]
    elif job.sweeps:
        return  # AutoMode chooses by the data
    else:
        job.resolve_settings(str(path))
        models = [job.model_name]
    for model in models:
        assert job.task in catalog.find(str(model), job.task).tasks
    if name.startswith("detection") and "batch" not in name:
        assert "deformable-detr-two-stage" in models
