"""Lightning's loggers next to MLflow: TensorBoard, Weights & Biases, and CSV files in the run's directory."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from trainer.errors import JobError, Problem, RunError, TrackingError
from trainer.files import write_atomically
from trainer.job.job import Job
from trainer.runs import Run

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

log = logging.getLogger("trainer")

NOTE = "loggers.json"
"""The file in a run's directory that says what each logger has: its last epoch, and for wandb its ID."""
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


def check_loggers(job: Job) -> None:
    """Check that the packages of a job's loggers are installed.

    Raises:
        JobError: all that are missing.
    """
    missing = [
        Problem("", "loggers", f"{name} needs a package that is not installed", hint=f"pip install {package}")
        for name, package in _PACKAGES.items()
        if name in job.loggers and find_spec(package) is None
    ]
    if missing:
        raise JobError("the job cannot be run:", missing)


class Loggers:
    """The loggers of one run, as a context around its training. A resumed run continues their logs.

    Attributes:
        by_name: Lightning's loggers. On ranks other than 0 they write nothing.
    """

    def __init__(self, job: Job, run: Run, *, is_rank_zero: bool) -> None:
        self._path = run.directory / NOTE
        self._note = _read_note(self._path) if is_rank_zero else {}
        self._is_rank_zero = is_rank_zero
        self.by_name: dict[str, Logger] = {}
        for name in job.loggers:
            note = self._note.setdefault(name, {"epoch": -1})
            if name == "wandb":
                note.setdefault("id", uuid4().hex)
            self.by_name[name] = _make(name, job, run, note)
        if is_rank_zero and job.loggers:
            self._start(job)

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._is_rank_zero and "wandb" in self.by_name:  # Lightning leaves its run open
            experiment: Any = self.by_name["wandb"].experiment  # type: ignore[attr-defined]
            experiment.finish(exit_code=0 if kind is None else 1)

    def missing(self, name: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The rows of metrics.csv that a logger does not have."""
        return [row for row in rows if int(row["epoch"]) > self._note[name]["epoch"]]

    def log(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Send an epoch's metrics to a logger; its steps are epochs, counted from 1."""
        logger: Any = self.by_name[name]
        logger.log_metrics({"epoch": epoch, **metrics}, step=epoch)
        logger.save()
        if name == "tensorboard":
            logger.experiment.flush()  # saving does not
        self._note[name]["epoch"] = epoch
        write_atomically(self._path, json.dumps(self._note, indent=2) + "\n")

    def _start(self, job: Job) -> None:
        """Open the logs now, so that a failure is known before training."""
        write_atomically(self._path, json.dumps(self._note, indent=2) + "\n")
        for name, logger in self.by_name.items():
            try:
                _open(name, logger)
                if self._note[name]["epoch"] < 1:
                    logger.log_hyperparams(job.to_dict()["training_parameters"])
            except Exception as error:
                hint = "; run `wandb login`, or set WANDB_MODE=offline" if name == "wandb" else ""
                raise TrackingError(f"the logger {name} does not start: {error}{hint}") from error
            log.info("logger: %s", _where_to_look(name, logger))


def _make(name: str, job: Job, run: Run, note: Mapping[str, Any]) -> Logger:
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

    directory = run.directory.absolute()
    if name == "tensorboard":
        return TensorBoardLogger(directory, name=name, version="", default_hp_metric=False)
    if name == "csv":
        return CSVLogger(directory, name=name, version="")
    is_trial = directory.parent.name == "trials"
    sweep = directory.parent.parent.name if is_trial else None
    return WandbLogger(
        save_dir=directory,
        name=f"{sweep}-{directory.name}" if sweep else directory.name,
        group=sweep,
        id=note["id"],
        project=job.experiment_name or os.environ.get("WANDB_PROJECT") or f"trainer-{job.task}",
    )


def _open(name: str, logger: Any) -> None:
    if name != "csv":
        _ = logger.experiment
        return
    # A new CSVLogger deletes the file of an earlier one.
    path = Path(logger.log_dir, "metrics.csv")
    earlier = path.read_text("utf-8") if path.exists() else ""
    experiment = logger.experiment
    if earlier:
        write_atomically(path, earlier)
        experiment.metrics_keys = earlier.splitlines()[0].split(",")


def _where_to_look(name: str, logger: Any) -> str:
    if name == "tensorboard":
        return f"tensorboard --logdir {logger.log_dir}"
    if name == "csv":
        return str(Path(logger.log_dir, "metrics.csv"))
    return str(
        getattr(logger.experiment, "url", None)
        or f"wandb, offline; wandb sync {Path(logger.experiment.dir).parent}"
    )


def _read_note(path: Path) -> dict[str, dict[str, Any]]:
    try:
        note = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return {str(name): {**entry, "epoch": int(entry["epoch"])} for name, entry in note.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path}: cannot be read: {error}; if you delete it, new logs start") from error
