"""The directory of a run: the paths in it, and its result."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated

from filelock import FileLock, Timeout
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from trainer.errors import RunError, problems_of
from trainer.files import write_atomically
from trainer.full_disk import full_disk_told
from trainer.tasks import Task

MetricValue = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A metric's value. NaN if it is undefined, which JSON writes as null."""


class Durations(BaseModel):
    """Wall time of the parts of a run, in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prepare: float = Field(0.0, ge=0)
    train: float = Field(0.0, ge=0)
    evaluate: float = Field(0.0, ge=0)
    package: float = Field(0.0, ge=0)
    total: float = Field(0.0, ge=0)


class Result(BaseModel):
    """The outcome of a run, as in `result.json`.

    Attributes:
        model: the model's published name.
        primary_metric: name of the metric that selects the best epoch.
        value: of the primary metric at the best epoch.
        best_epoch: counted from 1, as in metrics.csv; 0 is the probe that training started from.
        best_epoch_chosen_on: the images by whose primary metric it is the best; empty in results of earlier
            versions.
        epochs: number of trained epochs.
        timed_out: a time limit ended training, perhaps before its last epoch.
        model_path: the packaged model, relative to the run's directory, with forward slashes.
        metrics: every metric at the best epoch.
        best_trial: number of the trial that the model comes from; None if the run is not a sweep.
        seed: the job's random_seed; None if it has none.
        versions: of the packages that affect the result, by distribution name.
        data_fingerprint: see trainer.data.fingerprint; empty in results of earlier versions.
        git_commit: of the repository in which the run was started; None if it was in none.
        calibration: of a calibrated model, on the validation images: temperature, bias, and the expected
            calibration error (ECE) before, after, and after cross-fitting; empty without calibration.
        peak_memory: in bytes, of the "process" and, if it used one, of its "GPU".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task
    model: str
    primary_metric: str
    value: MetricValue
    best_epoch: int = Field(ge=0)
    best_epoch_chosen_on: str = ""
    epochs: int = Field(ge=0)
    timed_out: bool = False
    durations: Durations
    model_path: str
    metrics: dict[str, MetricValue]
    best_trial: int | None = None
    seed: int | None
    versions: dict[str, str]
    data_fingerprint: str = ""
    git_commit: str | None = None
    calibration: dict[str, MetricValue] = Field(default_factory=dict)
    peak_memory: dict[str, int] = Field(default_factory=dict)

    @property
    def best_of_epochs(self) -> str:
        """The best epoch and the number of epochs, in words."""
        return best_of(self.best_epoch, self.epochs)

    @field_validator("model_path")
    @classmethod
    def _stays_in_the_run(cls, path: str) -> str:
        if Path(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError("must be relative to the run's directory, and inside it")
        return path


def best_of(epoch: int, epochs: int) -> str:
    """The best epoch, counted from 1 or 0 for the probe, and the number of epochs in words."""
    return f"{epoch or '0 (the probe)'} of {epochs}"


class Run:
    """The directory of a run. `create` and `create_at` claim it: no two runs write to the same directory.

    Attributes:
        is_rank_zero: whether this process writes the run. False in the other processes of a run on several
            devices, which may not even see the directory.
        job: the resolved job, which can be run again.
        metrics: one row of metrics per epoch.
        class_metrics: one row of metrics per evaluated epoch and class.
        best_checkpoint: the checkpoint of the epoch with the best primary metric.
        previous_checkpoint: the last checkpoint but one, to resume from if the last is damaged.
        model: the directory of the packaged MLflow model.
        predictions: the best epoch's predictions for the validation images, one per line.
        report: the HTML report.
        report_parts: the directory of the report's charts and tables, as SVG and CSV files.
        evaluation: metrics and error analysis of the predictions: trainer.metrics.results.Analysis as JSON.
        skipped: the lines and objects that were left out, with the reasons, as JSON lines.
    """

    def __init__(self, directory: Path, *, is_rank_zero: bool = True) -> None:
        self.directory, self.is_rank_zero = directory, is_rank_zero
        self.job = directory / "job.yaml"
        self.metrics = directory / "metrics.csv"
        self.class_metrics = directory / "metrics_by_class.csv"
        self.checkpoints = directory / "checkpoints"
        self.best_checkpoint = self.checkpoints / "best.ckpt"
        self.last_checkpoint = self.checkpoints / "last.ckpt"
        self.previous_checkpoint = self.checkpoints / "previous.ckpt"
        self.model = directory / "model"
        self.predictions = directory / "predictions.jsonl"
        self.result = directory / "result.json"
        self.report = directory / "report.html"
        self.report_parts = directory / "report"
        self.evaluation = directory / "metrics.json"
        self.log = directory / "trainer.log"
        self.skipped = directory / "skipped.jsonl"

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.directory == other.directory

    def __hash__(self) -> int:
        return hash(self.directory)

    @classmethod
    def create(cls, root: Path, name: str | None = None) -> Run:
        """Create a new directory under `root`, named after the local time and `name`.

        Args:
            root: created if it is missing.
            name: describes the run, such as `object-detection-yolo11n`. Characters that are awkward in a path
                become dashes.

        Raises:
            RunError: `root` is not a directory, or cannot be written to.
        """
        stem = datetime.now().strftime("%Y%m%d-%H%M%S")
        if name:
            stem += "-" + (re.sub(r"[^\w.-]+", "-", name).strip("-.")[:100] or "run")
        _make(root)
        number = 1
        while True:
            directory = root / (stem if number == 1 else f"{stem}-{number}")
            try:
                directory.mkdir()  # atomic: if several runs try at once, one succeeds
            except FileExistsError:
                number += 1
            except OSError as error:
                raise RunError(f"{directory}: cannot be created: {error.strerror}") from error
            else:
                return cls._claim(directory)

    @classmethod
    def create_at(cls, directory: Path) -> Run:
        """Create a run in exactly this directory, which must be new or empty.

        Raises:
            RunError: the directory is not empty, is not a directory, or cannot be written to.
        """
        _make(directory)
        try:
            taken = next(iter(sorted(directory.iterdir())), None)
        except OSError as error:
            raise RunError(f"{directory}: cannot be read: {error.strerror}") from error
        if taken is not None:
            raise RunError(_taken(directory, taken.name))
        return cls._claim(directory)

    @classmethod
    def open(cls, directory: Path, needs: Iterable[str] = ("job.yaml",)) -> Run:
        """Open the directory of an existing run.

        Args:
            needs: paths in it that the caller will use, such as "model" or "checkpoints/best.ckpt".

        Raises:
            RunError: there is no such directory, or a path in it is missing.
        """
        if not directory.is_dir():
            what = "is a file" if directory.exists() else "does not exist"
            raise RunError(f"{directory}: {what}; give the directory of a run, as printed by `trainer fit`")
        missing = [path for path in needs if not (directory / path).exists()]
        if missing:
            hint = (
                "it is a packaged model; the run is probably the directory above it"
                if (directory / "MLmodel").exists()
                else "is it the directory of a run, and has the run finished?"
            )
            raise RunError(f"{directory}: lacks {', '.join(missing)}; {hint}")
        return cls(directory)

    @classmethod
    def _claim(cls, directory: Path) -> Run:
        run = cls(directory)
        try:
            run.checkpoints.mkdir()
        except FileExistsError as error:  # another run claimed it after the check that it is empty
            raise RunError(_taken(directory, run.checkpoints.name)) from error
        except OSError as error:
            raise RunError(f"{directory}: cannot be written to: {error.strerror}") from error
        return run

    @contextmanager
    def lock(self, patience: float = 0) -> Iterator[None]:
        """Lock the run for this process. The system releases the lock when the process ends, however it ends.

        Args:
            patience: seconds to wait for another process to end.

        Raises:
            RunError: another process is training the run.
        """
        try:
            with FileLock(self.directory / ".lock", timeout=patience):
                yield
        except Timeout:
            rule = "is being trained by another process; wait for it, or end it"
            raise RunError(f"{self.directory}: {rule}") from None

    def full_disk_told(self) -> AbstractContextManager[None]:
        """A context in which an error that a full disk causes becomes a FullDiskError with the next step."""

        def next_step() -> str:
            if self.job.exists():
                return f"resume with --resume {self.directory}"
            return f"remove {self.directory} and start again"

        return full_disk_told(self.directory, next_step)

    def write_job(self, text: str) -> None:
        """Write `job.yaml` atomically."""
        write_atomically(self.job, text)

    def write_result(self, result: Result) -> None:
        """Write `result.json` atomically.

        Raises:
            OSError: the disk is full, or the directory is not writable.
        """
        write_atomically(self.result, result.model_dump_json(indent=2) + "\n")

    def read_result(self) -> Result:
        """Read `result.json`.

        Raises:
            RunError: it is missing, because the run has not finished, or damaged.
        """
        try:
            text = self.result.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise RunError(f"{self.result}: does not exist; the run failed, or has not finished") from error
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{self.result}: cannot be read: {error}") from error
        try:
            return Result.model_validate_json(text)
        except ValidationError as error:
            details = "; ".join(map(str, problems_of(error)))
            raise RunError(f"{self.result}: is not the result of a run: {details}") from error


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunError(f"{directory}: must be a directory, but is a file") from error
    except OSError as error:
        raise RunError(f"{directory}: cannot be created: {error.strerror}") from error


def _taken(directory: Path, content: str) -> str:
    return (
        f"{directory}: the output directory must be new or empty, but it contains {content}; name another, "
        "or leave it out to get a new one for each run"
    )
