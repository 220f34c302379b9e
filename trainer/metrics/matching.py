"""Matches predicted with target objects over a whole evaluation, and classifies the false positives.

Matching is that of the VOC-style metrics (trainer.metrics.voc). A false positive has one of TIDE's error
kinds (Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020, section 2.2),
by its highest IoU with a target of its own class and with one of another class. With f the IoU threshold and
b = 0.1, tested in this order and ignoring crowds:

    localisation    own in [b, f)
    classification  other ≥ f
    duplicate       own ≥ f, but the target is already matched
    background      both < b
    both            else: other in [b, f)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from trainer.annotations import FloatArray, IntArray
from trainer.metrics import voc
from trainer.metrics.evaluated_image import EvaluatedImage

DoubleArray = npt.NDArray[np.float64]

BACKGROUND_IOU = 0.1
KINDS = ("classification", "localisation", "both", "duplicate", "background")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND = range(len(KINDS))
CORRECT, NONE = -1, -1


@dataclass(frozen=True, slots=True)
class Matches:
    """N predicted and M target objects, image by image, without crowds and predictions of crowds.

    Attributes:
        images: index of each prediction's image, int64 [N].
        labels: int64 [N].
        scores: [N].
        boxes: [N, 4].
        areas: in pixels, [N].
        kinds: error kind as an index into KINDS, or CORRECT, int64 [N].
        matched_targets: index (0 … M − 1) of the target that each prediction is compared with, or NONE,
            int64 [N].
        overlaps: IoU with that target, or 0, [N].
        target_images: index of each target's image, int64 [M].
        target_labels: int64 [M].
        target_boxes: [M, 4].
        target_areas: in pixels, [M].
        found_by: index (0 … N − 1) of the prediction that is the target's true positive, or NONE, int64 [M].
        predicted_as: class of the prediction that matches if classes are ignored, or NONE, int64 [M].
        predicted_score: score of that prediction, or −1, [M].
    """

    images: IntArray
    labels: IntArray
    scores: FloatArray
    boxes: FloatArray
    areas: DoubleArray
    kinds: IntArray
    matched_targets: IntArray
    overlaps: DoubleArray
    target_images: IntArray
    target_labels: IntArray
    target_boxes: FloatArray
    target_areas: DoubleArray
    found_by: IntArray
    predicted_as: IntArray
    predicted_score: FloatArray

    @property
    def outcomes(self) -> IntArray:
        """voc.TRUE_POSITIVE or voc.FALSE_POSITIVE for each prediction, int64 [N]."""
        return np.where(self.kinds == CORRECT, voc.TRUE_POSITIVE, voc.FALSE_POSITIVE)

    @property
    def missed(self) -> npt.NDArray[np.bool_]:
        """Targets that are neither found nor matched by a localisation or classification error, bool [M]."""
        has_error = np.zeros(len(self.target_images), dtype=np.bool_)
        has_error[self.matched_targets[np.isin(self.kinds, (CLASSIFICATION, LOCALISATION))]] = True
        return np.asarray((self.found_by == NONE) & ~has_error)


def match_objects(images: Sequence[EvaluatedImage], threshold: float, *, by_masks: bool) -> Matches:
    """Match the objects of all images.

    Args:
        threshold: minimum IoU for a match.
        by_masks: compare masks instead of boxes.
    """
    none, no_boxes = np.zeros(0, np.int64), np.zeros((0, 4), np.float32)
    no_objects = EvaluatedImage((1, 1), no_boxes, none, no_boxes[:, 0], no_boxes, none, none.astype(np.bool_))
    parts = [_match_image(0, no_objects, threshold, 0, 0, by_masks=by_masks)]  # never empty
    predictions = targets = 0
    for index, image in enumerate(images):
        part = _match_image(index, image, threshold, predictions, targets, by_masks=by_masks)
        predictions += len(part.images)
        targets += len(part.target_images)
        parts.append(part)
    names = [field.name for field in fields(Matches)]
    return Matches(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _match_image(
    index: int,
    image: EvaluatedImage,
    threshold: float,
    first_prediction: int,
    first_target: int,
    *,
    by_masks: bool,
) -> Matches:
    """Match one image's objects; its predictions and targets are numbered from the given indices."""
    overlaps = image.overlaps(by_masks=by_masks)
    same_class = image.labels[:, None] == image.target_labels
    own = np.where(same_class, overlaps, -1.0)
    outcomes = voc.match(image.scores, own, image.crowd, threshold)
    areas, target_areas = image.areas(by_masks=by_masks)
    single = ~image.crowd
    counted = outcomes != voc.IGNORED

    predicted_as = np.full(len(single), NONE, dtype=np.int64)
    predicted_score = np.full(len(single), -1.0, dtype=np.float32)
    if overlaps.size:
        classless = voc.match(image.scores, overlaps, image.crowd, threshold)
        matching = np.flatnonzero(classless == voc.TRUE_POSITIVE)
        nearest = overlaps[matching].argmax(axis=1)
        predicted_as[nearest], predicted_score[nearest] = image.labels[matching], image.scores[matching]

    outcomes = outcomes[counted]
    own_target, own_iou = _highest(own[counted][:, single])
    other_target, other_iou = _highest(np.where(same_class, -1.0, overlaps)[counted][:, single])
    correct = outcomes == voc.TRUE_POSITIVE
    kinds = np.full(len(outcomes), BOTH, dtype=np.int64)
    kinds[(own_iou < BACKGROUND_IOU) & (other_iou < BACKGROUND_IOU)] = BACKGROUND
    kinds[own_iou >= threshold] = DUPLICATE
    kinds[other_iou >= threshold] = CLASSIFICATION
    kinds[(own_iou >= BACKGROUND_IOU) & (own_iou < threshold)] = LOCALISATION
    kinds[correct] = CORRECT
    is_other = np.isin(kinds, (CLASSIFICATION, BOTH))
    matched_targets = np.where(is_other, other_target, own_target)
    matched_targets[kinds == BACKGROUND] = NONE
    found_by = np.full(int(single.sum()), NONE, dtype=np.int64)
    found_by[matched_targets[correct]] = first_prediction + np.flatnonzero(correct)
    return Matches(
        images=np.full(len(outcomes), index, dtype=np.int64),
        labels=image.labels[counted],
        scores=image.scores[counted],
        boxes=image.boxes[counted],
        areas=areas[counted],
        kinds=kinds,
        matched_targets=np.where(matched_targets == NONE, NONE, matched_targets + first_target),
        overlaps=np.where(matched_targets == NONE, 0.0, np.where(is_other, other_iou, own_iou)),
        target_images=np.full(int(single.sum()), index, dtype=np.int64),
        target_labels=image.target_labels[single],
        target_boxes=image.target_boxes[single],
        target_areas=target_areas[single],
        found_by=found_by,
        predicted_as=predicted_as[single],
        predicted_score=predicted_score[single],
    )


def _highest(overlaps: DoubleArray) -> tuple[IntArray, DoubleArray]:
    """The column of the highest value in each row [n, m], and that value; NONE and −1 without columns."""
    if not overlaps.shape[1]:
        return np.full(len(overlaps), NONE, dtype=np.int64), np.full(len(overlaps), -1.0)
    column = overlaps.argmax(axis=1)
    return column, overlaps[np.arange(len(column)), column]
