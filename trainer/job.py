"""A job: what to train on what. Read from flags, an Azure-form YAML file, or made in Python."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from os.path import abspath
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trainer import settings as hyperparameters
from trainer.errors import JobError, Problem
from trainer.models import catalog
from trainer.models.weights_choice import NONE, PRETRAINED, choice_or_environment, is_address, of_run
from trainer.settings import Settings
from trainer.tasks import Task


class Job(BaseModel):
    """One training, as asked for.

    Attributes:
        task: a Task, or its name as commands or job files spell it.
        training_data: JSONL files and MLTable folders, local or by URL.
        validation_data: likewise; empty: a part of the training data is split off.
        validation_data_size: that part, in (0, 1).
        model: a model's name; None: the task's default.
        settings: hyperparameters that differ from the model's defaults, by any of their names.
        primary_metric: None: the task's default.
        weights: "pretrained", "none", a directory of published files, a run's directory, a file, or MLflow's
            address of a model; None: the setting checkpoint_run_id, TRAINER_WEIGHTS or the published ones.
        gpus: how many to use, or "auto" for all; without a GPU, auto trains on the CPU.
        processes: instead of GPUs, this many processes on the CPU.
        output: the run's directory, new or empty; None: a new one under runs/.
        datastores: what `azureml://…/datastores/NAME/…` stands for, by NAME.
        skip_invalid: go on without invalid lines instead of refusing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Task
    training_data: tuple[str, ...] = Field(min_length=1)
    validation_data: tuple[str, ...] = ()
    validation_data_size: float = Field(0.2, gt=0, lt=1)
    model: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    primary_metric: str | None = None
    weights: str | None = None
    gpus: int | Literal["auto"] = "auto"
    processes: int | None = Field(None, gt=0)
    output: Path | None = None
    datastores: dict[str, str] = Field(default_factory=dict)
    skip_invalid: bool = False
    name: str | None = None

    @field_validator("task", mode="before")
    @classmethod
    def _task(cls, value: Any) -> Any:
        if isinstance(value, Task) or not isinstance(value, str):
            return value
        try:
            return Task.parse(value)
        except JobError as error:  # as a ValueError it is reported together with what else is wrong
            raise ValueError(f"{error.problems[0].rule}, got {value!r}") from error

    @field_validator("training_data", "validation_data", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, (str, Path)) else value

    @field_validator("gpus")
    @classmethod
    def _count(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 0:
            raise ValueError(f"must be auto, 0 for the CPU, or a number of GPUs, got {value}")
        return value

    @model_validator(mode="after")
    def _metric_of_the_task(self) -> Job:
        if self.primary_metric is not None and self.primary_metric not in self.task.primary_metrics:
            known = " or ".join(self.task.primary_metrics)
            raise ValueError(f"primary_metric of {self.task} must be {known}, got {self.primary_metric!r}")
        return self

    @property
    def model_name(self) -> str:
        return self.model or self.task.default_model

    @property
    def metric(self) -> str:
        return self.primary_metric or self.task.primary_metric

    @property
    def weights_choice(self) -> str:
        """`weights`, else what checkpoint_run_id stands for, else TRAINER_WEIGHTS, else "pretrained"."""
        run = self.settings.get(_RUN_ID)
        return choice_or_environment(self.weights or (of_run(run) if isinstance(run, str) and run else None))

    def resolve_settings(self, where: str = "") -> Settings:
        """All hyperparameters, checked.

        Args:
            where: the file they stand in, for error messages.

        Raises:
            JobError: see `trainer.settings.resolve`.
        """
        values = dict(self.settings)
        if self.weights_choice == NONE:
            # Layers that start from random values have nothing worth freezing, unless the user says so.
            values.setdefault("layers_to_freeze", None)
        return hyperparameters.resolve(self.task, self.model_name, values, where)

    def to_yaml(self) -> str:
        """The job in the job-file form, complete: every setting with the value that it has."""
        settings = self.resolve_settings()
        entry = catalog.find(self.model_name, self.task)
        defaults = hyperparameters.default_settings(self.task, self.model_name)
        chosen = {
            name: value
            for name, value in settings.model_dump(mode="json").items()
            if hyperparameters.takes(entry, name) and (value is not None or defaults[name] is not None)
        }
        from_run = self.weights is None and chosen.get(_RUN_ID) is not None
        if _RUN_ID in chosen and of_run(chosen[_RUN_ID]) == chosen[_RUN_ID]:
            chosen[_RUN_ID] = _anchored(chosen[_RUN_ID], Path.cwd())
        file: dict[str, Any] = {
            "type": "automl",
            "task": self.task.job_name,
            **({"display_name": self.name} if self.name else {}),
            "primary_metric": self.metric,
            "training_data": _data_entry(self.training_data),
            **({"validation_data": _data_entry(self.validation_data)} if self.validation_data else {}),
            "validation_data_size": self.validation_data_size,
            "training_parameters": {"model_name": self.model_name, **chosen},
            "local": {
                # Left to checkpoint_run_id, which a flag may then replace.
                **({} if from_run else {"weights": _anchored(self.weights_choice, Path.cwd())}),
                "gpus": self.gpus,
                "processes": self.processes,
                "datastores": {name: _anchored(at, Path.cwd()) for name, at in self.datastores.items()},
                "skip_invalid": self.skip_invalid,
            },
        }
        return yaml.safe_dump(file, sort_keys=False, allow_unicode=True)


def make(where: str, **values: Any) -> Job:
    """A Job from values that a user gave; `where` names their origin in errors.

    Raises:
        JobError: everything that is wrong with them.
    """
    try:
        return Job(**values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            name = str(item["loc"][0]) if item["loc"] else ""
            message = item["msg"].removeprefix("Value error, ")
            got = repr(item["input"]) if name and item["type"] not in ("value_error", "missing") else ""
            problems.append(Problem(where, name, message[:1].lower() + message[1:], got))
        raise JobError("the job cannot be run:", problems) from error


def override(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """A job file's settings with those of the flags in their place, whichever name the file used."""
    older = {alias: name for name in flags for alias in hyperparameters.aliases_of(name)}
    return {name: value for name, value in values.items() if older.get(name, name) not in flags} | dict(flags)


CLOUD_KEYS = frozenset(
    {
        *("compute", "identity", "queue_settings", "resources", "environment_id", "environment_variables"),
        *("services", "outputs", "log_verbosity", "experiment_name", "description", "tags", "properties"),
        *("target_column_name", "test_data", "id"),
    }
)
"""Keys of Azure job files that mean nothing on one's own machines."""

_KEYS = (
    "type", "task", "name", "display_name", "primary_metric", "training_data", "validation_data",
    "validation_data_size", "training_parameters", "limits", "sweep", "search_space", "local", "$schema",
)  # fmt: skip
_RUN_ID = "checkpoint_run_id"
_LOCAL_KEYS = ("weights", "gpus", "processes", "datastores", "skip_invalid")
_LIMITS = ("timeout_minutes", "max_trials", "max_concurrent_trials")
_DATA_KEYS = ("path", "type", "mode")
_SECTIONS = ("training_parameters", "limits", "local")


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The values of a job file, as `make` takes them, and the names of keys that mean nothing here.

    Raises:
        JobError: the file is missing, no YAML, or holds keys that are unknown or not supported.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise JobError("the job file cannot be read", [Problem(str(path), "", str(error))]) from error
    if not isinstance(content, Mapping):
        raise JobError("the job file cannot be read", [Problem(str(path), "", "must hold a YAML mapping")])
    problems = [
        Problem(str(path), key, "must be a mapping", repr(content[key]))
        for key in _SECTIONS
        if content.get(key) is not None and not isinstance(content[key], Mapping)
    ]
    if problems:
        raise JobError("the job file cannot be used:", problems)
    problems = [*_unknown(path, content), *_unsupported(path, content)]
    if content.get("type", "automl") != "automl":
        problems.append(Problem(str(path), "type", "must be automl", repr(content["type"])))
    local = content.get("local") or {}
    near = [f"local.{key}" for key in local if key not in _LOCAL_KEYS]
    problems += [
        Problem(str(path), key, "no such key", hint=f"there are {', '.join(_LOCAL_KEYS)}") for key in near
    ]
    stores = local.get("datastores") or {}
    if not isinstance(stores, Mapping) or not all(isinstance(at, str) and at for at in stores.values()):
        problems.append(
            Problem(str(path), "local.datastores", "must map names to directories or URLs", repr(stores))
        )
    if problems:
        raise JobError("the job file cannot be used:", problems)
    parameters = dict(content.get("training_parameters") or {})
    values: dict[str, Any] = {key: content[key] for key in ("task", "primary_metric") if key in content}
    if "validation_data_size" in content:
        values["validation_data_size"] = content["validation_data_size"]
    for key in ("training_data", "validation_data"):
        if content.get(key):
            values[key] = tuple(_data_paths(path, key, content[key]))
    if "model_name" in parameters:
        values["model"] = parameters.pop("model_name")
    if name := content.get("display_name") or content.get("name"):
        values["name"] = str(name)
    run = parameters.get(_RUN_ID)
    if isinstance(run, str) and run and (path.parent / run).exists():
        parameters[_RUN_ID] = _anchored(run, path.parent)  # as everything that the file names
    values["settings"] = parameters
    values.update({key: value for key, value in local.items() if value is not None})
    if isinstance(local.get("weights"), str):
        values["weights"] = _anchored(local["weights"], path.parent)
    if stores:
        values["datastores"] = {str(name): _anchored(at, path.parent) for name, at in stores.items()}
    return values, sorted(CLOUD_KEYS & content.keys())


def _unknown(path: Path, content: Mapping[str, Any]) -> list[Problem]:
    known = [*_KEYS, *CLOUD_KEYS]
    problems = []
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else ""
            problems.append(Problem(str(path), str(key), "no job file has this key", hint=hint))
    return problems


def _unsupported(path: Path, content: Mapping[str, Any]) -> list[Problem]:
    """Keys of sweeps, which this version does not run: refused rather than passed over."""
    rule = "asks for a sweep, which this version does not run"
    hint = "give fixed values under training_parameters"
    problems = [
        Problem(str(path), key, rule, hint=hint) for key in ("sweep", "search_space") if content.get(key)
    ]
    limits = content.get("limits") or {}
    problems += [
        Problem(str(path), f"limits.{key}", "no such key", hint=f"there are {', '.join(_LIMITS)}")
        for key in limits
        if key not in _LIMITS
    ]
    if limits.get("max_trials", 1) != 1:
        problems.append(Problem(str(path), "limits.max_trials", rule, str(limits["max_trials"]), hint))
    if "timeout_minutes" in limits:
        problems.append(Problem(str(path), "limits.timeout_minutes", "is not supported by this version yet"))
    return problems


def _data_entry(paths: tuple[str, ...]) -> Any:
    # The file will lie elsewhere than the command was given.
    entries = [{"path": path if _is_remote(path) else abspath(path), "type": "mltable"} for path in paths]
    return entries[0] if len(entries) == 1 else entries


def _data_paths(file: Path, key: str, entry: Any) -> list[str]:
    """Paths of a data entry, or of a list of them (our own form); a relative path is relative to the file."""
    paths = []
    for item in entry if isinstance(entry, list) else [entry]:
        path = item.get("path") if isinstance(item, Mapping) else item
        unknown = [str(k) for k in item if k not in _DATA_KEYS] if isinstance(item, Mapping) else []
        if unknown:
            hint = f"there are {', '.join(_DATA_KEYS)}"
            problem = Problem(str(file), f"{key}.{unknown[0]}", "no such key", hint=hint)
            raise JobError("the job file cannot be used:", [problem])
        if not isinstance(path, str) or not path:
            problem = Problem(
                str(file), f"{key}.path", "must be a file, an MLTable folder or a URL", repr(path)
            )
            raise JobError("the job file cannot be used:", [problem])
        paths.append(path if _is_remote(path) else str(file.parent / path))
    return paths


def _anchored(choice: str, directory: Path) -> str:
    """A local path made absolute; words such as "pretrained" and URLs stay as they are."""
    if choice in (PRETRAINED, NONE) or is_address(choice) or _is_remote(choice):
        return choice
    return abspath(directory / Path(choice).expanduser())


def _is_remote(path: str) -> bool:
    return "://" in path or path.startswith("azureml:")
