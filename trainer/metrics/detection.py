"""Metrics of object detection and instance segmentation: VOC-style figures and, on demand, COCO's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.annotations import FloatArray, IntArray, Prediction, Target
from trainer.metrics import coco, masks, voc
from trainer.metrics.evaluated_image import EvaluatedImage

METRIC_TYPES = ("none", "coco", "voc", "coco_voc")


@dataclass(frozen=True, slots=True)
class _Judged:
    """What VOC-style figures need of one image, ignored predictions left out."""

    scores: FloatArray
    labels: IntArray
    outcomes: IntArray


class DetectionEvaluator:
    """Compares found with true objects, by their boxes or, for segmentation, by their masks.

    Figures that are undefined, such as the recall of a class without objects, are -1 and take no part in
    means. Predictions of equal score keep the order in which they came.
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        iou_threshold: float = 0.5,
        metric_type: str = "voc",
        by_masks: bool = False,
    ) -> None:
        """Start with no images; see `trainer.metrics.create` for the arguments.

        Args:
            by_masks: compare masks, not boxes.
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
        """Forget all images."""
        self._matched: list[_Judged] = []
        self._objects = np.zeros(len(self.classes), dtype=np.int64)
        self._scenes: list[EvaluatedImage] = []

    def update(self, prediction: Prediction, target: Target) -> None:
        """Add one image; see `trainer.metrics.Evaluator.update`."""
        scene = EvaluatedImage.create(prediction, target, self.classes, by_masks=self.by_masks)
        if self.metric_type == "none":
            return
        overlaps = np.full((len(scene.scores), len(scene.crowd)), -1.0)
        same = scene.labels[:, None] == scene.target_labels
        if self.by_masks:
            for label in np.intersect1d(scene.labels, scene.target_labels):
                found = np.flatnonzero(scene.labels == label).tolist()
                true = np.flatnonzero(scene.target_labels == label).tolist()
                overlaps[np.ix_(found, true)] = masks.overlaps(
                    [scene.masks[i] for i in found], [scene.target_masks[i] for i in true], scene.crowd[true]
                )
        else:
            found_boxes = voc.box_overlaps(scene.boxes, scene.target_boxes, scene.crowd)
            overlaps[same] = found_boxes[same]
        outcomes = voc.match(scene.scores, overlaps, scene.crowd, self.iou_threshold)
        kept = outcomes != voc.IGNORED
        self._matched.append(_Judged(scene.scores[kept], scene.labels[kept], outcomes[kept]))
        self._objects += np.bincount(scene.target_labels[~scene.crowd], minlength=len(self.classes))
        if "coco" in self.metric_type:
            self._scenes.append(scene)

    def compute(self) -> dict[str, float]:
        """mean_average_precision, precision and recall, and COCO's twelve figures for coco and coco_voc.

        mean_average_precision is the mean over the classes of the VOC-style average precision at the IoU
        threshold; for coco it is `map_50`. precision and recall are the means over the classes of the
        highest recall reached and the precision there. With metric type none there are no figures.
        """
        if self.metric_type == "none":
            return {}
        figures = voc.means(self._figures())
        if "coco" in self.metric_type:
            figures |= coco.figures(self._scenes, self.classes, by_masks=self.by_masks)
        if self.metric_type == "coco":
            figures["mean_average_precision"] = figures["map_50"]
        return figures

    def per_class(self) -> dict[str, dict[str, float]]:
        """For each class its VOC-style average_precision, precision and recall."""
        if self.metric_type == "none":
            return {}
        return {name: each._asdict() for name, each in zip(self.classes, self._figures(), strict=True)}

    def _figures(self) -> list[voc.Figures]:
        none = _Judged(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
        images = [none, *self._matched]
        scores = np.concatenate([image.scores for image in images])
        labels = np.concatenate([image.labels for image in images])
        outcomes = np.concatenate([image.outcomes for image in images])
        return voc.by_class(scores, labels, outcomes, self._objects)
