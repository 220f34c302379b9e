"""Metrics of object detection and instance segmentation: VOC-style metrics and, optionally, COCO's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.annotations import FloatArray, IntArray, Prediction, Target
from trainer.metrics import coco, masks, voc
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.masks import Rle

METRIC_TYPES = ("none", "coco", "voc", "coco_voc")


class DetectionEvaluator:
    """Compares predicted with target objects, by boxes or, for segmentation, by masks.

    Undefined metrics, such as the recall of a class without objects, are -1 and are left out of means.
    Predictions of equal score are ranked in the order in which they were added.
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        iou_threshold: float = 0.5,
        metric_type: str = "voc",
        by_masks: bool = False,
    ) -> None:
        """Start without images; for the other arguments see `trainer.metrics.create`.

        Args:
            by_masks: compare masks instead of boxes.
        """
        if not 0.1 <= iou_threshold <= 1:
            raise ValueError(f"iou_threshold must be in [0.1, 1], got {iou_threshold}")
        if metric_type not in METRIC_TYPES:
            raise ValueError(f"metric_type must be one of {', '.join(METRIC_TYPES)}, got {metric_type!r}")
        self.classes = tuple(classes)
        self.iou_threshold = iou_threshold
        self.metric_type = metric_type
        self.by_masks = by_masks
        self.reset()

    def reset(self) -> None:
        """Remove all images."""
        # Of each image, for VOC-style metrics: scores, labels and outcomes of its predictions.
        self._matched: list[tuple[FloatArray, IntArray, IntArray]] = []
        self._objects = np.zeros(len(self.classes), dtype=np.int64)
        self._images: list[EvaluatedImage] = []

    def update(self, prediction: Prediction, target: Target, rles: Sequence[Rle] | None = None) -> None:
        """Add one image; see `trainer.metrics.Evaluator.update`.

        Args:
            rles: the predicted masks, if they are not in `prediction`.
        """
        image = EvaluatedImage.create(prediction, target, self.classes, by_masks=self.by_masks, rles=rles)
        if self.metric_type == "none":
            return
        outcomes = voc.match(image.scores, self._overlaps(image), image.crowd, self.iou_threshold)
        counted = outcomes != voc.IGNORED
        self._matched.append((image.scores[counted], image.labels[counted], outcomes[counted]))
        self._objects += np.bincount(image.target_labels[~image.crowd], minlength=len(self.classes))
        if "coco" in self.metric_type:
            self._images.append(image)

    def compute(self) -> dict[str, float]:
        """Compute mean_average_precision, precision and recall; for coco and coco_voc also COCO's metrics.

        mean_average_precision is the mean over the classes of the VOC-style average precision at the IoU
        threshold; for coco it is `map_50`. precision and recall are means over the classes of the highest
        recall and the precision there. For metric type none there are no metrics.
        """
        if self.metric_type == "none":
            return {}
        in_coco = coco.of_type(self.metric_type, self._images, self.classes, by_masks=self.by_masks)
        return voc.means(self._by_class()) | in_coco

    def per_class(self) -> dict[str, dict[str, float]]:
        """The VOC-style average_precision, precision and recall of each class."""
        if self.metric_type == "none":
            return {}
        return {name: values._asdict() for name, values in zip(self.classes, self._by_class(), strict=True)}

    by_class = per_class

    def _overlaps(self, image: EvaluatedImage) -> voc.DoubleArray:
        """IoU of each prediction with each target [n, m]; -1 if their classes differ."""
        overlaps = np.full((len(image.scores), len(image.crowd)), -1.0)
        if not self.by_masks:
            same_class = image.labels[:, None] == image.target_labels
            overlaps[same_class] = image.overlaps(by_masks=False)[same_class]
            return overlaps
        for label in np.intersect1d(image.labels, image.target_labels):  # masks are costly to compare
            rows = np.flatnonzero(image.labels == label).tolist()
            columns = np.flatnonzero(image.target_labels == label).tolist()
            overlaps[np.ix_(rows, columns)] = masks.overlaps(
                [image.masks[i] for i in rows], [image.target_masks[i] for i in columns], image.crowd[columns]
            )
        return overlaps

    def _by_class(self) -> list[voc.ClassMetrics]:
        none = (np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
        scores, labels, outcomes = map(np.concatenate, zip(none, *self._matched, strict=True))
        return voc.by_class(scores, labels, outcomes, self._objects)
