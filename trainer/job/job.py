"""A job: what to train on what, made from flags, a job file's values (`trainer.job.file`) or in Python."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trainer.errors import JobError, Problem
from trainer.job.places import anchored, data_entry, places_of, tracking_place, without_password
from trainer.job.sweep import MODEL_NAME, Limits, Sweep, canonical
from trainer.models import catalog
from trainer.models.defaults import default_settings, resolve, takes
from trainer.models.weights.choice import NONE, choice_or_environment, of_run
from trainer.settings import Settings
from trainer.tasks import Task

RUN_ID = "checkpoint_run_id"
_OF_SWEEPS = ("objective", "max_latency_ms", "storage", "study")


class Job(BaseModel):
    """One training, or a sweep of several, as asked for.

    Attributes:
        task: a Task, or its name as commands or job files spell it.
        data_assets: where registered data lie, by NAME or NAME:VERSION.
        training_data: JSONL files and MLTable folders, local or by URL, or `azureml:NAME:VERSION`, which
            becomes what data_assets says.
        validation_data: likewise; empty: a part of the training data is split off.
        validation_data_size: that part, in (0, 1).
        model: a model's name; None: the task's default.
        settings: hyperparameters that differ from the model's defaults, by any of their names.
        limits: how many trials, how many at once, how long.
        sweep: how the search space is searched; None: by random sampling, all trials to their end; in
            AutoMode as docs/automode.md has it.
        search_space: sub-spaces: parameter or "model_name" → expression, as job files write them;
            trainer.sweep checks them. Without any, more than one trial means that the models and settings
            to try are left to the sweep (AutoMode).
        primary_metric: None: the task's default.
        weights: "pretrained", "none", a directory of published files, a run's directory, a file, or MLflow's
            address of a model; None: the setting checkpoint_run_id, TRAINER_WEIGHTS or the published ones.
        gpus: how many to use, or "auto" for all; without a GPU, auto trains on the CPU.
        processes: instead of GPUs, this many processes on the CPU.
        objective: "latency" makes a sweep look for short answers, too, beside the primary metric.
        max_latency_ms: the sweep's best model is the best of those that answer an image within this time.
        storage: keeps a sweep's trials for several machines: a database's URL; None: a file of the run.
        study: the sweep's name in the storage; None: that of the run's directory.
        nodes: how many machines train one model together.
        output: the run's directory, new or empty; None: a new one under runs/.
        datastores: what `azureml://…/datastores/NAME/…` stands for, by NAME.
        skip_invalid: go on without invalid lines instead of refusing.
        experiment_name: MLflow's experiment; None: what its environment variables say, or one for the task.
        tracking_uri: the MLflow server or database in which the run is tracked, or "none"; None: what
            MLFLOW_TRACKING_URI says, or a database beside the run's directory.
        register_model: the name under which MLflow's registry gets the packaged model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Task
    data_assets: dict[str, str] = Field(default_factory=dict)
    training_data: tuple[str, ...] = Field(min_length=1)
    validation_data: tuple[str, ...] = ()
    validation_data_size: float = Field(0.2, gt=0, lt=1)
    model: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    limits: Limits = Limits()
    sweep: Sweep | None = None
    search_space: tuple[dict[str, Any], ...] = ()
    primary_metric: str | None = None
    weights: str | None = None
    gpus: int | Literal["auto"] = "auto"
    processes: int | None = Field(None, gt=0)
    objective: Literal["latency"] | None = None
    max_latency_ms: float | None = Field(None, gt=0)
    storage: str | None = Field(None, min_length=1)
    study: str | None = Field(None, min_length=1)
    nodes: int = Field(1, gt=0)
    output: Path | None = None
    datastores: dict[str, str] = Field(default_factory=dict)
    skip_invalid: bool = False
    name: str | None = None
    experiment_name: str | None = Field(None, min_length=1, max_length=500)
    tracking_uri: str | None = Field(None, min_length=1)
    register_model: str | None = None

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

    @field_validator("training_data", "validation_data")
    @classmethod
    def _registered(cls, paths: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        assets = info.data.get("data_assets")
        return paths if assets is None else places_of(paths, assets)

    @field_validator("search_space", mode="before")
    @classmethod
    def _sub_spaces(cls, value: Any) -> Any:
        spaces = [value] if isinstance(value, Mapping) else value or ()
        if not isinstance(spaces, Sequence) or not all(isinstance(s, Mapping) and s for s in spaces):
            raise ValueError("must be a map of parameters to expressions, or a list of such maps")
        return tuple({str(name): expression for name, expression in space.items()} for space in spaces)

    @field_validator("primary_metric", mode="before")
    @classmethod
    def _snake_case(cls, value: Any) -> Any:
        """The REST form writes MeanAveragePrecision."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", value).lower() if isinstance(value, str) else value

    @field_validator("gpus")
    @classmethod
    def _count(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 0:
            raise ValueError(f"must be auto, 0 for the CPU, or a number of GPUs, got {value}")
        return value

    @field_validator("tracking_uri", "storage")
    @classmethod
    def _tracking_place(cls, uri: str | None) -> str | None:
        return None if uri is None else tracking_place(uri, Path.cwd())

    @field_validator("register_model")
    @classmethod
    def _name_in_the_registry(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None and (not name.strip(" .") or "/" in name or ":" in name):
            raise ValueError(f"must be a name without / and :, got {name!r}")
        if name is not None and info.data.get("tracking_uri") == NONE:
            raise ValueError("needs MLflow, which tracking_uri none switches off")
        return name

    @model_validator(mode="after")
    def _metric_of_the_task(self) -> Job:
        if self.primary_metric is not None and self.primary_metric not in self.task.primary_metrics:
            known = " or ".join(self.task.primary_metrics)
            raise ValueError(f"primary_metric of {self.task} must be {known}, got {self.primary_metric!r}")
        return self

    @model_validator(mode="after")
    def _sweep_of_something(self) -> Job:
        if self.sweep is not None and not self.sweeps:
            raise ValueError("sweep needs a search_space to search, or limits.max_trials over 1")
        return self

    @model_validator(mode="after")
    def _sweeps_keys(self) -> Job:
        """What a single training would ignore is refused."""
        given = [name for name in _OF_SWEEPS if getattr(self, name) is not None]
        if given and not self.sweeps:
            goes = "goes" if len(given) == 1 else "go"
            raise ValueError(f"{', '.join(given)} {goes} with a search_space or limits.max_trials over 1")
        return self

    @model_validator(mode="after")
    def _bound_of_an_objective(self) -> Job:
        if self.measures_latency and self.sweep is not None and self.sweep.early_termination is not None:
            raise ValueError("early_termination goes by the primary metric alone: leave out the latency")
        return self

    @property
    def model_name(self) -> str:
        """The model of every training for which the search space names none."""
        return self.model or self.task.default_model

    @property
    def sweeps(self) -> bool:
        """Whether it asks for trials, rather than for one training with settings that are known."""
        return self.limits.max_trials > 1 or bool(self.search_space)

    @property
    def measures_latency(self) -> bool:
        """Whether a sweep has two objectives; what is bounded has to be measured."""
        return self.objective == "latency" or self.max_latency_ms is not None

    @property
    def metric(self) -> str:
        return self.primary_metric or self.task.primary_metric

    @property
    def weights_choice(self) -> str:
        """`weights`, else what checkpoint_run_id stands for, else TRAINER_WEIGHTS, else "pretrained"."""
        run = self.settings.get(RUN_ID)
        return choice_or_environment(self.weights or (of_run(run) if isinstance(run, str) and run else None))

    def resolve_settings(self, where: str = "") -> Settings:
        """All hyperparameters of a single training, checked.

        Args:
            where: the file they stand in, for error messages.

        Raises:
            JobError: see `trainer.models.defaults.resolve`.
        """
        values = dict(self.settings)
        if self.weights_choice == NONE:
            # Layers that start from random values have nothing worth freezing, unless the user says so.
            values.setdefault("layers_to_freeze", None)
        return resolve(self.task, self.model_name, values, where)

    def for_trial(self, proposal: Mapping[str, Any]) -> Job:
        """The single training that a trial is.

        Args:
            proposal: what the sampler chose: parameters by any of their names, and the model as "model_name".
                It takes the place of the job's own values. Of these, settings that mean nothing to the
                proposed model are left out: they are for the other models of the search space.
        """
        chosen = {canonical(name): value for name, value in proposal.items()}
        proposed = chosen.pop(MODEL_NAME, None)
        model = str(proposed or self.model_name)
        own = self.settings
        if proposed is not None:
            entry = catalog.find(model, self.task)
            names = Settings.model_fields
            own = {
                name: value
                for name, value in own.items()
                if canonical(name) not in names or takes(entry, canonical(name))
            }
        changes = {
            "model": model,
            "settings": override(own, chosen),
            "limits": Limits(),
            "sweep": None,
            "search_space": (),
            **dict.fromkeys((*_OF_SWEEPS, "register_model")),
        }
        return self.model_copy(update=changes)

    def to_yaml(self) -> str:
        """The job in the job-file form, complete: every setting with the value that it has.

        A sweep's settings depend on its trials: there stand only those that the job fixes.
        """
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def to_dict(self) -> dict[str, Any]:
        """What to_yaml writes."""
        chosen = self._fixed_settings() if self.sweeps else self._resolved_settings()
        from_run = self.weights is None and chosen.get(RUN_ID) is not None
        if isinstance(chosen.get(RUN_ID), str) and of_run(chosen[RUN_ID]) == chosen[RUN_ID]:
            chosen[RUN_ID] = anchored(chosen[RUN_ID], Path.cwd())
        sweep = self.sweep.model_dump(mode="json", exclude_none=True) if self.sweep else None
        return {
            "type": "automl",
            "task": self.task.job_name,
            **({"display_name": self.name} if self.name else {}),
            **({"experiment_name": self.experiment_name} if self.experiment_name else {}),
            "primary_metric": self.metric,
            "training_data": data_entry(self.training_data),
            **({"validation_data": data_entry(self.validation_data)} if self.validation_data else {}),
            "validation_data_size": self.validation_data_size,
            **({"properties": {"node_count_per_trial": str(self.nodes)}} if self.nodes > 1 else {}),
            "limits": self.limits.model_dump(exclude_none=True),
            **({"sweep": sweep} if sweep else {}),
            **({"search_space": [dict(space) for space in self.search_space]} if self.search_space else {}),
            "training_parameters": chosen,
            "local": {
                # Left to checkpoint_run_id, which a flag may then replace.
                **({} if from_run else {"weights": anchored(self.weights_choice, Path.cwd())}),
                "gpus": self.gpus,
                "processes": self.processes,
                "datastores": {name: anchored(at, Path.cwd()) for name, at in self.datastores.items()},
                "data_assets": {name: anchored(at, Path.cwd()) for name, at in self.data_assets.items()},
                "skip_invalid": self.skip_invalid,
                **({"tracking_uri": without_password(self.tracking_uri)} if self.tracking_uri else {}),
                **({"register_model": self.register_model} if self.register_model else {}),
                **{name: value for name in _OF_SWEEPS if (value := getattr(self, name)) is not None},
                **({"storage": without_password(self.storage)} if self.storage else {}),
            },
        }

    def _fixed_settings(self) -> dict[str, Any]:
        model = {MODEL_NAME: self.model} if self.model else {}
        return model | {canonical(name): value for name, value in self.settings.items()}

    def _resolved_settings(self) -> dict[str, Any]:
        entry = catalog.find(self.model_name, self.task)
        settings = self.resolve_settings()
        defaults = default_settings(self.task, self.model_name, settings.recipe)
        values = settings.model_dump(mode="json")
        return {MODEL_NAME: self.model_name} | {
            name: value
            for name, value in values.items()
            if takes(entry, name) and (value is not None or defaults[name] is not None)
        }


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
            # A union's location ends with the kinds that were tried, a list's with an index.
            parts = item["loc"] if item["loc"][:1] in (("limits",), ("sweep",)) else item["loc"][:1]
            name = ".".join(map(str, parts))
            message = item["msg"].removeprefix("Value error, ")
            got = repr(item["input"]) if name and item["type"] not in ("value_error", "missing") else ""
            hint = "it is a share of the training data such as 0.2" if name == "validation_data_size" else ""
            problems.append(Problem(where, name, message[:1].lower() + message[1:], got, hint))
        raise JobError("the job cannot be run:", problems) from error


def override(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """A job file's settings with those of the flags in their place, whichever name the file used."""
    return {name: value for name, value in values.items() if canonical(name) not in flags} | dict(flags)
