"""All figures and the whole error analysis of one evaluation: predictions and truths in, one tree out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from trainer import metrics
from trainer.annotations import Prediction, Target
from trainer.metrics import coco, voc
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.image_names import Sources
from trainer.metrics.results import Analysis, ConfusionMatrix
from trainer.tasks import Task


def analyse(
    task: Task,
    classes: Sequence[str],
    predictions: Iterable[Prediction],
    targets: Iterable[Target],
    *,
    iou_threshold: float = 0.5,
    metric_type: str = "coco_voc",
    score_threshold: float | None = None,
    sources: Sources | None = None,
) -> Analysis:
    """Everything about an evaluation.

    Args:
        classes: names; a label is an index into them.
        predictions: one an image, all that the model can make: average precision needs those of low scores.
        truths: one an image, in the same order.
        iou_threshold: in [0.1, 1], for detection and segmentation.
        metric_type: which figures these have: coco, voc or coco_voc.
        score_threshold: below which no predictions were made, to be told along.
        sources: what the images are called; `Records` of the same images and order.

    Raises:
        TrainingError: a prediction is not finite.
        TypeError, ValueError: predictions or truths have not the form of the task and its classes, or are of
            different number.
    """
    if task.is_classification:
        return analyse_classes(task, classes, predictions, targets, sources)
    by_masks = task is Task.SEGMENTATION
    scenes = [
        EvaluatedImage.create(prediction, target, classes, by_masks=by_masks)
        for prediction, target in zip(predictions, targets, strict=True)
    ]
    return analyse_scenes(
        task,
        classes,
        scenes,
        iou_threshold=iou_threshold,
        metric_type=metric_type,
        score_threshold=score_threshold,
        sources=sources,
    )


def analyse_classes(
    task: Task,
    classes: Sequence[str],
    predictions: Iterable[Prediction],
    targets: Iterable[Target],
    sources: Sources | None = None,
) -> Analysis:
    """`analyse` for multi-class and multi-label."""
    from trainer.metrics import calibration, class_errors, curves
    from trainer.metrics.classification import MulticlassEvaluator, MultilabelEvaluator

    evaluator = metrics.create(task, classes)
    for prediction, target in zip(predictions, targets, strict=True):
        evaluator.update(prediction, target)
    assert isinstance(evaluator, MulticlassEvaluator | MultilabelEvaluator), "they are the task's"
    single = isinstance(evaluator, MulticlassEvaluator)
    probs, one_hot, predicted = evaluator.arrays()
    matrix = evaluator.confusion_matrix()
    if single:
        labels = one_hot.argmax(axis=1) if len(one_hot) else np.zeros(0, np.int64)
        matrices = [ConfusionMatrix(rows=list(classes), columns=list(classes), counts=matrix.tolist())]
        found_calibration = calibration.of_classes(probs, labels)
        issues = class_errors.label_issues(classes, labels, probs, sources)
    else:
        matrices = [
            ConfusionMatrix(
                name=name, rows=["absent", "present"], columns=["absent", "present"], counts=counts.tolist()
            )
            for name, counts in zip(classes, matrix, strict=True)
        ]
        found_calibration = calibration.of_labels(probs, one_hot)
        issues = class_errors.multilabel_issues(classes, one_hot, probs, sources)
    return Analysis(
        task=task,
        classes=list(classes),
        images=len(probs),
        metrics=evaluator.compute(),
        per_class=evaluator.per_class(),
        curves=curves.all_curves(classes, one_hot, probs),
        confusion_matrices=matrices,
        calibration=found_calibration,
        confused_pairs=class_errors.confused_pairs(classes, one_hot, predicted, probs),
        mistakes=class_errors.mistakes(classes, one_hot, predicted, probs, sources, single=single),
        worst_images=class_errors.worst_images(one_hot, predicted, probs, sources, single=single),
        label_issues=issues,
    )


def analyse_scenes(
    task: Task,
    classes: Sequence[str],
    scenes: Sequence[EvaluatedImage],
    *,
    iou_threshold: float = 0.5,
    metric_type: str = "coco_voc",
    score_threshold: float | None = None,
    served: Mapping[str, float] | None = None,
    sources: Sources | None = None,
) -> Analysis:
    """`analyse` for detection and segmentation, of images in the form of `trainer.metrics.evaluated_image`.

    Args:
        served: for each class the score threshold that the model answers with.
    """
    from trainer.metrics import matching, object_errors, tide

    by_masks = task is Task.SEGMENTATION
    matches = matching.match_objects(scenes, iou_threshold, by_masks=by_masks)
    objects = np.bincount(matches.target_labels, minlength=len(classes))
    by_class = voc.by_class(matches.scores, matches.labels, matches.outcomes, objects)
    figures = voc.means(by_class) | _coco_figures(scenes, classes, metric_type, by_masks=by_masks)
    lines, thresholds, counts = object_errors.curves(matches, classes)
    at_images, lines["image_level"] = object_errors.image_level(matches)
    return Analysis(
        task=task,
        classes=list(classes),
        images=len(scenes),
        objects=int(objects.sum()),
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        metrics=figures,
        per_class={name: each._asdict() | counts[name] for name, each in zip(classes, by_class, strict=True)},
        curves=lines,
        confusion_matrices=object_errors.confusion_matrices(matches, classes),
        confused_pairs=object_errors.confused_pairs(matches, classes, thresholds),
        image_level=at_images,
        errors=tide.split(matches, len(classes)),
        thresholds=thresholds,
        served=object_errors.at_thresholds(matches, classes, served or {}),
        mistakes=object_errors.mistakes(matches, classes, sources),
        worst_images=object_errors.worst_images(matches, len(scenes), classes, thresholds, sources),
        label_issues=object_errors.label_issues(matches, classes, sources),
    )


def figures_of_scenes(
    task: Task,
    classes: Sequence[str],
    scenes: Sequence[EvaluatedImage],
    *,
    iou_threshold: float,
    metric_type: str,
) -> tuple[int, dict[str, float]]:
    """How many objects there are, without crowds, and the figures alone; arguments as `analyse_scenes`."""
    from trainer.metrics import matching

    by_masks = task is Task.SEGMENTATION
    matches = matching.match_objects(scenes, iou_threshold, by_masks=by_masks)
    objects = np.bincount(matches.target_labels, minlength=len(classes))
    figures = voc.means(voc.by_class(matches.scores, matches.labels, matches.outcomes, objects))
    return int(objects.sum()), figures | _coco_figures(scenes, classes, metric_type, by_masks=by_masks)


def _coco_figures(
    scenes: Sequence[EvaluatedImage], classes: Sequence[str], metric_type: str, *, by_masks: bool
) -> dict[str, float]:
    """COCO's figures where they are asked for, and what then is the mean average precision."""
    if "coco" not in metric_type:
        return {}
    figures = coco.figures(scenes, classes, by_masks=by_masks)
    return figures | ({"mean_average_precision": figures["map_50"]} if metric_type == "coco" else {})
