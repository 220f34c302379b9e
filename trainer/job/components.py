"""Reads nodes of Azure's catalog components for fine-tuning as the jobs that they amount to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.errors import JobError, Problem, ProblemsError
from trainer.fields import snake_case
from trainer.job.forms import nearest
from trainer.job.sweep import MODEL_NAME
from trainer.models import catalog
from trainer.settings import NAMES, canonical
from trainer.strict_yaml import load
from trainer.tasks import Task

_HUGGING_FACE_DEFAULTS: dict[str, Any] = {"early_stopping": False, "random_seed": 42}
_COMPONENTS: dict[str, tuple[Task | None, Mapping[str, Any]]] = {
    "train_image_classification_model": (None, {}),
    "train_object_detection_model": (Task.DETECTION, {}),
    "train_instance_segmentation_model": (Task.SEGMENTATION, {}),
    "image_classification_pipeline": (None, {}),
    "image_object_detection_pipeline": (Task.DETECTION, {}),
    "image_instance_segmentation_pipeline": (Task.SEGMENTATION, {}),
    "transformers_image_classification_pipeline": (None, _HUGGING_FACE_DEFAULTS),
    "mmdetection_image_objectdetection_instancesegmentation_pipeline": (None, _HUGGING_FACE_DEFAULTS),
}
"""Components by name: the task, if it is no input, and defaults that differ from those of an AutoML job."""

_FIELDS = {
    "training_data": "training_data",
    "validation_data": "validation_data",
    "test_data": "test_data",
    "task_type": "task",
    "task_name": "task",
    "primary_metric": "primary_metric",
    "metric_for_best_model": "primary_metric",
    "label_column_name": "target_column_name",
    "target_column_name": "target_column_name",
}
_RENAMED = {
    "iou_threshold": "nms_iou_threshold",
    "image_min_size": "min_size",
    "image_max_size": "max_size",
    "label_smoothing_factor": "label_smoothing",
    "max_grad_norm": "gradient_clip_norm",
}
_MODEL_INPUTS = (MODEL_NAME, "mlflow_model", "pytorch_model", "model_path")
_WITHOUT_EFFECT = frozenset(
    {
        *("compute_model_import", "compute_finetune", "compute_model_evaluation", "instance_count"),
        *("process_count_per_instance", "model_family", "download_from_source", "apply_deepspeed"),
        *("deepspeed_config", "apply_ort", "max_steps", "auto_find_batch_size", "warmup_steps", "precision"),
        *("evaluation_strategy", "evaluation_steps", "logging_strategy", "logging_steps", "save_strategy"),
        *("save_steps", "save_total_limit", "resume_from_checkpoint", "save_as_mlflow_model"),
        *("test_batch_size", "input_column_names", "evaluation_config", "evaluation_config_params"),
        *("model_output", "mlflow_model_output", "pytorch_model_output", "shm_size"),
    }
)
"""Inputs of the components that have no effect here."""
_OPTIMIZERS = {"adamw_hf": "adamw", "adamw_ort_fused": "adamw"}
_FILE = re.compile(r"\.ya?ml$", re.IGNORECASE)
_UNSET = (None, "", -1, "-1")


def component_name(reference: Any, folder: Path) -> str:
    """The name of the component that a node refers to; "" if it has none.

    Args:
        reference: a name with or without version, an address in a registry or workspace, the path of a
            component's file, or its content, as a mapping or as YAML.
        folder: that of the pipeline's file.
    """
    content = component_content(reference, folder)
    if content:
        return str(content.get("name", ""))
    if path := component_file(reference, folder):
        return path.stem
    text = _text(reference)
    address = re.search(r"(?:^|/)components/([^/@:]+)", text)
    return address[1] if address else re.split(r"[@:/]", text)[0]


def component_content(reference: Any, folder: Path) -> Mapping[Any, Any]:
    """The content of a component defined in the pipeline's file or a file of its own; else empty."""
    if isinstance(reference, Mapping):
        return reference
    text, path = _text(reference), component_file(reference, folder)
    if path is None and "\n" not in text:
        return {}
    try:
        content = load(path.read_bytes() if path else text, str(path or ""))
    except (OSError, ValueError, ProblemsError):
        return {}  # of some other node, whose component is nobody's concern here
    return content if isinstance(content, Mapping) else {}


def component_file(reference: Any, folder: Path) -> Path | None:
    """The path of a component's file, whether it exists or not; None if a node refers to it otherwise."""
    text = _text(reference)
    return folder / text if "\n" not in text and _FILE.search(text) else None


def _text(reference: Any) -> str:
    return str(reference or "").removeprefix("azureml:").removeprefix("file:").strip()


