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
from trainer.metrics.scenes import Scene

DoubleArray = npt.NDArray[np.float64]

BACKGROUND_IOU = 0.1
KINDS = ("classification", "localisation", "both", "duplicate", "background")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND = range(len(KINDS))
RIGHT, NONE = -1, -1


@dataclass(frozen=True, slots=True)
class Judged:
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
    targets: IntArray
    overlaps: DoubleArray
    true_image: IntArray
    true_labels: IntArray
    true_boxes: FloatArray
    true_sizes: DoubleArray
    taken_by: IntArray
    seen_as: IntArray
    seen_score: FloatArray

    @property
    def verdicts(self) -> IntArray:
        """[N] of voc.TRUE_POSITIVE and voc.FALSE_POSITIVE."""
        return np.where(self.kinds == RIGHT, voc.TRUE_POSITIVE, voc.FALSE_POSITIVE)

    @property
    def missed(self) -> npt.NDArray[np.bool_]:
        """[M]: neither found nor the object of a localisation or classification error."""
        excused = np.zeros(len(self.true_image), dtype=np.bool_)
        excused[self.targets[np.isin(self.kinds, (CLASSIFICATION, LOCALISATION))]] = True
        return np.asarray((self.taken_by == NONE) & ~excused)


def judge(scenes: Sequence[Scene], threshold: float, *, by_masks: bool) -> Judged:
    """Judge all images' predictions.

    Args:
        threshold: of IoU, from which on an object counts as found.
        by_masks: compare masks, not boxes.
    """
    parts = [_judge_nothing()]
    predictions = objects = 0
    for number, scene in enumerate(scenes):
        part = _judge(number, scene, threshold, predictions, objects, by_masks=by_masks)
        predictions += len(part.image)
        objects += len(part.true_image)
        parts.append(part)
    names = [field.name for field in fields(Judged)]
    return Judged(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _judge(
    number: int, scene: Scene, threshold: float, predictions: int, objects: int, *, by_masks: bool
) -> Judged:
    """One image; its predictions and objects are counted from `predictions` and `objects` on."""
    overlaps = scene.overlaps(by_masks=by_masks)
    same = scene.labels[:, None] == scene.truth_labels
    own = np.where(same, overlaps, -1.0)
    verdicts = voc.match(scene.scores, own, scene.crowd, threshold)
    freely = voc.match(scene.scores, overlaps, scene.crowd, threshold)
    real = ~scene.crowd
    sizes, true_sizes = scene.sizes(by_masks=by_masks)
    seen_as = np.full(len(real), NONE, dtype=np.int64)
    seen_score = np.full(len(real), -1.0, dtype=np.float32)
    if overlaps.size:
        seeing = np.flatnonzero(freely == voc.TRUE_POSITIVE)
        nearest = overlaps[seeing].argmax(axis=1)
        seen_as[nearest], seen_score[nearest] = scene.labels[seeing], scene.scores[seeing]

    kept = verdicts != voc.IGNORED
    verdicts = verdicts[kept]
    own, other = own[kept][:, real], np.where(same, -1.0, overlaps)[kept][:, real]
    own_at, own_best = _highest(own)
    other_at, other_best = _highest(other)
    right = verdicts == voc.TRUE_POSITIVE
    kinds = np.full(len(verdicts), BOTH, dtype=np.int64)
    kinds[(own_best < BACKGROUND_IOU) & (other_best < BACKGROUND_IOU)] = BACKGROUND
    kinds[own_best >= threshold] = DUPLICATE
    kinds[other_best >= threshold] = CLASSIFICATION
    kinds[(own_best >= BACKGROUND_IOU) & (own_best < threshold)] = LOCALISATION
    kinds[right] = RIGHT
    by_other = np.isin(kinds, (CLASSIFICATION, BOTH))
    targets = np.where(by_other, other_at, own_at)
    found = np.where(by_other, other_best, own_best)
    targets[kinds == BACKGROUND] = NONE
    taken_by = np.full(int(real.sum()), NONE, dtype=np.int64)
    taken_by[targets[right]] = predictions + np.flatnonzero(right)
    return Judged(
        image=np.full(len(verdicts), number, dtype=np.int64),
        labels=scene.labels[kept],
        scores=scene.scores[kept],
        boxes=scene.boxes[kept],
        sizes=sizes[kept],
        kinds=kinds,
        targets=np.where(targets == NONE, NONE, targets + objects),
        overlaps=np.where(targets == NONE, 0.0, found),
        true_image=np.full(int(real.sum()), number, dtype=np.int64),
        true_labels=scene.truth_labels[real],
        true_boxes=scene.truth_boxes[real],
        true_sizes=true_sizes[real],
        taken_by=taken_by,
        seen_as=seen_as[real],
        seen_score=seen_score[real],
    )


def _highest(overlaps: DoubleArray) -> tuple[IntArray, DoubleArray]:
    """For each row [n, m] where its highest value stands, and that value; NONE and −1 without columns."""
    if not overlaps.shape[1]:
        return np.full(len(overlaps), NONE, dtype=np.int64), np.full(len(overlaps), -1.0)
    at = overlaps.argmax(axis=1)
    return at, overlaps[np.arange(len(at)), at]


def _judge_nothing() -> Judged:
    none, number, boxes = np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 4), np.float32)
    return Judged(
        image=none, labels=none, scores=number, boxes=boxes, sizes=np.zeros(0), kinds=none, targets=none,
        overlaps=np.zeros(0), true_image=none, true_labels=none, true_boxes=boxes,
        true_sizes=np.zeros(0), taken_by=none,         seen_as=none, seen_score=number,
    )  # fmt: skip
