"""VOC-style figures: which detections are right, and average precision over all points.

Definitions: Everingham et al., The Pascal Visual Object Classes Challenge (IJCV 2010), section 4.2, with the
area under the whole precision envelope of VOC 2010 on, and COCO's rule for crowds.
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
    """Precision and recall of one class after each of its predictions, by falling score; both [n].

    Recall is NaN throughout if the class has no objects.
    """

    precision: DoubleArray
    recall: DoubleArray


class Figures(NamedTuple):
    """One class's figures, in [0, 1], or -1 if undefined."""

    average_precision: float
    precision: float
    recall: float


def box_overlaps(boxes: FloatArray, targets: FloatArray, crowd: BoolArray) -> DoubleArray:
    """IoU of each box with each true one [n, m]; with a crowd the intersection over the box's own area.

    Args:
        boxes: xyxy [n, 4].
        truths: xyxy [m, 4], in the same unit.
        crowd: bool [m].
    """
    one, other = boxes.astype(np.float64)[:, None], targets.astype(np.float64)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    intersection = sides.clip(min=0).prod(axis=2)
    area = (one[..., 2:] - one[..., :2]).clip(min=0).prod(axis=2)
    other_area = (other[..., 2:] - other[..., :2]).clip(min=0).prod(axis=2)
    whole = np.where(crowd, area, area + other_area - intersection)
    overlaps: DoubleArray = np.divide(intersection, whole, out=np.zeros_like(intersection), where=whole > 0)
    return overlaps


def match(scores: FloatArray, overlaps: DoubleArray, crowd: BoolArray, threshold: float) -> IntArray:
    """Judge one image's predictions.

    By falling score (of equal scores the earlier first), each looks only at the true object with which it
    overlaps most (of equals the first). Overlapping less than the threshold, it is a false positive; else,
    if that object is a crowd, ignored; if an earlier one took it, a false positive; else a true positive.

    Args:
        scores: [n].
        overlaps: [n, m] in [0, 1], below 0 where the classes differ.
        crowd: bool [m].

    Returns:
        [n] of FALSE_POSITIVE, TRUE_POSITIVE or IGNORED.
    """
    outcomes = np.full(len(scores), FALSE_POSITIVE, dtype=np.int64)
    if overlaps.size == 0:
        return outcomes
    nearest = overlaps.argmax(axis=1)
    found = overlaps[np.arange(len(scores)), nearest] >= threshold
    outcomes[found & crowd[nearest]] = IGNORED
    by_score = np.argsort(-scores, kind="stable")
    claims = by_score[(found & ~crowd[nearest])[by_score]]
    _, first = np.unique(nearest[claims], return_index=True)
    outcomes[claims[first]] = TRUE_POSITIVE
    return outcomes


def curve(scores: FloatArray, outcomes: IntArray, objects: int) -> Curve:
    """One class over all images.

    Args:
        scores: [n], in the order that equal scores keep.
        verdicts: [n] of FALSE_POSITIVE or TRUE_POSITIVE.
        objects: how many true objects there are to find.
    """
    hits = np.cumsum(outcomes[np.argsort(-scores, kind="stable")] == TRUE_POSITIVE)
    recall = hits / objects if objects else np.full(len(hits), np.nan)
    return Curve(hits / np.arange(1, len(hits) + 1), recall)


def summarize(curve: Curve, objects: int) -> Figures:
    """Average precision, and precision and recall after the last prediction."""
    predictions = len(curve.precision)
    if not predictions:
        return Figures(0.0, UNDEFINED, 0.0) if objects else Figures(UNDEFINED, UNDEFINED, UNDEFINED)
    precision = float(curve.precision[-1])
    if not objects:
        return Figures(UNDEFINED, precision, UNDEFINED)
    # at each recall the highest precision at that recall or beyond
    envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
    steps = np.diff(curve.recall, prepend=0.0)
    return Figures(float((steps * envelope).sum()), precision, float(curve.recall[-1]))


def by_class(scores: FloatArray, labels: IntArray, outcomes: IntArray, objects: IntArray) -> list[Figures]:
    """Each class's figures over all images.

    Args:
        scores, labels, verdicts: [n], as for `curve`.
        objects: [C], how many there are to find of each class.
    """
    by_label = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_label], np.arange(len(objects) + 1))
    result = []
    for label, count in enumerate(objects.tolist()):
        rows = by_label[starts[label] : starts[label + 1]]
        result.append(summarize(curve(scores[rows], outcomes[rows], count), count))
    return result


def means(figures: Sequence[Figures]) -> dict[str, float]:
    """The means over the classes, under the names of the reference."""
    return {
        "mean_average_precision": mean([each.average_precision for each in figures]),
        "precision": mean([each.precision for each in figures]),
        "recall": mean([each.recall for each in figures]),
    }


def mean(values: list[float]) -> float:
    """The mean of the defined values, or -1."""
    defined = [value for value in values if value != UNDEFINED]
    return float(np.mean(defined)) if defined else UNDEFINED
