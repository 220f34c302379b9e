"""Evaluates a packaged model, or predictions made elsewhere: metrics, error analysis and slices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import numpy as np

from trainer.annotations import Classification, Detections, Prediction
from trainer.data.progress import track
from trainer.data.reading.input_paths import PathLike
from trainer.data.reading.jsonl import ReadResult
from trainer.data.reading.records import Records
from trainer.data.reading.schema import LABEL_KEY
from trainer.data.reading.skipped import SkippedCount
from trainer.errors import JobError, Problem, RunError
from trainer.evaluating import answer_file, evaluation_data, intervals, slices
from trainer.evaluating.evaluation_data import UNKNOWN_CLASSES, EvaluationData
from trainer.evaluating.intervals import MeasuredMetric, Resampling
from trainer.evaluating.packaged_model import LOWEST_SCORE, PackagedModel
from trainer.evaluating.tables import write_tables
from trainer.files import write_atomically
from trainer.job.job import Job
from trainer.metric_names import parse_metric
from trainer.metrics.analysis import analyse_classes, analyse_objects
from trainer.metrics.bootstrap import RESAMPLES
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.intervals import Difference, Interval
from trainer.metrics.results import Analysis
from trainer.models.precision import Precision
from trainer.runs import Run
from trainer.scoring import requested
from trainer.tasks import Task

_REFUSED = "the evaluation cannot be run:"
_IOU = 0.5
"""Minimum IoU for a match, unless an evaluation names another."""
METRICS_FILE, PREDICTIONS_FILE = "metrics.json", "predictions.jsonl"


@dataclass(frozen=True, slots=True)
class Options:
    """Options of an evaluation.

    Attributes:
        iou_threshold: minimum IoU for a match, in [0.1, 1]; detection and segmentation only. None: 0.5.
        slice_by: keys of the data's lines; metrics are also computed for each of their values.
        unknown_classes: see `evaluation_data.for_classes`.
        skip_invalid: leave out invalid objects and lines instead of rejecting the data.
        datastores: Azure datastore name → local directory or URL with its content.
        target_column_name: the key of the data's lines that holds the label; None: that of the run's job, or
            `label` for a model outside a run.
        output: directory to write metrics.json, the tables and a model's predictions.jsonl to.
        primary_metric: metric that gets a confidence interval; None: that of the run's job, or the task's.
        resampling: how the interval is made.
    """

    iou_threshold: float | None = None
    slice_by: Sequence[str] = ()
    unknown_classes: str = "error"
    skip_invalid: bool = False
    datastores: Mapping[str, str] | None = None
    target_column_name: str | None = None
    output: Path | None = None
    primary_metric: str | None = None
    resampling: Resampling = field(default_factory=Resampling)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        analysis: metrics, curves, errors and slices.
        notes: one-line notes on the data for the user.
        primary: the primary metric, which can be resampled; None if it is undefined for the data.
    """

    analysis: Analysis
    notes: list[str]
    primary: MeasuredMetric | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics by name; if undefined, NaN, or -1 for detection and segmentation."""
        return self.analysis.metrics

    @property
    def interval(self) -> Interval | None:
        """The 95 % confidence interval of the primary metric."""
        return self.analysis.interval

    def difference(
        self, other: Evaluation, *, resamples: int = RESAMPLES, random_seed: int = 0
    ) -> Difference | None:
        """The paired difference of the primary metric, other − this one, on the images of both evaluations.

        Returns:
            The difference with its 95 % interval; None if no image is in both, or the metric is undefined.
        """
        if self.primary is None or other.primary is None or self.primary.name != other.primary.name:
            return None
        named = [("first", self.primary), ("second", other.primary)]
        return next(iter(intervals.compare(named, Resampling(resamples, random_seed))), None)


def evaluate_model(
    run_or_model: Path,
    data: Sequence[PathLike],
    options: Options | None = None,
    *,
    box_score_threshold: float | None = None,
    device: str | None = None,
    precision: Precision = "auto",
    progress: bool = False,
) -> Evaluation:
    """Evaluate a run's model, or a packaged model.

    Args:
        run_or_model: directory of a run or of an MLflow model.
        data: .jsonl files and MLTable folders, local or by URL.
        box_score_threshold: objects with lower scores are ignored; None takes LOWEST_SCORE, since average
            precision needs all objects. The model's own gives the metrics of its training run.
        device: in torch's notation; None takes the first GPU if there is one, else the CPU.
        precision: in which the network computes.
        progress: show progress.

    Raises:
        RunError, WeightsError: the model is missing or incomplete, or the output cannot be written.
        DataError: the data are invalid, do not fit the model, or have unreadable images.
        JobError: an option is out of range.
    """
    options = options or Options()
    _check_options(options, box_score_threshold)
    model = PackagedModel(run_or_model, device, precision)
    spec = model.spec
    _check_task(spec.task, options, box_score_threshold)
    if box_score_threshold is None:
        box_score_threshold = LOWEST_SCORE
    job, job_notes = _job_of(model.directory)
    label_key = options.target_column_name or (job.target_column_name if job else LABEL_KEY)
    metric = _primary_metric(options, spec.task, job)
    result = _load(spec.task, data, options, label_key)
    subject = evaluation_data.for_classes(result, spec.classes, options.unknown_classes, label_key)
    subject.notes.extend(job_notes)
    intervals.check_metric(metric, spec.task, subject.classes)
    partitions = slices.by_key(subject.records, subject.files, options.slice_by)
    served_thresholds = spec.class_score_thresholds or dict.fromkeys(
        spec.classes, spec.parameters.box_score_threshold
    )
    parameters = requested(spec.parameters, {"box_score_threshold": float(box_score_threshold)})
    results: list[Classification | EvaluatedImage] = []
    sizes: list[tuple[int, int]] = []
    with ExitStack() as stack:
        answers = stack.enter_context(_open_answers(options.output)) if options.output else None
        predictions = model.predict(subject.records, parameters)
        if progress:
            predictions = track(predictions, "evaluating images", len(subject.records))
        for index, (prediction, size) in enumerate(predictions):
            if answers is not None:
                image_url = subject.records.image_url(index)
                points = parameters.max_number_of_polygon_points
                _write_answer(answers, image_url, prediction, spec.classes, points)
            sizes.append(size)
            results.append(_compact(_relabelled(prediction, spec.classes, subject.classes), subject, index))
    return _analyse(
        subject,
        results,
        sizes,
        partitions,
        options,
        metric,
        score_threshold=box_score_threshold if spec.task.has_boxes else None,
        served_thresholds=served_thresholds if spec.task.has_boxes else {},
    )


def evaluate_answers(
    task: Task, predictions: Path, data: Sequence[PathLike], options: Options | None = None
) -> Evaluation:
    """Evaluate predictions made elsewhere.

    Masks are the areas of the answers' polygons, by COCO's rule. `evaluate_model` compares a model's masks
    themselves; as polygons have a limited number of points, its metrics may differ slightly from those of the
    model's answers.

    Args:
        predictions: JSON lines of the documented schema; see trainer.evaluating.answer_file.
        data: .jsonl files and MLTable folders, local or by URL.

    Raises:
        RunError: the output cannot be written.
        DataError: the data or the predictions are invalid, or do not fit each other.
        JobError: an option is out of range.
    """
    options = options or Options()
    _check_options(options)
    _check_task(task, options)
    label_key = options.target_column_name or LABEL_KEY
    metric = _primary_metric(options, task, None)
    result = _load(
        task, data, options, label_key, needs_images=False
    )  # their sizes may be declared in the data
    records = result.records
    answers = answer_file.read(predictions, task, records)
    if not answers.is_by_name and SkippedCount.of(result.skipped).lines:
        rule = "must name their images (image_url), since invalid lines of the data are skipped"
        raise JobError("the predictions cannot be used:", [Problem(str(predictions), "", rule)])
    # Answers name all classes of a classifier, but only those classes of a detector that it detected.
    known = answers.classes if task.is_classification else sorted({*answers.classes, *records.classes})
    subject = evaluation_data.for_classes(result, known, options.unknown_classes, label_key)
    intervals.check_metric(metric, task, subject.classes)
    partitions = slices.by_key(subject.records, subject.files, options.slice_by)
    if len(subject.records) < len(records):
        answers = answers.subset(_indices_in(records, subject.records))
    results: list[Classification | EvaluatedImage] = []
    sizes: list[tuple[int, int]] = []
    if task.is_classification:
        results += [answers.classification(index, subject.classes) for index in range(len(answers))]
    else:
        sizes = answer_file.image_sizes(subject.records)
        targets = (subject.target(index) for index in range(len(sizes)))
        results += answers.evaluated_images(subject.classes, sizes, targets)
    return _analyse(subject, results, sizes, partitions, options, metric)


def _job_of(model: Path) -> tuple[Job | None, list[str]]:
    """The job of the run that a packaged model is in, None for a model outside a run; and notes on it."""
    job = Run(model.parent).job
    if not job.is_file():
        return None, []
    try:
        return Job.read(job), []
    except JobError as error:
        # The model itself is sound, whichever version of the trainer wrote its run.
        return None, [f"warning: {error}; so the job's target_column_name and primary metric are not used"]


def _primary_metric(options: Options, task: Task, job: Job | None) -> str:
    """The metric that gets an interval: the user's or the run's, if evaluations have that one.

    Raises:
        JobError: the task has no metric of that name.
    """
    if options.primary_metric is None:
        is_own = job is not None and job.task is task
        return intervals.default_metric(task, job.metric if job and is_own else task.primary_metric)
    try:
        return parse_metric(options.primary_metric, task)
    except ValueError as error:
        raise JobError(_REFUSED, [Problem("--primary-metric", "", str(error))]) from error


def _load(
    task: Task, data: Sequence[PathLike], options: Options, label_key: str, *, needs_images: bool = True
) -> ReadResult:
    return evaluation_data.load(
        task,
        data,
        datastores=options.datastores,
        label_key=label_key,
        skip_invalid=options.skip_invalid,
        extra_keys=options.slice_by,
        needs_images=needs_images,
    )


def _check_task(task: Task, options: Options, box_score_threshold: float | None = None) -> None:
    """Reject the options of boxes for a task without them."""
    given = {"--iou-threshold": options.iou_threshold, "--box-score-threshold": box_score_threshold}
    problems = [
        Problem(flag, "", f"applies only to boxes, not to {task}", str(value), "remove it")
        for flag, value in given.items()
        if value is not None and not task.has_boxes
    ]
    if problems:
        raise JobError(_REFUSED, problems)


def _check_options(options: Options, box_score_threshold: float | None = None) -> None:
    problems = []
    if options.iou_threshold is not None and not 0.1 <= options.iou_threshold <= 1:
        problems.append(Problem("--iou-threshold", "", "must be in [0.1, 1]", str(options.iou_threshold)))
    if box_score_threshold is not None and not 0 <= box_score_threshold <= 1:
        problems.append(Problem("--box-score-threshold", "", "must be in [0, 1]", str(box_score_threshold)))
    if options.unknown_classes not in UNKNOWN_CLASSES:
        rule = f"must be one of {', '.join(UNKNOWN_CLASSES)}"
        problems.append(Problem("--unknown-classes", "", rule, repr(options.unknown_classes)))
    problems += intervals.check(options.resampling)
    if problems:
        raise JobError(_REFUSED, problems)


def _indices_in(records: Records, subset: Records) -> list[int]:
    """The indices in `records` of the records in `subset`."""
    lines = {(int(file), int(line)) for file, line in zip(subset.file_index, subset.lines, strict=True)}
    return [i for i in range(len(records)) if (int(records.file_index[i]), int(records.lines[i])) in lines]


def _compact(prediction: Prediction, subject: EvaluationData, index: int) -> Classification | EvaluatedImage:
    """A prediction as it is kept until the end: with its target, and masks as run lengths."""
    if isinstance(prediction, Classification):
        return prediction
    by_masks = subject.records.task is Task.SEGMENTATION
    return EvaluatedImage.create(prediction, subject.target(index), subject.classes, by_masks=by_masks)


def _relabelled(prediction: Prediction, known: Sequence[str], classes: Sequence[str]) -> Prediction:
    """A prediction whose labels index `classes`, which include all `known` classes of the model."""
    if tuple(known) == tuple(classes):
        return prediction
    new_index = np.array([classes.index(name) for name in known], dtype=np.int64)
    if isinstance(prediction, Detections):
        return replace(prediction, labels=new_index[prediction.labels])
    probs = np.zeros(len(classes), dtype=prediction.probs.dtype)
    probs[new_index] = prediction.probs
    return Classification(probs)


def _analyse(
    subject: EvaluationData,
    results: Sequence[Classification | EvaluatedImage],
    sizes: Sequence[tuple[int, int]],
    partitions: dict[str, slices.Partition],
    options: Options,
    metric: str,
    *,
    score_threshold: float | None = None,
    served_thresholds: Mapping[str, float] | None = None,
) -> Evaluation:
    """Compute metrics, errors and slices, and write them to `options.output`.

    Args:
        sizes: (height, width) of each image if known, else empty.
        partitions: the slices by the user's keys.
        metric: the primary metric.
    """
    task, classes = subject.records.task, subject.classes
    iou_threshold = _IOU if options.iou_threshold is None else options.iou_threshold
    if sizes:
        partitions = {**partitions, "image size": slices.by_image_size(sizes)}
    if task.is_classification:
        predictions = [each for each in results if isinstance(each, Classification)]
        targets = [subject.target(index) for index in range(len(predictions))]
        analysis = analyse_classes(task, classes, predictions, targets, subject.records)
        sliced = slices.of_classes(task, classes, predictions, targets, partitions)
        primary = intervals.measure_classes(task, classes, predictions, targets, subject.records, metric)
    else:
        images = [each for each in results if isinstance(each, EvaluatedImage)]
        analysis = analyse_objects(
            task,
            classes,
            images,
            iou_threshold=iou_threshold,
            score_threshold=score_threshold,
            served_thresholds=served_thresholds,
            image_names=subject.records,
        )
        sliced = slices.of_objects(task, classes, images, partitions, iou_threshold)
        primary = intervals.measure_objects(
            task, classes, images, subject.records, metric, iou_threshold=iou_threshold
        )
    assert primary is not None, "check_metric knows the metrics"
    interval = primary.interval(options.resampling)
    analysis = analysis.model_copy(update={"slices": sliced, "interval": interval})
    if options.output is not None:
        _write(analysis, options.output)
    return Evaluation(analysis, subject.notes, primary)


def _open_answers(output: Path) -> TextIO:
    try:
        output.mkdir(parents=True, exist_ok=True)
        return (output / PREDICTIONS_FILE).open("w", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{output}: cannot be written to: {error.strerror}") from error


def _write_answer(
    file: TextIO, image_url: str, prediction: Prediction, classes: Sequence[str], max_points: int
) -> None:
    from serving.answers import to_answer  # loads OpenCV

    answer = {"image_url": image_url, **to_answer(prediction, classes, max_points)}
    file.write(json.dumps(answer, ensure_ascii=False, allow_nan=False) + "\n")


def _write(analysis: Analysis, output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / METRICS_FILE, analysis.to_json() + "\n")
        write_tables(analysis, output)
    except OSError as error:
        raise RunError(f"{output}: cannot be written to: {error.strerror}") from error
