"""The public API: the names that `import trainer` provides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainer.errors import JobError, Problem
from trainer.errors import TrainerError as TrainerError
from trainer.files import without_prefix
from trainer.fitting import fit as fit
from trainer.fitting import resume as resume
from trainer.job.job import Job as Job
from trainer.models.precision import Precision
from trainer.runs import Run as Run
from trainer.tasks import Task as Task

if TYPE_CHECKING:
    from trainer.data.validate import ValidationReport
    from trainer.evaluating.evaluate import Evaluation

try:
    __version__ = version("image-trainer")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

Data = str | PathLike[str] | Sequence[str | PathLike[str]]


def evaluate(
    run_or_model: Run | str | PathLike[str] | None = None,
    *,
    data: Data,
    predictions: str | PathLike[str] | None = None,
    task: Task | str | None = None,
    output: str | PathLike[str] | None = None,
    slice_by: Sequence[str] = (),
    iou_threshold: float | None = None,
    box_score_threshold: float | None = None,
    unknown_classes: Literal["error", "missed", "ignored"] = "error",
    datastores: Mapping[str, str] | None = None,
    target_column_name: str | None = None,
    skip_invalid: bool = False,
    device: str | None = None,
    precision: Precision = "auto",
    primary_metric: str | None = None,
    resamples: int = 1000,
    random_seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a trained model, or predictions made anywhere, on any data.

        evaluation = trainer.evaluate("runs/one", data="test.jsonl")
        evaluation.metrics["mean_average_precision"]
        evaluation.interval.low, evaluation.interval.high
        evaluation.difference(trainer.evaluate("runs/two", data="test.jsonl")).verdict

    Args:
        run_or_model: a run, its directory, or the directory of an MLflow model; None: evaluate `predictions`.
        data: `.jsonl` files and MLTable folders with the targets, local or by URL.
        predictions: JSON lines of the documented schema, one per image.
        task: the task of the predictions. A model knows its own task.
        output: directory to write metrics.json, tables and a model's predictions.jsonl to.
        slice_by: keys of the data's lines; the metrics are also computed for each of their values.
        iou_threshold: minimum IoU for a match, in [0.1, 1]; None: 0.5.
        box_score_threshold: minimum score, in [0, 1], of a model's objects to consider; None: 0.001, since
            average precision needs all objects that a model finds.
        unknown_classes: how to treat classes of the data that the model does not know: raise an error, count
            their objects as missed, or leave them out.
        datastores: directory or URL that `azureml://…/datastores/NAME/…` refers to, by NAME.
        target_column_name: key of the lines that holds the label; None: that of the run's job, or `label`.
        skip_invalid: skip invalid objects and lines instead of raising DataError.
        device: torch's name of the model's device; None: the first GPU, or the CPU if there is none.
        precision: in which a model's network computes, as for `trainer serve`.
        primary_metric: metric that gets a confidence interval; None: that of the run's job, or the task's.
        resamples: number of resamples of the images that the interval is made from; 0: no interval.
        random_seed: seed of the resamples.
        progress: show the progress.

    Raises:
        DataError: data or predictions are invalid, do not fit the model, or have images that cannot be read.
        JobError: an argument is out of range or does not fit the others.
        RunError, WeightsError: the model is missing or incomplete, or the output cannot be written.
    """
    chosen = None if precision == "auto" else precision
    model_only = {"--device": device, "--precision": chosen, "--box-score-threshold": box_score_threshold}
    _check_evaluation(run_or_model, predictions, task, model_only)
    from trainer.evaluating.evaluate import Options, evaluate_answers, evaluate_model
    from trainer.evaluating.intervals import Resampling

    options = Options(
        iou_threshold=iou_threshold,
        slice_by=slice_by,
        unknown_classes=unknown_classes,
        skip_invalid=skip_invalid,
        datastores=datastores,
        target_column_name=target_column_name,
        output=None if output is None else Path(output),
        primary_metric=primary_metric,
        resampling=Resampling(resamples, random_seed, progress),
    )
    if run_or_model is not None:
        return evaluate_model(
            run_or_model.directory if isinstance(run_or_model, Run) else Path(run_or_model),
            _paths(data),
            options,
            box_score_threshold=box_score_threshold,
            device=device,
            precision=precision,
            progress=progress,
        )
    assert predictions is not None, "_check_evaluation requires them"
    assert task is not None, "_check_evaluation requires it"
    return evaluate_answers(
        Task.parse(task), Path(without_prefix(str(predictions), Path.cwd())), _paths(data), options
    )


def validate(
    task: Task | str,
    data: Data,
    validation_data: Data = (),
    *,
    images: bool = False,
    datastores: Mapping[str, str] | None = None,
    target_column_name: str = "label",
    progress: bool = False,
) -> ValidationReport:
    """Check data against the schema, without training.

        report = trainer.validate("object-detection", "train.jsonl")
        print(report.errors, *report.problems, sep="\\n")

    Args:
        task: the task that the data are for.
        data: `.jsonl` files and MLTable folders, local or by URL.
        validation_data: validation data to check too, also for images that are in the training data.
        images: also decode every image; otherwise local files only have to exist.
        datastores: directory or URL that `azureml://…/datastores/NAME/…` refers to, by NAME.
        target_column_name: key of the lines that holds the label.
        progress: show the progress.

    Returns:
        All problems of the data, errors and warnings, and what the valid lines hold.

    Raises:
        DataError: a file cannot be read.
        JobError: no task has this name.
    """
    from trainer.data.validate import validate as check

    return check(
        Task.parse(task),
        _paths(data),
        _paths(validation_data),
        images=images,
        datastores=datastores,
        label_key=target_column_name,
        progress=progress,
    )


def _paths(data: Data) -> Sequence[str | PathLike[str]]:
    return (data,) if isinstance(data, (str, PathLike)) else data


def _check_evaluation(
    run_or_model: object, predictions: object, task: object, model_only: Mapping[str, object]
) -> None:
    """Check that arguments fit each other; `model_only` are those that only a model takes, by flag."""
    problems = []
    if (run_or_model is None) == (predictions is None):
        got = "neither" if predictions is None else "both"
        problems.append(Problem("evaluate", "", "give either a run or model, or --predictions", got))
    if predictions is not None and task is None:
        problems.append(Problem("--task", "", "is required with --predictions"))
    if predictions is None and task is not None:
        problems.append(Problem("--task", "", "applies only to --predictions; a model knows its task"))
    if predictions is not None:
        problems += [
            Problem(flag, "", "applies only to a model, not to --predictions", str(value))
            for flag, value in model_only.items()
            if value is not None
        ]
    if problems:
        raise JobError("the evaluation cannot be run:", problems)
