"""VOC-style metrics: which predictions are true positives, and average precision over all points.

Definitions: Everingham et al., The Pascal Visual Object Classes Challenge (IJCV 2010), section 4.2, with the
area under the whole precision envelope (VOC 2010 and later), and COCO's rule for crowds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, FloatArray, IntArray

UNDEFINED = -1.0

DoubleArray = npt.NDArray[np.float64]

FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2


class Curve(NamedTuple):
    """Precision and recall of one class after each prediction, in descending order of scores; both [n].

    Recall is NaN throughout if the class has no objects.
    """

    precision: DoubleArray
    recall: DoubleArray


class ClassMetrics(NamedTuple):
    """The metrics of one class, in [0, 1], or -1 if undefined."""

    average_precision: float
    precision: float
    recall: float


def box_overlaps(boxes: FloatArray, targets: FloatArray, crowd: BoolArray) -> DoubleArray:
    """IoU of each box with each target [n, m]; for crowds, intersection over the box's own area.

    Args:
        boxes: xyxy, [n, 4].
        targets: xyxy in the same unit, [m, 4].
        crowd: which targets are crowds, bool [m].
    """
    one, other = boxes.astype(np.float64)[:, None], targets.astype(np.float64)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    intersection = sides.clip(min=0).prod(axis=2)
    area = (one[..., 2:] - one[..., :2]).clip(min=0).prod(axis=2)
    target_area = (other[..., 2:] - other[..., :2]).clip(min=0).prod(axis=2)
    union = np.where(crowd, area, area + target_area - intersection)
    overlaps: DoubleArray = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return overlaps


def match(scores: FloatArray, overlaps: DoubleArray, crowd: BoolArray, threshold: float) -> IntArray:
    """Match one image's predictions with its targets.

    In descending order of scores (ties in the given order), each prediction is compared with the target of
    highest overlap only (of ties, the first). It is a false positive if the overlap is below the threshold;
    else ignored if the target is a crowd; else a true positive, or a false positive if the target is already
    matched.

    Args:
        scores: [n].
        overlaps: [n, m] in [0, 1]; below 0 where the classes differ.
        crowd: which targets are crowds, bool [m].
        threshold: minimum overlap for a match.

    Returns:
        FALSE_POSITIVE, TRUE_POSITIVE or IGNORED for each prediction, int64 [n].
    """
    outcomes = np.full(len(scores), FALSE_POSITIVE, dtype=np.int64)
    if overlaps.size == 0:
        return outcomes
    nearest = overlaps.argmax(axis=1)
    is_match = overlaps[np.arange(len(scores)), nearest] >= threshold
    outcomes[is_match & crowd[nearest]] = IGNORED
    by_score = np.argsort(-scores, kind="stable")
    candidates = by_score[(is_match & ~crowd[nearest])[by_score]]
    _, first = np.unique(nearest[candidates], return_index=True)
    outcomes[candidates[first]] = TRUE_POSITIVE
    return outcomes


def curve(scores: FloatArray, outcomes: IntArray, objects: int) -> Curve:
    """Compute the curve of one class over all images.

    Args:
        scores: [n]; ties are ranked in the given order.
        outcomes: FALSE_POSITIVE or TRUE_POSITIVE, [n].
        objects: number of target objects.
    """
    hits = np.cumsum(outcomes[np.argsort(-scores, kind="stable")] == TRUE_POSITIVE)
    recall = hits / objects if objects else np.full(len(hits), np.nan)
    return Curve(hits / np.arange(1, len(hits) + 1), recall)


def summarize(curve: Curve, objects: int) -> ClassMetrics:
    """Compute average precision, and precision and recall after the last prediction."""
    if not len(curve.precision):
        return ClassMetrics(0.0, UNDEFINED, 0.0) if objects else ClassMetrics(UNDEFINED, UNDEFINED, UNDEFINED)
    precision = float(curve.precision[-1])
    if not objects:
        return ClassMetrics(UNDEFINED, precision, UNDEFINED)
    # At each recall, the highest precision at that or a higher recall.
    envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
    steps = np.diff(curve.recall, prepend=0.0)
    return ClassMetrics(float((steps * envelope).sum()), precision, float(curve.recall[-1]))


def by_class(
    scores: FloatArray, labels: IntArray, outcomes: IntArray, objects: IntArray
) -> list[ClassMetrics]:
    """Compute the metrics of each class over all images.

    Args:
        scores: [n]; ties are ranked in the given order.
        labels: int64 [n].
        outcomes: FALSE_POSITIVE or TRUE_POSITIVE, [n].
        objects: number of target objects of each class, [C].
    """
    by_label = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_label], np.arange(len(objects) + 1))
    result = []
    for label, count in enumerate(objects.tolist()):
        rows = by_label[starts[label] : starts[label + 1]]
        result.append(summarize(curve(scores[rows], outcomes[rows], count), count))
    return result


def means(by_class: Sequence[ClassMetrics]) -> dict[str, float]:
    """Average the classes' metrics; the names are those of the reference."""
    return {
        "mean_average_precision": mean([each.average_precision for each in by_class]),
        "precision": mean([each.precision for each in by_class]),
        "recall": mean([each.recall for each in by_class]),
    }


def mean(values: list[float]) -> float:
    """The mean of the defined values, or -1 if there are none."""
    defined = [value for value in values if value != UNDEFINED]
    return float(np.mean(defined)) if defined else UNDEFINED
