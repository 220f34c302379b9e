"""Writes the report of a run, at its end or again later: evaluates its predictions for `trainer.report`."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.data.fingerprint import fingerprint
from trainer.data.training_data import Data
from trainer.errors import RunError, TrainerError
from trainer.evaluating import answer_file, intervals
from trainer.evaluating.intervals import MeasuredMetric
from trainer.job.job import Job
from trainer.metrics import analysis as analysing
from trainer.metrics.intervals import Difference
from trainer.metrics.results import Analysis, Calibration
from trainer.report.comparison_report import run_names, write_comparison
from trainer.report.evaluated_run import EvaluatedRun
from trainer.report.run_report import write_run_report
from trainer.report.trials_csv import TRIALS_FILE, read_trials
from trainer.runs import Run
from trainer.tasks import Task
from trainer.training.job_data import load_data

log = logging.getLogger("trainer")

POLYGON_NOTE = (
    "The metrics below compare the polygons in predictions.jsonl, which have a limited number of points. "
    "Training compares masks, so its metrics may differ slightly."
)


def report(run: Run, job: Job, data: Data, calibration: Calibration | None = None) -> None:
    """Write the report at the end of a run. A failure is logged, and does not fail the run.

    The report of a run without predictions, such as a trial, covers only its training.

    Args:
        calibration: that of the packaged model.
    """
    try:
        if not run.predictions.exists():
            write_run_report(run)
            return
        evaluated, _ = evaluate(run, job, data, calibration)
        write_run_report(run, data=data, evaluated=evaluated, notes=_notes(job.task))
    except Exception as error:
        log.warning(
            "the report could not be written: %s; retry with `trainer report %s`", error, run.directory
        )
        log.debug("no report", exc_info=True)
    else:
        log.info("report: %s", run.report)


def remake(directories: Sequence[Path], output: Path | None = None) -> Path:
    """Write the reports of finished runs again and, for several runs, a page that compares them.

    Args:
        output: the file to write; None for report.html in the run's directory or, for several runs,
            comparison.html in the working directory.

    Raises:
        RunError: a directory holds no finished run, the runs differ in task, or a page cannot be written.
    """
    runs = [Run.open(directory, needs=("job.yaml", "result.json")) for directory in directories]
    is_single = len(runs) == 1
    try:
        remade = [_remake(run, output if is_single else None) for run in runs]
        if is_single:
            return remade[0][0]
        named = zip(run_names(runs), (measured for _, measured in remade), strict=True)
        differences, missing = _differences([(name, measured) for name, measured in named])
        return write_comparison(runs, output or Path("comparison.html"), differences, missing)
    except OSError as error:
        raise RunError(f"the report cannot be written: {error}") from error


def _differences(
    named: Sequence[tuple[str, MeasuredMetric | None]],
) -> tuple[list[Difference], list[str]]:
    """The paired differences of the runs' primary metric, and why there is none for some of the runs."""
    missing = [
        f"{name} has no predictions that could be compared." for name, measured in named if measured is None
    ]
    measured = [(name, metric) for name, metric in named if metric is not None]
    metrics = sorted({metric.name for _, metric in measured})
    if len(metrics) > 1:
        return [], [*missing, f"The runs have different primary metrics: {', '.join(metrics)}."]
    differences = intervals.compare(measured, intervals.Resampling(progress=True))
    compared = {(each.first, each.second) for each in differences}
    names = [name for name, _ in measured]
    missing += [
        f"{first} and {second} were validated on no image in common; compare their models on other data by "
        "`trainer evaluate RUN OTHER_RUN --data …`."
        for first, second in itertools.combinations(names, 2)
        if (first, second) not in compared
    ]
    return differences, missing


