"""A job: what to train and on which data, read from a job file or made in Python."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from trainer import metric_names
from trainer.errors import JobError
from trainer.fields import Parsed, option
from trainer.job import file as job_file
from trainer.job.changes import merge, override
from trainer.job.fields import AzureOptions, LocalOptions, SweepOptions, problem_of_field
from trainer.job.former import replace_former
from trainer.job.places import anchored, data_entry, without_password
from trainer.job.substitutes import replace_models
from trainer.job.sweep import MODEL_NAME, Limits
from trainer.models import catalog
from trainer.models.augmentation.file import copy_into
from trainer.models.augmentation.file import read as read_augmentation
from trainer.models.defaults import default_settings, left_to_images, resolve, takes, values_for_images
from trainer.models.effects import asks_for_sgd, without_effect
from trainer.models.libraries import require_library
from trainer.models.weights.choice import NONE, choice_or_environment, of_run
from trainer.models.weights.describing import describe
from trainer.models.weights.description import Description
from trainer.settings import RUN_ID, Settings, canonical, chosen_values


class Job(AzureOptions):
    """A request for a training run or for a sweep of several trials.

    `Job.read` reads a job file. The constructor takes the fields by name, `Job.model_fields` describes them:

        Job(task="object-detection", training_data="train.jsonl", settings={"number_of_epochs": 30})

    It raises pydantic's ValidationError, a ValueError, for wrong values.
    """

    model: str | None = option(None, "Model")
    """Name from `trainer models`. [default: the task's default model]"""
    settings: dict[str, Any] = option({}, "Model")
    """Hyperparameters that differ from the defaults."""
    nodes: int = option(1, "Hardware", gt=0)
    """Number of machines that train one model together; gpus and processes are per machine. torchrun and srun
    set it; docs/many-machines.md shows how."""
    output: Parsed[Path | None, str | Path | None] = option(None, "Output")
    """Directory of the run, new or empty. [default: a new one under runs/]"""
    default_recipe: Literal["reference", "modern"] | None = Field(default=None, exclude=True, repr=False)
    """The recipe if the settings name none; None: the model's usual one. Job files use reference."""
    ignored_keys: tuple[str, ...] = Field(default=(), exclude=True, repr=False)
    listed_settings: tuple[str, ...] = Field(default=(), exclude=True, repr=False)
    """Settings from a job file or a search space, which may list settings without effect."""

    @classmethod
    def read(cls, path: str | PathLike[str], *, node: str = "", where: str = "", **changes: Any) -> Job:
        """Read a job file of Azure's command line, Python SDK, REST interface or SDK v1, or of a run.

        Args:
            node: the node to read of a pipeline in which several train image models.
            where: origin to name in error messages instead of the path.
            changes: fields that replace the file's. Entries of `settings`, `limits`, `datastores` and
                `data_assets` replace those of the same name. Settings and a model given here also fix what
                the file's search space would vary.

        Raises:
            JobError: the file cannot be read, or all problems of its keys or values.
        """
        given = {*changes, *map(canonical, changes.get("settings") or ())}
        values, ignored_keys = job_file.read(Path(path), node, given)
        values["listed_settings"] = tuple(map(canonical, values.get("settings", ())))
        return cls.of(
            where or str(path),
            **merge(values, changes),
            default_recipe="reference",
            ignored_keys=ignored_keys,
        )

    @classmethod
    def of_run(cls, file: Path) -> Job:
        """Read the job of a run, to resume it.

        Settings that its file lacks are newer than the run: its recipe sets none of them.

        Raises:
            JobError: see `read`.
        """
        job = cls.read(file)
        if job.sweeps:  # has only the settings that all trials share
            return job
        own = {canonical(name): value for name, value in job.settings.items()}
        entry = catalog.find(job.model_name, job.task)
        left = job.left_to_images()
        older = {
            name: Settings.model_fields[name].get_default()
            for name, value in default_settings(job.task, job.model_name, str(own.get("recipe"))).items()
            # The file also leaves out values that are null by default.
            if takes(entry, name) and value is not None and name not in left
        }
        return job.changed(settings=older | own, listed_settings=tuple(older | own))

    def changed(self, where: str = "", **changes: Any) -> Job:
        """Return a copy with changes, which `Job.read` describes.

        Raises:
            JobError: all problems of the values.
        """
        chosen = {name: value for name, value in self if name in self.model_fields_set}
        return Job.of(where, **merge(chosen, changes))

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
                "the job cannot be run:",
                [problem_of_field(item, cls.model_fields, where) for item in error.errors()],
            ) from error

    @model_validator(mode="before")
    @classmethod
    def _former_parameters(cls, values: Any) -> Any:
        return replace_models(replace_former(values)) if isinstance(values, Mapping) else values

    @field_validator("settings")
    @classmethod
    def _chosen_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return chosen_values(settings)

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> Job:
        if self.sweep is not None and not self.sweeps:
            raise ValueError("sweep needs a search_space to search, or limits.max_trials over 1")
        options = [name for name in SweepOptions.model_fields if getattr(self, name) is not None]
        if options and not self.sweeps:  # a single run would ignore them
            need = "needs" if len(options) == 1 else "need"
            raise ValueError(f"{', '.join(options)} {need} a search_space or limits.max_trials over 1")
        if self.measures_latency and self.sweep is not None and self.sweep.early_termination is not None:
            raise ValueError("early_termination uses only the primary metric; remove the latency objective")
        return self

    @property
    def model_name(self) -> str:
        """The model of every trial for which the search space names none."""
        return self.model or self.task.default_model

    @property
    def sweeps(self) -> bool:
        """Whether the job is a sweep, rather than a single run."""
        return self.limits.max_trials > 1 or bool(self.search_space)

    @property
    def measures_latency(self) -> bool:
        """Whether the sweep measures latency, as a second objective or to bound it."""
        return self.objective == "latency" or self.max_latency_ms is not None

    @property
    def augments_itself(self) -> bool:
        """Whether the recipe's augmentation is used: no augmentation file replaces it.

        Raises:
            JobError: the augmentation file cannot be read.
        """
        return self.augmentation is None or not read_augmentation(self.augmentation).replaces

    @property
    def metric(self) -> str:
        """The primary metric."""
        return self.primary_metric or self.task.primary_metric

    @property
    def weights_choice(self) -> str:
        """The weights to start from: `weights`, checkpoint_run_id, TRAINER_WEIGHTS or "pretrained"."""
        run = self.settings.get(RUN_ID)
        return choice_or_environment(self.weights or (of_run(run) if isinstance(run, str) and run else None))

    def resolve_settings(self, where: str = "") -> Settings:
        """Check and complete the settings of a single run.

        Args:
            where: the job's file, for error messages.

        Raises:
            JobError: see `trainer.models.defaults.resolve`; or the augmentation file cannot be read.
        """
        values = {"recipe": self._usual_recipe(), **self.settings}
        from_scratch = self.weights_choice == NONE
        settings = resolve(
            self.task, self.model_name, values, where,
            augments_itself=self.augments_itself, from_scratch=from_scratch, published=self._published(),
        )  # fmt: skip
        return self._with_primary_metric(settings)

    def require_library(self, where: str = "") -> None:
        """Reject a single run of a model whose library is not installed, before the data are read.

        Args:
            where: the job's file, for the error.

        Raises:
            JobError: names the command that installs the library, and other models.
        """
        require_library(catalog.find(self.model_name, self.task), self.task, where)

    @property
    def substitute_for(self) -> str:
        """The model of MMDetection that the job named and that its model replaces; "" if it named none."""
        backbone = self.settings.get("backbone")
        own = f"{self.model_name} --backbone {backbone}" if backbone else self.model_name
        return next((name for name, words in self.substitutes.items() if words == own), "")

    def describe(self) -> Description | None:
        """Read what the model's files say, if it is a model of the Hub; None for others.

        Raises:
            JobError: no model has this name, or it cannot be trained for the task.
            WeightsError: the files are neither on this machine nor can they be downloaded.
        """
        entry = catalog.find(self.model_name, self.task)
        if entry.card.described_by_files is None:
            return None
        return describe(entry.library_name, self.weights_choice)

    def _published(self) -> Mapping[str, Any]:
        """The defaults that a Hub model's files set; none if the job sets all of them, as a run's does."""
        card = catalog.find(self.model_name, self.task).card
        if card.described_by_files is None or self._chosen() >= set(card.described_settings):
            return {}
        description = self.describe()
        assert description is not None
        return card.described_by_files(description)

    def for_images(self, images: int) -> Job:
        """The job with the settings that its recipe chooses by the number of training images, if any.

        Args:
            images: of each device.
        """
        settings = self.resolve_settings()
        values = values_for_images(self.task, self.model_name, settings, self._chosen(), images)
        return self.model_copy(update={"settings": override(self.settings, values)}) if values else self

    def left_to_images(self) -> tuple[str, ...]:
        """The settings that `for_images` chooses."""
        entry = catalog.find(self.model_name, self.task)
        return left_to_images(entry, self.resolve_settings(), self._chosen())

    def without_effect(self) -> list[str]:
        """A sentence for each setting from a flag or from Python that has no effect on a single run."""
        return without_effect(self.resolve_settings(), self._chosen() - set(self.listed_settings))

    def _chosen(self) -> set[str]:
        return {canonical(name) for name in self.settings}

    def _usual_recipe(self) -> str:
        """The recipe if the settings name none."""
        if self.default_recipe is not None:
            return self.default_recipe
        # The modern recipe fine-tunes weights.
        if asks_for_sgd(self.settings) or self.weights_choice == NONE:
            return "reference"
        return catalog.find(self.model_name, self.task).card.usual_recipe

    def _with_primary_metric(self, settings: Settings) -> Settings:
        """The settings under which evaluations compute the primary metric, too."""
        changes: dict[str, str] = {}
        if self.metric in metric_names.COCO and "coco" not in settings.validation_metric_type:
            changes["validation_metric_type"] = "coco_voc"
        if self.metric == "log_loss":
            changes["log_validation_loss"] = "Enable"
        return settings.model_copy(update=changes)

    def with_augmentation_in(self, directory: Path) -> Job:
        """Copy the augmentation file, if there is one, and return a job that names the copy.

        Args:
            directory: of the run, which then does not depend on the user's file.
        """
        if self.augmentation is None:
            return self
        return self.model_copy(update={"augmentation": copy_into(directory, Path(self.augmentation))})

    def for_trial(self, proposal: Mapping[str, Any]) -> Job:
        """The job of a trial, a single run.

        Args:
            proposal: values from the sampler: settings by any of their names, and the model as "model_name".
                They replace the job's own settings. If they include the model, settings of the job that do
                not apply to it are dropped: they are for other models of the search space.
        """
        chosen = {canonical(name): value for name, value in proposal.items()}
        proposed = chosen.pop(MODEL_NAME, None)
        model = str(proposed or self.model_name)
        settings = self.settings
        if proposed is not None:
            entry = catalog.find(model, self.task)
            settings = {
                name: value
                for name, value in settings.items()
                if canonical(name) not in Settings.model_fields or takes(entry, canonical(name))
            }
        changes = {
            "model": model,
            "settings": chosen_values(override(settings, chosen)),
            "listed_settings": (*self.listed_settings, *chosen),
            "limits": Limits(),
            "sweep": None,
            "search_space": (),
            "calibrate": False,  # only the best trial's model is calibrated, when the sweep packages it
            # AutoMode's search spaces name their recipe; others are meant for Azure's defaults.
            "default_recipe": self.default_recipe or "reference",
            **dict.fromkeys((*SweepOptions.model_fields, "register_model")),
        }
        return self.model_copy(update=changes)

    def to_yaml(self, directory: Path | None = None) -> str:
        """The job as a job file with absolute paths and every setting but those of `left_to_images`.

        A sweep's file has only the settings that the job fixes; the others depend on the trial.

        Args:
            directory: where the file will be. An augmentation file in it is named without it, so that the
                directory can be moved.
        """
        content = self.to_dict()
        local = content["local"]
        if directory is not None and Path(local.get("augmentation", "")).parent == directory.absolute():
            local["augmentation"] = Path(local["augmentation"]).name
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    def to_dict(self) -> dict[str, Any]:
        """The content of `to_yaml`."""
        settings = self._fixed_settings() if self.sweeps else self._resolved_settings()
        run = settings.get(RUN_ID)
        if isinstance(run, str) and of_run(run) == run:
            settings[RUN_ID] = anchored(run, Path.cwd())
        content = {
            "type": "automl",
            "task": self.task.job_name,
            "display_name": self.name or None,
            "experiment_name": self.experiment_name,
            "target_column_name": self.target_column_name,
            "primary_metric": self.metric,
            "training_data": data_entry(self.training_data),
            "validation_data": data_entry(self.validation_data) or None,
            "validation_data_size": self.validation_data_size,
            "properties": {"node_count_per_trial": str(self.nodes)} if self.nodes > 1 else None,
            "limits": self.limits.model_dump(exclude_none=True),
            "sweep": self.sweep.model_dump(mode="json", exclude_none=True) if self.sweep else None,
            "search_space": [dict(space) for space in self.search_space] or None,
            "training_parameters": settings,
            # Without weights, a flag may replace checkpoint_run_id.
            "local": self._local_options(writes_weights=self.weights is not None or run is None),
        }
        return {key: value for key, value in content.items() if value is not None}

    def _local_options(self, *, writes_weights: bool) -> dict[str, Any]:
        """The section `local` of a job file."""
        options = {name: getattr(self, name) for name in LocalOptions.model_fields}
        options["weights"] = anchored(self.weights_choice, Path.cwd()) if writes_weights else None
        for name in ("datastores", "data_assets"):
            options[name] = {key: anchored(place, Path.cwd()) for key, place in options[name].items()}
        for name in ("tracking_uri", "storage"):
            options[name] = options[name] and without_password(options[name])
        options["substitutes"] = self.substitutes or None
        return {name: value for name, value in options.items() if value not in (None, ())}

    def _fixed_settings(self) -> dict[str, Any]:
        model = {MODEL_NAME: self.model} if self.model else {}
        return model | {canonical(name): value for name, value in self.settings.items()}

    def _resolved_settings(self) -> dict[str, Any]:
        entry = catalog.find(self.model_name, self.task)
        settings = self.resolve_settings()
        defaults = default_settings(self.task, self.model_name, settings.recipe)
        values = settings.model_dump(mode="json", exclude=set(self.left_to_images()))
        return {MODEL_NAME: self.model_name} | {
            name: value
            for name, value in values.items()
            if takes(entry, name) and (value is not None or defaults[name] is not None)
        }
