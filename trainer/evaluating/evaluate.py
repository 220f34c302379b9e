"""The evaluation of a packaged model, or of answers made anywhere: all figures, errors and slices."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np

from trainer import metrics
from trainer.annotations import Classification, Detections, Prediction
from trainer.data.progress import track
from trainer.data.reading.records import Records
from trainer.data.training_data import Checked
from trainer.errors import JobError, Problem, RunError
from trainer.evaluating import answer_file, evaluation_data, slices
from trainer.evaluating.evaluation_data import Subject
from trainer.evaluating.packaged_model import LOWEST_SCORE, PackagedModel
from trainer.evaluating.tables import write_tables
from trainer.metrics import analysis as analysing
from trainer.metrics import masks, matching, object_errors
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.results import Analysis, Slice
from trainer.tasks import Task

METRICS_FILE, PREDICTIONS_FILE = "metrics.json", "predictions.jsonl"
_METRIC_TYPE = "coco_voc"
_SHOWN_WARNINGS = 10


@dataclass(frozen=True, slots=True)
class Options:
    """How to evaluate.

    Attributes:
        datastores: Azure datastore name → local directory or URL with its content.
        iou_threshold: in [0.1, 1], from which on an object counts as found.
        slice_by: keys of the data's lines.
        unknown_classes: see `evaluation_data.make`.
        skip_invalid: leave wrong lines out instead of refusing the data.
        output: directory to write metrics.json and the tables to.
        progress: show how far it is.
    """

    datastores: Mapping[str, str] | None = None
    iou_threshold: float = 0.5
    slice_by: Sequence[str] = ()
    unknown_classes: str = "error"
    skip_invalid: bool = False
    output: Path | None = None
    progress: bool = False


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Attributes:
    analysis: everything that was found.
    remarks: what is to be said about the data, a line each.
    """

    analysis: Analysis
    remarks: list[str]


def evaluate_model(
    run_or_model: Path,
    data: Sequence[str | os.PathLike[str]],
    options: Options | None = None,
    *,
    box_score_threshold: float = LOWEST_SCORE,
    device: str | None = None,
) -> Evaluated:
    """Evaluate a run's model, or a packaged one.

    Args:
        data: .jsonl files and MLTable folders, local or by URL.
        box_score_threshold: objects of lower scores are not looked at. The model's own threshold gives the
            figures of its training, in which average precision ends there, too.
        device: torch's name of it; None takes the first GPU if there is one, else the CPU.

    Raises:
        RunError, WeightsError: there is no whole model, or the output cannot be written.
        DataError: the data are wrong, do not fit the model, or have images that cannot be read.
        JobError: an option is out of range.
    """
    options = options or Options()
    _check(options, box_score_threshold)
    model = PackagedModel(run_or_model, device)
    spec = model.spec
    checked, files = evaluation_data.load(
        spec.task,
        data,
        datastores=options.datastores,
        skip_invalid=options.skip_invalid,
        extra_keys=options.slice_by,
    )
    of, remarks = evaluation_data.make(checked.records, files, spec.classes, options.unknown_classes)
    parts = slices.by_key(of.records, of.files, options.slice_by)
    remarks += _told(checked)
    thresholds = spec.class_score_thresholds or dict.fromkeys(
        spec.classes, spec.parameters.box_score_threshold
    )
    if box_score_threshold == spec.parameters.box_score_threshold and spec.class_score_thresholds:
        box_score_threshold /= 2  # or each class would be cut at its own
    parameters = spec.parameters.model_copy(update={"box_score_threshold": box_score_threshold})
    points = parameters.max_number_of_polygon_points
    found: list[Prediction | EvaluatedImage] = []
    sizes = []
    with ExitStack() as stack:
        lines = stack.enter_context(_opened(options.output)) if options.output is not None else None
        predicted: Iterator[tuple[Prediction, tuple[int, int]]] = model.predict(of.records, parameters)
        if options.progress:
            predicted = track(predicted, "evaluating images", len(of.records))
        for index, (prediction, size) in enumerate(predicted):
            if lines is not None:
                _write_answer(lines, of.records.image_url(index), prediction, spec.classes, points)
            sizes.append(size)
            prediction = _relabelled(prediction, spec.classes, of.classes)
            found.append(_kept(prediction, of, index))
    return _finished(
        of, spec.task, found, sizes, parts, options, remarks,
        score_threshold=box_score_threshold if spec.task.has_boxes else None,
        served=thresholds if spec.task.has_boxes else {},
    )  # fmt: skip


