"""One image with its predicted and target objects, in the form that matching needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, Detections, FloatArray, IntArray, Objects, Prediction, Target
from trainer.errors import TrainingError
from trainer.metrics import masks, voc
from trainer.metrics.masks import Rle


@dataclass(frozen=True, slots=True)
class EvaluatedImage:
    """One image with n predicted and m target objects; boxes are normalised xyxy.

    Attributes:
        size: (height, width) in pixels.
        boxes: predicted, [n, 4].
        labels: predicted, int64 [n].
        scores: predicted, [n].
        target_boxes: [m, 4].
        target_labels: int64 [m].
        crowd: which targets are crowds, bool [m].
        masks: n predicted masks; empty if boxes are compared.
        target_masks: m target masks; empty if boxes are compared.
    """

    size: tuple[int, int]
    boxes: FloatArray
    labels: IntArray
    scores: FloatArray
    target_boxes: FloatArray
    target_labels: IntArray
    crowd: BoolArray
    masks: Sequence[Rle] = ()
    target_masks: Sequence[Rle] = ()

    @classmethod
    def create(
        cls,
        prediction: Prediction,
        target: Target,
        classes: Sequence[str],
        *,
        by_masks: bool,
        rles: Sequence[Rle] | None = None,
    ) -> EvaluatedImage:
        """Check a prediction and its target, and copy them.

        Args:
            by_masks: masks are to be compared.
            rles: the predictions' masks if they are not in `prediction`.

        Raises:
            TrainingError: the prediction is not finite.
            TypeError, ValueError: prediction or target do not fit the task and its classes.
        """
        if not isinstance(prediction, Detections):
            raise TypeError(f"prediction must be Detections, got {type(prediction).__name__}")
        if not isinstance(target, Objects):
            raise TypeError(f"target must be Objects, got {type(target).__name__}")
        size, predicted, targets = prediction.image_size, len(prediction.scores), len(target.labels)
        boxes, target_boxes = _boxes(prediction.boxes, predicted), _boxes(target.boxes, targets)
        if not (np.isfinite(boxes).all() and np.isfinite(prediction.scores).all()):
            raise TrainingError(
                "the network predicts boxes or scores that are not numbers (NaN): training has diverged; "
                "lower learning_rate, lengthen warmup_cosine_lr_warmup_epochs or set gradient_clip_norm"
            )
        predicted_masks: list[Rle] = []
        target_masks: list[Rle] = []
        if by_masks:
            predicted_masks = (
                [masks.from_crop(mask, size) for mask in prediction.masks or ()]
                if rles is None
                else list(rles)
            )
            if len(predicted_masks) != predicted:
                raise ValueError(f"each of {predicted} predicted objects must have a mask to score masks")
            if len(target.polygons or ()) != targets:
                raise ValueError(f"each of {targets} target objects must have polygons to score masks")
            target_masks = [masks.from_polygons(polygons, size) for polygons in target.polygons or ()]
        return cls(
            size=size,
            boxes=boxes,
            labels=_labels(prediction.labels, predicted, len(classes)),
            scores=np.array(prediction.scores),
            target_boxes=target_boxes,
            target_labels=_labels(target.labels, targets, len(classes)),
            crowd=np.array(target.crowd, dtype=np.bool_).reshape(targets),
            masks=predicted_masks,
            target_masks=target_masks,
        )

    def overlaps(self, *, by_masks: bool) -> npt.NDArray[np.float64]:
        """IoU of each predicted with each target object [n, m], whatever their classes."""
        if by_masks:
            return masks.overlaps(self.masks, self.target_masks, self.crowd)
        return voc.box_overlaps(self.boxes, self.target_boxes, self.crowd)

    def areas(self, *, by_masks: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Areas of the predicted [n] and target objects [m], in pixels."""
        if by_masks:
            return masks.areas(self.masks), masks.areas(self.target_masks)
        height, width = self.size
        predicted, target = (
            (boxes[:, 2:].astype(np.float64) - boxes[:, :2]).prod(axis=1) * (height * width)
            for boxes in (self.boxes, self.target_boxes)
        )
        return predicted, target


def _labels(labels: IntArray, count: int, classes: int) -> IntArray:
    labels = np.array(labels, dtype=np.int64).reshape(count)
    if count and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"labels must be in [0, {classes - 1}], got {labels.min()} to {labels.max()}")
    return labels


def _boxes(boxes: FloatArray, count: int) -> FloatArray:
    return np.array(boxes).reshape(count, 4)
