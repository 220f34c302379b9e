"""How good predictions are: one evaluator for each task, computing the metrics under their usual names.

    evaluator = metrics.create(Task.DETECTION, classes)
    for prediction, truth in zip(predictions, truths):
        evaluator.update(prediction, truth)
    evaluator.compute()["mean_average_precision"]

Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trainer.annotations import Prediction, Target
from trainer.tasks import Task


class Evaluator(Protocol):
    """Collects the predictions of one evaluation, image by image, and computes its metrics.

    Images may come in any order; only predictions of exactly one score can be ranked by it, in the order
    in which they came.
    """

    def update(self, prediction: Prediction, target: Target) -> None:
        """Add one image.

        Raises:
            TrainingError: the prediction is not finite.
            TypeError, ValueError: prediction or truth have not the form of the task and its classes.
        """

    def compute(self) -> dict[str, float]:
        """All metrics of the images so far; may be called at any time and changes nothing."""

    def per_class(self) -> dict[str, dict[str, float]]:
        """The report by class: for each class name its metrics."""

    def reset(self) -> None:
        """Forget all images."""


def create(
    task: Task, classes: Sequence[str], *, iou_threshold: float = 0.5, metric_type: str = "voc"
) -> Evaluator:
    """The evaluator of a task.

    Args:
        classes: names; a label is an index into them.
        iou_threshold: in [0.1, 1], the overlap from which on an object counts as found (VOC-style figures
            of detection and segmentation).
        metric_type: which figures detection and segmentation compute: none, coco, voc or coco_voc.

    Raises:
        ValueError: `iou_threshold` or `metric_type` is out of range, or a class is named twice.
    """
    if len(set(classes)) != len(classes):
        raise ValueError(f"class names must be unique, got {list(classes)}")
    # Each evaluator brings its own libraries; a process loads only those of its task.
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
