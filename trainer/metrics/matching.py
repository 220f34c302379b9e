"""Every found and every true object of an evaluation in flat arrays, with what became of each.

Matching is that of the VOC-style figures (`trainer.metrics.voc`). A false positive is of one of TIDE's
kinds (Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020, section
2.2), by its highest IoU with a true object of its own class, and with one of another; f is the IoU threshold,
b is 0.1:

    localisation    own in [b, f)
    classification  other ≥ f
    duplicate       own ≥ f, but the object is taken
    background      both < b
    both            else: other in [b, f)

tested in this order, with crowds left aside.
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
    """N predictions (those against crowds left out) and M true objects (crowds left out), image by image.

    Attributes:
        image: int64 [N].
        labels: int64 [N].
        scores: [N].
        boxes: [N, 4].
        sizes: [N], areas in pixels.
        kinds: int64 [N], an index into KINDS, or RIGHT.
        targets: int64 [N], the true object (0 … M − 1) that it found or is held against, or NONE.
        overlaps: [N], its IoU with that one, or 0.
        true_image: int64 [M].
        true_labels: int64 [M].
        true_boxes: [M, 4].
        true_sizes: [M].
        taken_by: int64 [M], the prediction (0 … N − 1) that found it, or NONE.
        seen_as: int64 [M], the class it was taken for if classes play no part in matching, or NONE.
        seen_score: [M], the score of that prediction, or −1.
    """

    image: IntArray
    labels: IntArray
    scores: FloatArray
    boxes: FloatArray
    sizes: DoubleArray
    kinds: IntArray
    matched_targets: IntArray
    overlaps: DoubleArray
    target_image: IntArray
    target_labels: IntArray
    target_boxes: FloatArray
    target_areas: DoubleArray
    found_by: IntArray
    predicted_as: IntArray
    predicted_score: FloatArray

    @property
    def outcomes(self) -> IntArray:
        """[N] of voc.TRUE_POSITIVE and voc.FALSE_POSITIVE."""
        return np.where(self.kinds == CORRECT, voc.TRUE_POSITIVE, voc.FALSE_POSITIVE)

    @property
    def missed(self) -> npt.NDArray[np.bool_]:
        """[M]: neither found nor the object of a localisation or classification error."""
        excused = np.zeros(len(self.target_image), dtype=np.bool_)
        excused[self.matched_targets[np.isin(self.kinds, (CLASSIFICATION, LOCALISATION))]] = True
        return np.asarray((self.found_by == NONE) & ~excused)


def match_objects(scenes: Sequence[EvaluatedImage], threshold: float, *, by_masks: bool) -> Matches:
    """Judge all images' predictions.

    Args:
        threshold: of IoU, from which on an object counts as found.
        by_masks: compare masks, not boxes.
    """
    parts = [_no_matches()]
    predictions = objects = 0
    for number, scene in enumerate(scenes):
        part = _match_image(number, scene, threshold, predictions, objects, by_masks=by_masks)
        predictions += len(part.image)
        objects += len(part.target_image)
        parts.append(part)
    names = [field.name for field in fields(Matches)]
    return Matches(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _match_image(
    number: int, scene: EvaluatedImage, threshold: float, predictions: int, objects: int, *, by_masks: bool
) -> Matches:
    """One image; its predictions and objects are counted from `predictions` and `objects` on."""
    overlaps = scene.overlaps(by_masks=by_masks)
    same = scene.labels[:, None] == scene.target_labels
    own = np.where(same, overlaps, -1.0)
    outcomes = voc.match(scene.scores, own, scene.crowd, threshold)
    freely = voc.match(scene.scores, overlaps, scene.crowd, threshold)
    real = ~scene.crowd
    sizes, target_areas = scene.sizes(by_masks=by_masks)
    predicted_as = np.full(len(real), NONE, dtype=np.int64)
    predicted_score = np.full(len(real), -1.0, dtype=np.float32)
    if overlaps.size:
        seeing = np.flatnonzero(freely == voc.TRUE_POSITIVE)
        nearest = overlaps[seeing].argmax(axis=1)
        predicted_as[nearest], predicted_score[nearest] = scene.labels[seeing], scene.scores[seeing]

    kept = outcomes != voc.IGNORED
    outcomes = outcomes[kept]
    own, other = own[kept][:, real], np.where(same, -1.0, overlaps)[kept][:, real]
    own_at, own_best = _highest(own)
    other_at, other_best = _highest(other)
    right = outcomes == voc.TRUE_POSITIVE
    kinds = np.full(len(outcomes), BOTH, dtype=np.int64)
    kinds[(own_best < BACKGROUND_IOU) & (other_best < BACKGROUND_IOU)] = BACKGROUND
    kinds[own_best >= threshold] = DUPLICATE
    kinds[other_best >= threshold] = CLASSIFICATION
    kinds[(own_best >= BACKGROUND_IOU) & (own_best < threshold)] = LOCALISATION
    kinds[right] = CORRECT
    by_other = np.isin(kinds, (CLASSIFICATION, BOTH))
    matched_targets = np.where(by_other, other_at, own_at)
    found = np.where(by_other, other_best, own_best)
    matched_targets[kinds == BACKGROUND] = NONE
    found_by = np.full(int(real.sum()), NONE, dtype=np.int64)
    found_by[matched_targets[right]] = predictions + np.flatnonzero(right)
    return Matches(
        image=np.full(len(outcomes), number, dtype=np.int64),
        labels=scene.labels[kept],
        scores=scene.scores[kept],
        boxes=scene.boxes[kept],
        sizes=sizes[kept],
        kinds=kinds,
        matched_targets=np.where(matched_targets == NONE, NONE, matched_targets + objects),
        overlaps=np.where(matched_targets == NONE, 0.0, found),
        target_image=np.full(int(real.sum()), number, dtype=np.int64),
        target_labels=scene.target_labels[real],
        target_boxes=scene.target_boxes[real],
        target_areas=target_areas[real],
        found_by=found_by,
        predicted_as=predicted_as[real],
        predicted_score=predicted_score[real],
    )


def _highest(overlaps: DoubleArray) -> tuple[IntArray, DoubleArray]:
    """For each row [n, m] where its highest value stands, and that value; NONE and −1 without columns."""
    if not overlaps.shape[1]:
        return np.full(len(overlaps), NONE, dtype=np.int64), np.full(len(overlaps), -1.0)
    at = overlaps.argmax(axis=1)
    return at, overlaps[np.arange(len(at)), at]


def _no_matches() -> Matches:
    none, number, boxes = np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 4), np.float32)
    return Matches(
        image=none, labels=none, scores=number, boxes=boxes, sizes=np.zeros(0), kinds=none,
        matched_targets=none, overlaps=np.zeros(0), target_image=none, target_labels=none, target_boxes=boxes,
        target_areas=np.zeros(0), found_by=none, predicted_as=none, predicted_score=number,
    )  # fmt: skip