def evaluate_answers(
    task: Task, predictions: Path, data: Sequence[str | os.PathLike[str]], options: Options | None = None
) -> Evaluated:
    """Evaluate answers of the documented schema, one a line.

    Masks are compared as what the answers' polygons cover, by COCO's rule. A model that is evaluated itself
    is compared by its masks: polygons have no holes and a limited number of points, so its figures may
    differ a little from those of its answers.

    Args:
        predictions: JSON lines, see `trainer.evaluating.answer_file`.

    Raises:
        RunError: the output cannot be written.
        DataError: data or answers are wrong, or do not fit each other.
        JobError: an option is out of range.
    """
    options = options or Options()
    _check(options, 0.0)
    checked, files = evaluation_data.load(
        task,
        data,
        datastores=options.datastores,
        skip_invalid=options.skip_invalid,
        extra_keys=options.slice_by,
        needs_images=False,  # their sizes may stand in the data
    )
    records = checked.records
    answers = answer_file.read(predictions, task, records)
    if not answers.is_by_name and checked.skipped:
        rule = "must name their images (image_url), since invalid lines of the data are left out"
        raise JobError("the predictions cannot be used:", [Problem(str(predictions), "", rule)])
    # Answers tell all classes of a classifier; of a detector only those that it happened to find.
    known = answers.classes if task.is_classification else sorted({*answers.classes, *records.classes})
    of, remarks = evaluation_data.make(records, files, known, options.unknown_classes)
    parts = slices.by_key(of.records, of.files, options.slice_by)
    if len(of.records) < len(records):
        answers = answers.subset(_kept_indices(records, of.records))
    remarks += _told(checked)
    found: list[Prediction | EvaluatedImage] = []
    sizes: list[tuple[int, int]] = []
    if task.is_classification:
        found += [answers.classification(index, of.classes) for index in range(len(answers))]
    else:
        sizes = answer_file.image_sizes(of.records)
        by_masks = task is Task.SEGMENTATION
        for index, size in enumerate(sizes):
            prediction, polygons = answers.detections(index, of.classes, size)
            rles = [masks.from_polygons(each, size) for each in polygons] if by_masks else None
            target = of.target(index)
            found.append(EvaluatedImage.create(prediction, target, of.classes, by_masks=by_masks, rles=rles))
    return _finished(of, task, found, sizes, parts, options, remarks)


def _told(checked: Checked) -> list[str]:
    """What is to be said of the data: oddities, and how many lines are left out."""
    told = [str(problem) for problem in checked.problems if problem.warning][:_SHOWN_WARNINGS]
    if checked.skipped:
        told.append(f"{len(checked.skipped):,} invalid lines are left out")
    return told


def _kept_indices(records: Records, kept: Records) -> list[int]:
    places = {(int(file), int(line)) for file, line in zip(kept.file_index, kept.lines, strict=True)}
    return [i for i in range(len(records)) if (int(records.file_index[i]), int(records.lines[i])) in places]


