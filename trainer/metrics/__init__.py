"""Metrics under their usual names, with one evaluator for each task.

    evaluator = metrics.create(Task.DETECTION, classes)
    for prediction, target in zip(predictions, targets):
        evaluator.update(prediction, target)
    evaluator.compute()["mean_average_precision"]

This package does not need torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trainer.annotations import Prediction, Target
from trainer.tasks import Task


class Evaluator(Protocol):
    """Collects the predictions of an evaluation, image by image, and computes its metrics.

    The order of images does not matter, except that predictions of exactly equal score are ranked in the
    order in which they were added.
    """

    def update(self, prediction: Prediction, target: Target) -> None:
        """Add one image.

        Raises:
            TrainingError: the prediction is not finite.
            TypeError, ValueError: prediction or target do not fit the task and its classes.
        """

    def compute(self) -> dict[str, float]:
        """Compute all metrics of the images added so far; may be called repeatedly."""

    def per_class(self) -> dict[str, dict[str, float]]:
        """Compute the metrics of each class: class name → metric → value."""

    def by_class(self) -> dict[str, dict[str, float]]:
        """Compute those of `per_class` that are quick enough for each epoch, the most telling one first."""

    def reset(self) -> None:
        """Remove all images."""


def create(
    task: Task, classes: Sequence[str], *, iou_threshold: float = 0.5, metric_type: str = "voc"
) -> Evaluator:
    """Create the evaluator for a task.

    Args:
        classes: names that labels index.
        iou_threshold: minimum IoU for a match in VOC-style metrics of detection and segmentation, in [0.1,
            1].
        metric_type: metrics of detection and segmentation: none, coco, voc or coco_voc.

    Raises:
        ValueError: `iou_threshold` or `metric_type` is out of range, or a class is named twice.
    """
    if len(set(classes)) != len(classes):
        raise ValueError(f"class names must be unique, got {list(classes)}")
    # Imported here, so that a process loads only the libraries for its task.
    if task is Task.CLASSIFICATION:
        from trainer.metrics.classification import MulticlassEvaluator

        return MulticlassEvaluator(classes)
    if task is Task.MULTILABEL:
        from trainer.metrics.classification import MultilabelEvaluator

        return MultilabelEvaluator(classes)
    from trainer.metrics.detection import DetectionEvaluator

    return DetectionEvaluator(
        classes, iou_threshold=iou_threshold, metric_type=metric_type, by_masks=task is Task.SEGMENTATION
    )
