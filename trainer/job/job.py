"""A job: what to train on what, read from a job file or made in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from trainer.errors import JobError, Problem, problem_of
from trainer.fields import Parsed, option
from trainer.job import file as job_file
from trainer.job.fields import AzureOptions, SweepOptions
from trainer.job.places import anchored, data_entry, without_password
from trainer.job.sweep import MODEL_NAME, Limits, override_space
from trainer.models import catalog
from trainer.models.defaults import default_settings, resolve, takes
from trainer.models.weights.choice import NONE, choice_or_environment, of_run
from trainer.settings import RUN_ID, Settings, canonical


class Job(AzureOptions):
    """A request for a training run or for a sweep of several trials.

    `Job.read` reads a job file. The constructor takes the fields by name, `Job.model_fields` describes them:

        Job(task="object-detection", training_data="train.jsonl", settings={"number_of_epochs": 30})

    It raises pydantic's ValidationError, a ValueError, for wrong values.
    """

    model: str | None = option(
        None, "Name from `trainer models`. [default: the task's default model]", "Model"
    )
    settings: dict[str, Any] = option({}, "Hyperparameters that differ from the defaults.", "Model")
    nodes: int = option(
        1,
        "Number of machines that train one model together, each with this many GPUs or processes. torchrun "
        "and srun set it; docs/many-machines.md shows how.",
        "Hardware",
        gt=0,
    )
    output: Parsed[Path | None, str | Path | None] = option(
        None, "Directory of the run, new or empty. [default: a new one under runs/]", "Output"
    )
    ignored_keys: tuple[str, ...] = Field(default=(), exclude=True, repr=False)

    @classmethod
    def read(cls, path: str | PathLike[str], *, where: str = "", **changes: Any) -> Job:
        """Read a job file of Azure's command line, Python SDK, REST interface or SDK v1, or of a run.

        Args:
            where: origin to name in error messages instead of the path.
            changes: fields that replace the file's. Of `settings`, `limits`, `datastores` and `data_assets`
                each entry replaces its own. Settings and a model given here also fix what the file's search
                space would vary.

        Raises:
            JobError: the file cannot be read, or all problems of its keys or values.
        """
        values, ignored_keys = job_file.read(Path(path))
        return cls.of(where or str(path), **_changed(values, changes), ignored_keys=ignored_keys)

    @classmethod
    def of(cls, where: str = "", **values: Any) -> Job:
        """Make a job from a user's values.

        Args:
            where: origin of the values to name in error messages, such as a file.

        Raises:
            JobError: all problems of the values.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise JobError(
                "the job cannot be run:", [_problem(item, where) for item in error.errors()]
            ) from error

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
        given = [name for name in SweepOptions.model_fields if getattr(self, name) is not None]
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
            **dict.fromkeys((*SweepOptions.model_fields, "register_model")),
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
                **{
                    name: value
                    for name in SweepOptions.model_fields
                    if (value := getattr(self, name)) is not None
                },
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


def _problem(item: Any, where: str) -> Problem:
    # The location of a union ends with the kinds that were tried, that of a list with an index.
    loc = item["loc"] if item["loc"][:1] in (("limits",), ("sweep",)) else item["loc"][:1]
    problem = problem_of(item, where, ".".join(map(str, loc)))
    hint = "it is a fraction of the training data such as 0.2" if loc == ("validation_data_size",) else ""
    return replace(problem, hint=hint)


def override(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes in their place, whichever of its names a setting is given by."""
    changed = {canonical(name) for name in changes}
    return {name: value for name, value in settings.items() if canonical(name) not in changed} | dict(changes)


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A job file's values with changes in their place."""
    merged = {**values, **changes}
    for name in ("limits", "datastores", "data_assets"):
        if changes.get(name) and values.get(name):
            merged[name] = {**values[name], **dict(changes[name])}
    settings = changes.get("settings") or {}
    merged["settings"] = override(values.get("settings", {}), settings)
    if "search_space" in values and "search_space" not in changes:
        merged["search_space"] = override_space(values["search_space"], settings, changes.get("model"))
    return merged
