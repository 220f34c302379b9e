"""One image with what was found and what is true, checked and in the form in which it is compared."""

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
    """One image with what was found (n) and what is true (m); boxes are normalised xyxy.

    Attributes:
        size: (height, width) in pixels.
        boxes: [n, 4].
        labels: int64 [n].
        scores: [n].
        truth_boxes: [m, 4].
        truth_labels: int64 [m].
        crowd: bool [m].
        masks: n of them, or none if boxes are compared.
        truth_masks: m of them, or none.
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

    def overlaps(self, *, by_masks: bool) -> npt.NDArray[np.float64]:
        """IoU of each found with each true object [n, m], whatever their classes."""
        if by_masks:
            return masks.overlaps(self.masks, self.target_masks, self.crowd)
        return voc.box_overlaps(self.boxes, self.target_boxes, self.crowd)

    def sizes(self, *, by_masks: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The areas of found [n] and true objects [m], in pixels of the image."""
        if by_masks:
            return masks.areas(self.masks), masks.areas(self.target_masks)
        height, width = self.size
        found, true = (
            (boxes[:, 2:].astype(np.float64) - boxes[:, :2]).prod(axis=1) * (height * width)
            for boxes in (self.boxes, self.target_boxes)
        )
        return found, true

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
        """Check one image and bring it into the form that is kept.

        Args:
            by_masks: masks are to be compared.
            rles: the predictions' masks, where they are not in `prediction`.

        Raises:
            TrainingError: the prediction is not finite.
            TypeError, ValueError: prediction or truth have not the form of the task and its classes.
        """
        if not isinstance(prediction, Detections):
            raise TypeError(f"prediction must be Detections, got {type(prediction).__name__}")
        if not isinstance(target, Objects):
            raise TypeError(f"truth must be Objects, got {type(target).__name__}")
        size = prediction.image_size
        found, true = len(prediction.scores), len(target.labels)
        boxes, target_boxes = _boxes(prediction.boxes, found), _boxes(target.boxes, true)
        if not (np.isfinite(boxes).all() and np.isfinite(prediction.scores).all()):
            raise TrainingError(
                "the network predicts boxes or scores that are not numbers (NaN): training has diverged; "
                "lower learning_rate, lengthen warmup_cosine_lr_warmup_epochs or set gradient_clip_norm"
            )
        found_masks: list[masks.Rle] = []
        true_masks: list[masks.Rle] = []
        if by_masks:
            # an image without objects needs neither
            given = prediction.masks or () if rles is None else rles
            if len(given) != found:
                raise ValueError(f"each of {found} predicted objects must have a mask to score masks")
            if len(target.polygons or ()) != true:
                raise ValueError(f"each of {true} true objects must have polygons to score masks")
            found_masks = (
                [masks.from_crop(mask, size) for mask in prediction.masks or ()]
                if rles is None
                else list(rles)
            )
            true_masks = [masks.from_polygons(polygons, size) for polygons in target.polygons or ()]
        return cls(
            size=size,
            boxes=boxes,
            labels=_labels(prediction.labels, found, len(classes)),
            scores=np.array(prediction.scores),
            target_boxes=target_boxes,
            target_labels=_labels(target.labels, true, len(classes)),
            crowd=np.array(target.crowd, dtype=np.bool_).reshape(true),
            masks=found_masks,
            target_masks=true_masks,
        )


def _labels(labels: IntArray, count: int, classes: int) -> IntArray:
    labels = np.array(labels, dtype=np.int64).reshape(count)
    if count and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"labels must be in [0, {classes - 1}], got {labels.min()} to {labels.max()}")
    return labels


def _boxes(boxes: FloatArray, count: int) -> FloatArray:
    return np.array(boxes).reshape(count, 4)
