"""A run's directory: what lies where in it, and the result that it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from trainer.errors import RunError
from trainer.tasks import Task


def _null_is_nan(value: Any) -> Any:
    return float("nan") if value is None else value


Figure = Annotated[float, BeforeValidator(_null_is_nan)]
"""A metric's value; one that is undefined is NaN, and null in JSON, which has no NaN."""


class Durations(BaseModel):
    """How long the parts of a run took, in seconds of wall time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prepare: float = Field(0.0, ge=0)
    train: float = Field(0.0, ge=0)
    evaluate: float = Field(0.0, ge=0)
    package: float = Field(0.0, ge=0)
    total: float = Field(0.0, ge=0)


class Result(BaseModel):
    """What a run came to; `result.json` holds it.

    Attributes:
        task: what the model does.
        model: the model's published name.
        primary_metric: name of the metric that chose the best epoch.
        value: that metric at the best epoch.
        best_epoch: counted from 1, as in metrics.csv.
        epochs: how many were trained.
        timed_out: the training ended by a time limit, perhaps before its last epoch.
        durations: in seconds.
        model_path: the packaged model, relative to the run's directory, with forward slashes.
        metrics: every metric at the best epoch.
        best_trial: of a sweep, the number of the trial that the model is of.
        seed: what all of the run's random numbers derive from, None if the job named none.
        versions: of the packages that shaped the result, by distribution name.
        data_fingerprint: of the data (trainer.data.fingerprint); empty in results of earlier versions.
        git_commit: of the repository that the training was started in, None if it was in none.
        peak_memory: bytes that were taken at most: of the "process", and of its "GPU" if it used one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task
    model: str
    primary_metric: str
    value: Figure
    best_epoch: int = Field(ge=0)
    epochs: int = Field(ge=0)
    timed_out: bool = False
    durations: Durations
    model_path: str
    metrics: dict[str, Figure]
    best_trial: int | None = None
    seed: int | None
    versions: dict[str, str]
    data_fingerprint: str = ""
    git_commit: str | None = None
    peak_memory: dict[str, int] = Field(default_factory=dict)

    @field_validator("model_path")
    @classmethod
    def _stays_in_the_run(cls, path: str) -> str:
        if Path(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError("must be relative to the run's directory and lie in it")
        return path


class Run:
    """One run's directory. Making one claims it: two runs never write into the same directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.directory == other.directory

    def __hash__(self) -> int:
        return hash(self.directory)

    @classmethod
    def create(cls, root: Path, name: str | None = None) -> Run:
        """Make a new directory under `root`, called by the local time and `name`.

        Args:
            root: is made if it is missing.
            name: what tells runs apart, such as `object-detection-yolo11n`. Characters that are awkward in
                a path become dashes.

        Raises:
            RunError: `root` is no directory, or cannot be written to.
        """
        stem = datetime.now().strftime("%Y%m%d-%H%M%S")
        if name:
            stem += "-" + (re.sub(r"[^\w.-]+", "-", name).strip("-.")[:100] or "run")
        _make(root)
        number = 1
        while True:
            directory = root / (stem if number == 1 else f"{stem}-{number}")
            try:
                directory.mkdir()  # atomic: of several runs that try at once, one succeeds
            except FileExistsError:
                number += 1
            except OSError as error:
                raise RunError(f"{directory}: cannot be made: {error.strerror}") from error
            else:
                return cls._claim(directory)

    @classmethod
    def create_at(cls, directory: Path) -> Run:
        """Make a run in exactly this directory, which must not exist yet or be empty.

        Raises:
            RunError: the directory holds something, is no directory, or cannot be written to.
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
        """Open the directory of a run that exists.

        Args:
            needs: paths in it that the caller is going to use, such as "model" or "checkpoints/best.ckpt".

        Raises:
            RunError: there is no such directory, or it lacks something; says what.
        """
        if not directory.is_dir():
            what = "is a file" if directory.exists() else "does not exist"
            raise RunError(f"{directory}: {what}; give the directory of a run, as printed by `trainer fit`")
        missing = [path for path in needs if not (directory / path).exists()]
        if missing:
            hint = (
                "it is a packaged model, the run is likely the directory above it"
                if (directory / "MLmodel").exists()
                else "is it a run's directory, and did that run finish?"
            )
            raise RunError(f"{directory}: lacks {', '.join(missing)}; {hint}")
        return cls(directory)

    @classmethod
    def _claim(cls, directory: Path) -> Run:
        run = cls(directory)
        try:
            run.checkpoints.mkdir()
        except FileExistsError as error:  # another run claimed it since it was seen to be empty
            raise RunError(_taken(directory, run.checkpoints.name)) from error
        except OSError as error:
            raise RunError(f"{directory}: cannot be written to: {error.strerror}") from error
        return run

    @property
    def job(self) -> Path:
        """The resolved job, runnable again."""
        return self.directory / "job.yaml"

    @property
    def metrics(self) -> Path:
        """One row of metrics an epoch."""
        return self.directory / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """Of the epoch with the highest primary metric."""
        return self.checkpoints / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def model(self) -> Path:
        """The packaged MLflow model, a directory."""
        return self.directory / "model"

    @property
    def predictions(self) -> Path:
        """The best epoch's predictions for the validation images, one a line."""
        return self.directory / "predictions.jsonl"

    @property
    def result(self) -> Path:
        return self.directory / "result.json"

    @property
    def report(self) -> Path:
        """The page that shows all of this."""
        return self.directory / "report.html"

    @property
    def report_parts(self) -> Path:
        """The report's charts and tables, a directory of SVG and CSV files."""
        return self.directory / "report"

    @property
    def evaluation(self) -> Path:
        """Figures and error analysis of the predictions: trainer.metrics.results.Analysis as JSON."""
        return self.directory / "metrics.json"

    @property
    def log(self) -> Path:
        return self.directory / "trainer.log"

    @property
    def skipped(self) -> Path:
        """The input that was left out at the user's wish, one line each with the reason."""
        return self.directory / "skipped.jsonl"

    @contextmanager
    def lock(self, patience: float = 0) -> Iterator[None]:
        """Hold the run for this process; the system lets go of it when the process ends, however it ends.

        Args:
            patience: seconds to wait for another process to end.

        Raises:
            RunError: another process trains it at present.
        """
        try:
            with FileLock(self.directory / ".lock", timeout=patience):
                yield
        except Timeout:
            rule = "is being trained by another process at present; wait for it, or end it"
            raise RunError(f"{self.directory}: {rule}") from None

    def write_job(self, text: str) -> None:
        """Write `job.yaml`, whole or not at all."""
        _write(self.job, text)

    def write_result(self, result: Result) -> None:
        """Write `result.json`, whole or not at all.

        Raises:
            OSError: the disk is full or the directory not writable.
        """
        _write(self.result, result.model_dump_json(indent=2) + "\n")

    def read_result(self) -> Result:
        """Read `result.json`.

        Raises:
            RunError: it is missing (the run has not finished) or damaged.
        """
        try:
            text = self.result.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise RunError(f"{self.result}: does not exist; the run has not finished or failed") from error
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{self.result}: cannot be read: {error}") from error
        try:
            return Result.model_validate_json(text)
        except ValidationError as error:
            details = "; ".join(
                f"{'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}" for each in error.errors()
            )
            raise RunError(f"{self.result}: is not the result of a run: {details}") from error


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(f"{path.suffix}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunError(f"{directory}: must be a directory, a file is in its place") from error
    except OSError as error:
        raise RunError(f"{directory}: cannot be made: {error.strerror}") from error


def _taken(directory: Path, held: str) -> str:
    return (
        f"{directory}: the output directory must be new or empty, it holds {held}; "
        "name another, or leave it out to get a new one each time"
    )