def _remake(run: Run, output: Path | None) -> tuple[Path, MeasuredMetric | None]:
    """Write a run's report again; returns its path and the metric of the run's predictions."""
    job = Job.read(run.job)
    if not run.predictions.exists():
        return write_run_report(run, output=output), None
    notes = _notes(job.task)
    data = evaluated = measured = None
    seed = job.settings.get("random_seed")
    try:
        # Records with damaged images have to be skipped again.
        data = load_data(job, seed if isinstance(seed, int) else None, check_images=job.skip_invalid)
        evaluated, measured = evaluate(run, job, data, _packaged_calibration(run))
    except TrainerError as error:
        log.warning("%s: parts of the report are missing: %s", run.directory, error)
        what = "The data" if data is None else "The predictions"
        notes = [f"{what} could not be read, so parts are missing: {error}"]
    trained_on = run.read_result().data_fingerprint
    if data is not None and trained_on and fingerprint(data) != trained_on:
        notes.append("The data have changed since the run was trained on them.")
    return write_run_report(run, data=data, evaluated=evaluated, notes=notes, output=output), measured


def _packaged_calibration(run: Run) -> Calibration | None:
    """The calibration of the run's model as metrics.json has it, which only packaging could make again."""
    if not run.read_result().calibration or not run.evaluation.exists():
        return None
    return Analysis.read(run.evaluation).packaged_calibration


def evaluate(
    run: Run, job: Job, data: Data, calibration: Calibration | None = None
) -> tuple[EvaluatedRun, MeasuredMetric | None]:
    """Metrics, error analysis and the primary metric of a run's predictions on its validation data.

    Args:
        calibration: that of the packaged model, for the record.

    Raises:
        DataError: the predictions are of other data.
    """
    records, classes, task = data.validation, data.classes, job.task
    metric = intervals.default_metric(task, job.metric)
    answers = answer_file.read(run.predictions, task, records)
    targets = [records.target(index, classes) for index in range(len(records))]
    if task.is_classification:
        predictions = [answers.classification(index, classes) for index in range(len(answers))]
        analysis = analysing.analyse_classes(task, classes, predictions, targets, records)
        measured = intervals.measure_classes(task, classes, predictions, targets, records, metric)
        return EvaluatedRun(_with_interval(analysis, measured, calibration), records, answers), measured
    sizes = _sizes(data)
    images = answers.evaluated_images(classes, sizes, targets)
    iou_threshold, metric_type = _validation_settings(run, job)
    analysis = analysing.analyse_objects(
        task, classes, images, iou_threshold=iou_threshold, metric_type=metric_type, image_names=records
    )
    measured = intervals.measure_objects(
        task, classes, images, records, metric, iou_threshold=iou_threshold, metric_type=metric_type
    )
    return EvaluatedRun(_with_interval(analysis, measured, calibration), records, answers, sizes), measured


def _with_interval(
    analysis: Analysis, measured: MeasuredMetric | None, calibration: Calibration | None
) -> Analysis:
    interval = None if measured is None else measured.interval(intervals.Resampling())
    return analysis.model_copy(update={"interval": interval, "packaged_calibration": calibration})


def _sizes(data: Data) -> list[tuple[int, int]]:
    """(height, width) of the validation images, known from the check of the data if it decoded them all."""
    scans = data.validation.scans
    if scans is None or not np.all(scans.sizes):
        return answer_file.image_sizes(data.validation)
    return [(int(height), int(width)) for width, height in scans.sizes]


def _validation_settings(run: Run, job: Job) -> tuple[float, str]:
    """The run's validation_iou_threshold and validation_metric_type; for a sweep, its best trial's."""
    if job.sweeps:
        result = run.read_result()
        trials = read_trials(run.directory / TRIALS_FILE, result.primary_metric)
        proposed = next((trial.settings for trial in trials if trial.number == result.best_trial), {})
        names = ("validation_iou_threshold", "validation_metric_type")
        own = {name: proposed[name] for name in names if name in proposed}
        job = job.for_trial({"model_name": result.model, **own})
    settings = job.resolve_settings()
    return settings.validation_iou_threshold, settings.validation_metric_type


def _notes(task: Task) -> list[str]:
    return [POLYGON_NOTE] if task is Task.SEGMENTATION else []