def _finished(
    of: Subject,
    task: Task,
    found: Sequence[Prediction | EvaluatedImage],
    sizes: Sequence[tuple[int, int]],
    parts: dict[str, slices.Parts],
    options: Options,
    remarks: list[str],
    *,
    score_threshold: float | None = None,
    served: Mapping[str, float] | None = None,
) -> Evaluated:
    """Figures, errors and slices; written where that is asked for.

    Args:
        sizes: (height, width) of the images, where they are known.
        parts: of the data by the user's keys.
    """
    parts = dict(parts)
    if sizes:
        parts["image size"] = slices.by_image_size(sizes)
    if task.is_classification:
        predictions = [each for each in found if isinstance(each, Classification)]
        targets = [of.target(index) for index in range(len(found))]
        analysis = analysing.analyse_classes(task, of.classes, predictions, targets, of.records)
        cut = []
        for by, values in parts.items():
            for value, indices in values.items():
                evaluator = metrics.create(task, of.classes)
                for index in indices:
                    evaluator.update(predictions[index], targets[index])
                cut.append(Slice(by=by, value=value, images=len(indices), metrics=evaluator.compute()))
    else:
        compared = [each for each in found if isinstance(each, EvaluatedImage)]
        analysis = analysing.analyse_scenes(
            task,
            of.classes,
            compared,
            iou_threshold=options.iou_threshold,
            metric_type=_METRIC_TYPE,
            score_threshold=score_threshold,
            served=served,
            sources=of.records,
        )
        cut = _by_object_size(of, task, compared, options)
        for by, values in parts.items():
            for value, indices in values.items():
                objects, figures = analysing.figures_of_scenes(
                    task,
                    of.classes,
                    [compared[index] for index in indices],
                    iou_threshold=options.iou_threshold,
                    metric_type=_METRIC_TYPE,
                )
                cut.append(Slice(by=by, value=value, images=len(indices), objects=objects, metrics=figures))
    analysis = analysis.model_copy(update={"slices": cut})
    if options.output is not None:
        _write(analysis, options.output)
    return Evaluated(analysis, remarks)


def _by_object_size(
    of: Subject, task: Task, compared: Sequence[EvaluatedImage], options: Options
) -> list[Slice]:
    matches = matching.match_objects(compared, options.iou_threshold, by_masks=task is Task.SEGMENTATION)
    cut = []
    for name, smallest, largest in slices.OBJECT_SIZES:
        objects, figures = object_errors.of_size(matches, len(of.classes), smallest, largest)
        inside = (matches.target_areas >= smallest) & (matches.target_areas < largest)
        images = len(np.unique(matches.target_image[inside]))
        cut.append(Slice(by="object size", value=name, images=images, objects=objects, metrics=figures))
    return cut


def _kept(prediction: Prediction, of: Subject, index: int) -> Prediction | EvaluatedImage:
    """A prediction in the form in which it is kept: masks become runs at once."""
    if isinstance(prediction, Classification):
        return prediction
    by_masks = of.records.task is Task.SEGMENTATION
    return EvaluatedImage.create(prediction, of.target(index), of.classes, by_masks=by_masks)


def _relabelled(prediction: Prediction, known: Sequence[str], classes: Sequence[str]) -> Prediction:
    """A prediction of the model, its labels counted in `classes`, which hold all of its own."""
    if tuple(known) == tuple(classes):
        return prediction
    at = np.array([classes.index(name) for name in known], dtype=np.int64)
    if isinstance(prediction, Detections):
        return replace(prediction, labels=at[prediction.labels])
    probs = np.zeros(len(classes), dtype=prediction.probs.dtype)
    probs[at] = prediction.probs
    return Classification(probs)


def _check(options: Options, box_score_threshold: float) -> None:
    problems = []
    if not 0.1 <= options.iou_threshold <= 1:
        problems.append(Problem("--iou-threshold", "", "must be in [0.1, 1]", str(options.iou_threshold)))
    if not 0 <= box_score_threshold <= 1:
        problems.append(Problem("--box-score-threshold", "", "must be in [0, 1]", str(box_score_threshold)))
    if options.unknown_classes not in evaluation_data.UNKNOWN_CLASSES:
        rule = f"must be one of {', '.join(evaluation_data.UNKNOWN_CLASSES)}"
        problems.append(Problem("--unknown-classes", "", rule, repr(options.unknown_classes)))
    if problems:
        raise JobError("the evaluation cannot be run:", problems)


def _write_answer(
    lines: TextIO, image_url: str, prediction: Prediction, classes: Sequence[str], points: int
) -> None:
    from serving.answers import to_answer

    answer = {"image_url": image_url, **to_answer(prediction, classes, points)}
    lines.write(json.dumps(answer, ensure_ascii=False, allow_nan=False) + "\n")


def _opened(output: Path) -> TextIO:
    try:
        output.mkdir(parents=True, exist_ok=True)
        return (output / PREDICTIONS_FILE).open("w", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{output}: cannot be written to: {error.strerror}") from error


def _write(analysis: Analysis, output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / METRICS_FILE).write_text(analysis.to_json() + "\n", encoding="utf-8")
        write_tables(analysis, output)
    except OSError as error:
        raise RunError(f"{output}: cannot be written to: {error.strerror}") from error