def is_known(name: str) -> bool:
    """Whether a component trains an image model."""
    return name in _COMPONENTS


def to_job(
    name: str, inputs: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], list[str], list[Problem]]:
    """Write a node of a component as a job in the YAML form of Azure's command line.

    Args:
        name: a known component.
        inputs: the node's inputs, with values in place of expressions.

    Returns:
        The job, the inputs that have no effect here, and the problems of the others.
    """
    task, defaults = _COMPONENTS[name]
    job: dict[str, Any] = {"type": "automl"} | ({"task": task.job_name} if task else {})
    settings: dict[str, Any] = dict(defaults)
    ignored: list[str] = []
    problems: list[Problem] = []
    origins: dict[str, tuple[str, Any]] = {}  # by current name: the input that set it, and the value

    def put(section: dict[str, Any], key: str, value: Any, origin: str) -> None:
        first, known = origins.setdefault(canonical(key), (origin, value))
        if str(value) != str(known):
            rule = f"contradicts {first}, which says {known!r}"
            problems.append(Problem(where, origin, rule, repr(value), "give one of them"))
        section[key] = value

    for spelled, given in inputs.items():
        key, field = snake_case(str(spelled)), f"inputs.{spelled}"
        value = given if key in ("training_data", "validation_data", "test_data") else _plain(given)
        if value in _UNSET:
            continue
        if task is not None and _FIELDS.get(key) == "task":
            if not _is_task(value, task):
                rule = f"must be {task}, the task of {name}"
                problems.append(Problem(where, field, rule, repr(value)))
        elif key in _FIELDS:
            is_loss = (key, value) == ("metric_for_best_model", "loss")
            put(job, _FIELDS[key], "log_loss" if is_loss else value, field)
        elif key in _MODEL_INPUTS:
            put(settings, MODEL_NAME, _model(str(value)), field)
        elif key in _RENAMED or key in NAMES:
            is_renamed = key == "optimizer" and isinstance(value, str)
            put(
                settings,
                _RENAMED.get(key, key),
                _OPTIMIZERS.get(value, value) if is_renamed else value,
                field,
            )
        elif key == "apply_augmentations":
            put(settings, "advanced_settings", {"apply_automl_train_augmentations": value}, field)
        elif key in ("image_width", "image_height"):
            other = _plain(inputs.get("image_width"))
            if key == "image_height" and other not in _UNSET and str(other) != str(value):
                rule = "must equal image_width; images are cropped to squares"
                problems.append(Problem(where, field, rule, repr(value)))
                continue
            for size in ("training_crop_size", "validation_crop_size"):
                put(settings, size, value, field)
        elif key == "extra_optim_args":
            pairs = _optimizer_arguments(value)
            if pairs is None:
                rule = "must be name=value, or several of these separated by ;"
                problems.append(
                    Problem(where, field, rule, repr(value), "such as momentum=0.9; nesterov=True")
                )
            for argument, text in pairs or ():
                put(settings, argument, text, field)
        elif key in _WITHOUT_EFFECT:
            ignored.append(field)
        else:
            hint = nearest(key, (*NAMES, *_FIELDS, *_RENAMED, MODEL_NAME))
            problems.append(Problem(where, field, f"is not an input of {name}", hint=hint))
    job["training_parameters"] = settings
    return job, ignored, problems


def _optimizer_arguments(value: Any) -> list[tuple[str, str]] | None:
    """The names and values in a text such as "momentum=0.5; nesterov=True"; None if it has another form."""
    parts = [part.strip() for part in str(value).strip("\"' ").split(";") if part.strip()]
    found = [re.fullmatch(r"(\w+)\s*=\s*([^=]+)", part) for part in parts]
    return [(pair[1], pair[2]) for pair in found if pair] if all(found) and isinstance(value, str) else None


def _is_task(name: Any, task: Task) -> bool:
    try:
        return Task.parse(str(name)) is task
    except JobError:
        return False


def _plain(value: Any) -> Any:
    """The value of an input, which the SDK and the REST form wrap in a mapping."""
    while isinstance(value, Mapping):
        value = next((value[key] for key in ("value", "path", "uri", "default") if key in value), None)
    return value


def _model(reference: str) -> str:
    """The name of a model, which may be an address in a registry or workspace."""
    address = re.search(r"(?:^|/)models/([^/@:]+)", reference)
    name = address[1] if address else re.sub(r"^azureml:|:[^/]*$", "", reference)
    if "/" not in name:  # in a name on the Hub, what follows is a revision
        name = name.partition("@")[0]
    of_hub = {hub.replace("/", "-"): hub for hub in catalog.OF_AZURES_CATALOG}
    return of_hub.get(name.lower(), name.lower() if name.lower() in catalog.OF_AZURES_CATALOG else name)
