"""The fields of a job that job files name: their types, help texts and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from trainer.errors import JobError, Problem, problem_of
from trainer.fields import Parsed, details, enum_member, option
from trainer.files import without_prefix
from trainer.job.callback_path import parse as parse_callback
from trainer.job.places import anchored, places_of, tracking_place
from trainer.job.sweep import Limits, Sweep
from trainer.metric_names import parse_metric
from trainer.models.precision import Precision
from trainer.models.weights.choice import NONE
from trainer.tasks import Task

Logger = Literal["tensorboard", "wandb", "csv"]

# Each declares a field under one heading of the help.
_data = partial(option, group="Data")
_model = partial(option, group="Model")
_hardware = partial(option, group="Hardware")
_sweep = partial(option, group="Sweep")
_output = partial(option, group="Output")


class SweepOptions(BaseModel):
    """Options that only a sweep uses and that Azure's job files have no keys for."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    objective: Literal["latency"] | None = _sweep(None)
    """latency: minimise latency while maximising the primary metric. The table of trials marks those that no
    other trial beats in both."""
    max_latency_ms: float | None = _sweep(None, gt=0)
    """Choose the best model among those that score one image within this many milliseconds on this
    machine."""
    storage: str | None = _sweep(None, min_length=1)
    """Database in which several machines share the trials: postgresql://USER:PASSWORD@HOST/NAME. [default: a
    file in the run's directory]"""
    study: str | None = _sweep(None, min_length=1)
    """Name of the sweep in the storage; `trainer worker` joins by it. [default: derived from the run's
    directory]"""


