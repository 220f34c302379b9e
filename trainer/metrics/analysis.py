"""Computes all metrics and the whole error analysis of an evaluation from predictions and targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from trainer import metrics
from trainer.annotations import Prediction, Target
from trainer.metrics import coco, voc
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.matching import CORRECT, Matches, match_objects
from trainer.metrics.results import Analysis, ConfusionMatrix, ImageNames
from trainer.tasks import Task


def analyse_classes(
    task: Task,
    classes: Sequence[str],
    predictions: Iterable[Prediction],
    targets: Iterable[Target],
    image_names: ImageNames | None = None,
) -> Analysis:
    """Analyse multi-class or multilabel predictions.

    Args:
        classes: names that labels index.
        predictions: one per image.
        targets: one per image, in the same order.
        image_names: names of the images, such as `Records` of the same images in the same order.

    Raises:
        TrainingError: a prediction is not finite.
        TypeError, ValueError: predictions or targets do not fit the task, its classes or each other.
    """
    from trainer.metrics import calibration, class_errors, curves
    from trainer.metrics.classification import MulticlassEvaluator, MultilabelEvaluator

    evaluator = metrics.create(task, classes)
    for prediction, target in zip(predictions, targets, strict=True):
        evaluator.update(prediction, target)
    assert isinstance(evaluator, MulticlassEvaluator | MultilabelEvaluator), "the task is a classification"
    is_multiclass = isinstance(evaluator, MulticlassEvaluator)
    probs, one_hot, predicted = evaluator.arrays()
    matrix = evaluator.confusion_matrix()
    if is_multiclass:
        labels = one_hot.argmax(axis=1) if len(one_hot) else np.zeros(0, np.int64)
        matrices = [ConfusionMatrix(rows=list(classes), columns=list(classes), counts=matrix.tolist())]
        calibrated = calibration.of_classes(probs, labels)
        issues = class_errors.label_issues(classes, labels, probs, image_names)
    else:
        sides = ["absent", "present"]
        matrices = [
            ConfusionMatrix(name=name, rows=sides, columns=sides, counts=counts.tolist())
            for name, counts in zip(classes, matrix, strict=True)
        ]
        calibrated = calibration.of_labels(probs, one_hot)
        issues = class_errors.multilabel_issues(classes, one_hot, probs, image_names)
    return Analysis(
        task=task,
        classes=list(classes),
        images=len(probs),
        metrics=evaluator.compute(),
        per_class=evaluator.per_class(),
        curves=curves.all_curves(classes, one_hot, probs),
        confusion_matrices=matrices,
        calibration=calibrated,
        confused_pairs=class_errors.confused_pairs(classes, one_hot, predicted, probs),
        mistakes=class_errors.mistakes(
            classes, one_hot, predicted, probs, image_names, is_multiclass=is_multiclass
        ),
        worst_images=class_errors.worst_images(
            one_hot, predicted, probs, image_names, is_multiclass=is_multiclass
        ),
        label_issues=issues,
    )


def analyse_objects(
    task: Task,
    classes: Sequence[str],
    images: Sequence[EvaluatedImage],
    *,
    iou_threshold: float = 0.5,
    metric_type: str = "coco_voc",
    score_threshold: float | None = None,
    served_thresholds: Mapping[str, float] | None = None,
    image_names: ImageNames | None = None,
) -> Analysis:
    """Analyse detections or segmentations.

    Args:
        classes: names that labels index.
        images: their predictions include objects of low scores, which average precision needs.
        iou_threshold: minimum IoU for a match, in [0.1, 1].
        metric_type: coco, voc or coco_voc.
        score_threshold: lowest score of the predictions, for the record.
        served_thresholds: class name → score threshold that the model is served with.
        image_names: names of the images, such as `Records` of the same images in the same order.
    """
    from trainer.metrics import calibration, object_errors, tide

    by_masks = task is Task.SEGMENTATION
    matches = match_objects(images, iou_threshold, by_masks=by_masks)
    objects = np.bincount(matches.target_labels, minlength=len(classes))
    by_class = _voc_by_class(matches, len(classes))
    curves, thresholds, counts = object_errors.curves(matches, classes)
    image_level, curves["image_level"] = object_errors.image_level(matches)
    return Analysis(
        task=task,
        classes=list(classes),
        images=len(images),
        objects=int(objects.sum()),
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        metrics=voc.means(by_class) | coco.of_type(metric_type, images, classes, by_masks=by_masks),
        per_class={
            name: values._asdict() | counts[name] for name, values in zip(classes, by_class, strict=True)
        },
        curves=curves,
        confusion_matrices=object_errors.confusion_matrices(matches, classes),
        confused_pairs=object_errors.confused_pairs(matches, classes, thresholds),
        image_level=image_level,
        errors=tide.split(matches, len(classes)),
        calibration=calibration.of_boxes(matches.scores, matches.kinds == CORRECT, matches.images),
        thresholds=thresholds,
        served=object_errors.at_thresholds(matches, classes, served_thresholds or {}),
        mistakes=object_errors.mistakes(matches, classes, image_names),
        worst_images=object_errors.worst_images(matches, len(images), classes, thresholds, image_names),
        label_issues=object_errors.label_issues(matches, classes, image_names),
    )


def metrics_of_objects(
    task: Task, classes: Sequence[str], images: Sequence[EvaluatedImage], iou_threshold: float
) -> tuple[int, dict[str, float]]:
    """Compute the number of target objects, without crowds, and all metrics; see `analyse_objects`."""
    by_masks = task is Task.SEGMENTATION
    matches = match_objects(images, iou_threshold, by_masks=by_masks)
    values = voc.means(_voc_by_class(matches, len(classes)))
    return len(matches.target_labels), values | coco.compute(images, classes, by_masks=by_masks)


def _voc_by_class(matches: Matches, classes: int) -> list[voc.ClassMetrics]:
    objects = np.bincount(matches.target_labels, minlength=classes)
    return voc.by_class(matches.scores, matches.labels, matches.outcomes, objects)