class LocalOptions(SweepOptions):
    """The section `local` of a job file: options that Azure's forms have no keys for."""

    weights: str | None = _model(None)
    """Weights to start from: pretrained, none (from scratch), a directory of published files, a file, an
    earlier run's directory, or runs:/ID in MLflow. The environment variable TRAINER_WEIGHTS sets the
    default. [default: pretrained]"""
    allow_substitute_models: bool = _model(False)
    """If an Azure job names a model of MMDetection, train the nearest model of this trainer instead."""
    substitutes: dict[str, str] = Field(default_factory=dict, repr=False)
    """Written by runs: each replaced model of MMDetection and the model that is trained instead."""
    augmentation: Parsed[str | None, str | Path | None] = option(None, "Images")
    """YAML or JSON file that augments the training images: torchvision's transforms, or a pipeline that
    Albumentations saved. It replaces the recipe's augmentation, or with `extends: recipe` comes before it.
    docs/augmentation.md describes it, and `trainer preview` shows what it does. [default: the recipe's]"""
    gpus: Annotated[int, Field(ge=0)] | Literal["auto"] = _hardware("auto")
    """Number of GPUs: 0 for the CPU, auto for all, or the CPU if there is none."""
    processes: int | None = _hardware(None, gt=0)
    """Train in this many processes on the CPU instead of on GPUs."""
    precision: Precision = _hardware("auto")
    """Precision in which GPUs train: bf16 or fp16, which are mixed, tf32, or float32. auto is bf16, on older
    GPUs fp16 or float32. What stays float32 in mixed precision, and scoring, is computed in TF32, except with
    float32, which is exact and slower. The CPU always trains in float32."""
    datastores: dict[str, str] = _data({}, flag="--datastore", form="NAME=DIR_OR_URL")
    """Directory or URL that azureml://…/datastores/NAME/… refers to."""
    data_assets: dict[str, str] = _data({}, flag="--data-asset", form="NAME=PATH")
    """Path of the data that a job file calls azureml:NAME:VERSION. NAME:VERSION=PATH sets the path of one
    version only."""
    skip_invalid: bool = _data(False)
    """Leave out invalid objects, lines and images instead of stopping; skipped.jsonl lists them."""
    tracking_uri: str | None = _output(None, min_length=1)
    """MLflow server or database that records the run, or none. The environment variable MLFLOW_TRACKING_URI
    sets the default. [default: mlflow.db next to the run's directory]"""
    calibrate: bool = _output(False)
    """Calibrate the packaged model's scores, so that of answers with a score of 0.8 four in five are right:
    by a temperature, for boxes also a bias, fitted to the validation images. Thresholds then refer to
    calibrated scores."""
    register_model: str | None = _output(None)
    """Register the packaged model in MLflow under this name."""
    loggers: Parsed[tuple[Logger, ...], str | Sequence[str]] = _output((), flag="--logger")
    """Lightning logger to write metrics to as well: tensorboard, wandb or csv. Its files are in the run's
    directory; in a sweep each trial has its own."""
    callbacks: Parsed[tuple[str, ...], str | Sequence[str]] = _model((), flag="--callback")
    """Lightning callback to import and add, as MODULE:CLASS or MODULE:CLASS(argument=value, …). The module is
    found in the working directory, too."""

    @field_validator("loggers", "callbacks", mode="before")
    @classmethod
    def _several(cls, value: Any, info: ValidationInfo) -> Any:
        """Read one name, several, or for loggers several with commas between them."""
        names = [value] if isinstance(value, str) else value or ()
        if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            return names
        if info.field_name == "loggers":
            names = [part.strip() for name in names for part in name.lower().split(",")]
        return list(dict.fromkeys(names))

    @field_validator("callbacks")
    @classmethod
    def _import_paths(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            parse_callback(name)
        return names

    @field_validator("gpus", mode="wrap")
    @classmethod
    def _count_or_auto(cls, value: Any, validate: Any) -> Any:
        """Report one problem instead of one for each kind of value."""
        try:
            return validate(value)
        except ValidationError as error:
            raise ValueError(f"must be auto, 0 for the CPU, or a number of GPUs, got {value!r}") from error

    @field_validator("augmentation", mode="before")
    @classmethod
    def _absolute_file(cls, path: Any) -> Any:
        return anchored(str(path), Path.cwd()) if isinstance(path, (str, Path)) and str(path) else path

    @field_validator("tracking_uri", "storage")
    @classmethod
    def _absolute(cls, uri: str | None) -> str | None:
        return None if uri is None else tracking_place(uri, Path.cwd())

    @field_validator("register_model")
    @classmethod
    def _name_in_the_registry(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None and (not name.strip(" .") or "/" in name or ":" in name):
            raise ValueError(f"must be a name without / and :, got {name!r}")
        if name is not None and info.data.get("tracking_uri") == NONE:
            raise ValueError("needs MLflow, which tracking_uri none switches off")
        return name


class AzureOptions(LocalOptions):
    """The fields that are keys of a job file, next to its section `local`."""

    task: Parsed[Task, Task | str] = Field(json_schema_extra={"group": "Data"})
    """The task to train for."""
    training_data: Parsed[tuple[str, ...], str | Path | Sequence[str | Path]] = Field(
        min_length=1, json_schema_extra={"group": "Data", "flag": "--data"}
    )
    """Training data: a .jsonl file or an MLTable folder, local or by URL."""
    validation_data: Parsed[tuple[str, ...], str | Path | Sequence[str | Path]] = _data(())
    """Validation data. Without it, a stratified part of the training data is held out."""
    validation_data_size: float = _data(0.2, aliases=("split_ratio",), gt=0, lt=1)
    """Fraction of the training data to hold out, in (0, 1)."""
    target_column_name: str = _data("label", min_length=1)
    """Key of the data's lines that holds the label."""
    primary_metric: str | None = _model(None)
    """Metric that decides which epoch, and in a sweep which trial, is the best: any that evaluations report,
    such as AUC_weighted, recall, map (mean_average_precision at IoU 0.5 to 0.95) or log_loss, which is
    minimised. [default: the task's]"""
    limits: Parsed[Limits, Limits | Mapping[str, int | None]] = _sweep(Limits())
    """Limits of trials and time."""
    sweep: Parsed[Sweep | None, Sweep | Mapping[str, Any] | None] = _sweep(None)
    """How to search the search space. Without it, trials are sampled at random and none ends early; in
    AutoMode docs/automode.md describes the search."""
    search_space: Parsed[tuple[dict[str, Any], ...], Mapping[str, Any] | Sequence[Mapping[str, Any]]] = (
        _sweep(())
    )
    """Sub-spaces that map parameters or model_name to expressions, as in job files. Without any, a job of
    more than one trial leaves models and settings to the trainer (AutoMode)."""
    name: str | None = _output(None)
    """Name of the run, part of its default directory."""
    experiment_name: str | None = _output(None, min_length=1, max_length=500)
    """MLflow experiment. [default: MLFLOW_EXPERIMENT_NAME or one for the task]"""

    @field_validator("task", mode="before")
    @classmethod
    def _task(cls, value: Any) -> Any:
        if isinstance(value, Task) or not isinstance(value, str):
            return value
        try:
            return Task.parse(enum_member(value))
        except JobError as error:  # a ValueError is reported together with the other problems
            raise ValueError(f"{error.problems[0].rule}, got {value!r}") from error

    @field_validator("training_data", "validation_data", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        paths = (value,) if isinstance(value, (str, Path)) else value
        if not isinstance(paths, Sequence):
            return value
        texts = (str(path) if isinstance(path, Path) else path for path in paths)
        return [without_prefix(text, Path.cwd()) if isinstance(text, str) else text for text in texts]

    @field_validator("training_data", "validation_data")
    @classmethod
    def _found_assets(cls, paths: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        assets = info.data.get("data_assets")
        return paths if assets is None else places_of(paths, assets)

    @field_validator("search_space", mode="before")
    @classmethod
    def _sub_spaces(cls, value: Any) -> Any:
        spaces = [value] if isinstance(value, Mapping) else value or ()
        if not isinstance(spaces, Sequence) or not all(isinstance(s, Mapping) and s for s in spaces):
            raise ValueError("must be a map of parameters to expressions, or a list of such maps")
        return tuple({str(name): expression for name, expression in space.items()} for space in spaces)

    @field_validator("primary_metric")
    @classmethod
    def _metric_of_task(cls, name: str | None, info: ValidationInfo) -> str | None:
        task = info.data.get("task")
        if name is not None and name.strip().lower() in ("", "none"):  # Azure's words for the default
            return None
        return name if name is None or task is None else parse_metric(name, task)


def problem_of_field(item: Mapping[str, Any], fields: Mapping[str, FieldInfo], where: str) -> Problem:
    """Convert one error of pydantic's about a job, with the next step where one is known.

    Args:
        item: an entry of `ValidationError.errors()`.
        fields: the job's, by name.
        where: origin of the values, such as a file.
    """
    # The location of a union ends with the kinds that were tried, that of a list with an index.
    loc = item["loc"] if item["loc"][:1] in (("limits",), ("sweep",)) else item["loc"][:1]
    problem = problem_of(item, where, ".".join(map(str, loc)))
    hint = "it is a fraction of the training data such as 0.2" if loc == ("validation_data_size",) else ""
    if item["type"] == "missing" and loc[0] in fields:
        hint = f"add it or give {details(fields[loc[0]]).get('flag') or f'--{loc[0]}'}"
    return replace(problem, hint=hint)
