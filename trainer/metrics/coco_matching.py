"""Matches predicted with target objects by COCO's rule, so that its metrics can be resampled.

faster-coco-eval computes the metrics themselves (trainer.metrics.coco), but keeps its matches to itself.
Source: evaluateImg of cocodataset/cocoapi, PythonAPI/pycocotools/cocoeval.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, IntArray
from trainer.metrics.evaluated_image import EvaluatedImage

DoubleArray = npt.NDArray[np.float64]

_IOUS = np.linspace(0.5, 0.95, 10)
_SIDES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
_ANY = (0.0, 1e10)
_MOST = 100


class Query(NamedTuple):
    """What one of COCO's metrics measures.

    Attributes:
        ious: minimum IoUs for a match, over which it is averaged.
        areas: smallest and largest area of the objects in pixels.
        most: maximum number of predictions of a class in an image.
        is_recall: whether it is an average recall instead of an average precision.
    """

    ious: DoubleArray = _IOUS
    areas: tuple[float, float] = _ANY
    most: int = _MOST
    is_recall: bool = False


QUERIES = {
    "map": Query(),
    "map_50": Query(ious=_IOUS[:1]),
    "map_75": Query(ious=_IOUS[5:6]),
    **{f"map_{name}": Query(areas=areas) for name, areas in _SIDES.items()},
    **{f"mar_{most}": Query(most=most, is_recall=True) for most in (1, 10, 100)},
    **{f"mar_{name}": Query(areas=areas, is_recall=True) for name, areas in _SIDES.items()},
}
"""By the metric's name in `trainer.metric_names.COCO`."""


class CocoMatches(NamedTuple):
    """N predicted and M target objects of all images; targets that COCO ignores are left out.

    Attributes:
        images: index of each prediction's image, int64 [N].
        labels: int64 [N].
        scores: float64 [N].
        correct: for each IoU, whether the prediction is a true positive, bool [ious, N].
        ignored: for each IoU, whether it does not count, bool [ious, N].
        target_images: index of each target's image, int64 [M].
        target_labels: int64 [M].
    """

    images: IntArray
    labels: IntArray
    scores: DoubleArray
    correct: BoolArray
    ignored: BoolArray
    target_images: IntArray
    target_labels: IntArray


def match(images: Sequence[EvaluatedImage], query: Query, *, by_masks: bool) -> CocoMatches:
    """Match the objects of all images, class by class."""
    ious = len(query.ious)
    none = np.zeros(0, np.int64)
    no_flags = np.zeros((ious, 0), np.bool_)
    parts = [CocoMatches(none, none, np.zeros(0), no_flags, no_flags, none, none)]  # never empty
    for index, image in enumerate(images):
        parts += _match_image(index, image, query, by_masks=by_masks)
    return CocoMatches(*(np.concatenate(values, axis=-1) for values in zip(*parts, strict=True)))


def _match_image(index: int, image: EvaluatedImage, query: Query, *, by_masks: bool) -> Iterator[CocoMatches]:
    overlaps = image.overlaps(by_masks=by_masks)
    areas, target_areas = image.areas(by_masks=by_masks)
    smallest, largest = query.areas
    is_ignored = image.crowd | (target_areas < smallest) | (target_areas > largest)
    for label in np.union1d(image.labels, image.target_labels):
        rows = np.flatnonzero(image.labels == label)
        rows = rows[np.argsort(-image.scores[rows], kind="stable")][: query.most]
        columns = np.flatnonzero(image.target_labels == label)
        correct, ignored = _match_class(
            overlaps[np.ix_(rows, columns)], image.crowd[columns], is_ignored[columns], query.ious
        )
        outside = (areas[rows] < smallest) | (areas[rows] > largest)
        ignored |= ~correct & outside
        counted = columns[~is_ignored[columns]]
        yield CocoMatches(
            np.full(len(rows), index, np.int64),
            image.labels[rows],
            image.scores[rows].astype(np.float64),
            correct,
            ignored,
            np.full(len(counted), index, np.int64),
            image.target_labels[counted],
        )


def _match_class(
    overlaps: DoubleArray, crowd: BoolArray, is_ignored: BoolArray, ious: DoubleArray
) -> tuple[BoolArray, BoolArray]:
    """Match one class of one image at each IoU.

    Each prediction takes the free target of highest overlap, one that counts before one that is ignored.
    Crowds stay free.

    Args:
        overlaps: [n, m], predictions in descending order of score.
        crowd: bool [m].
        is_ignored: which targets do not count, bool [m].
        ious: minimum IoUs [k].

    Returns:
        Which predictions are true positives, and which match an ignored target; bool [k, n] each.
    """
    correct = np.zeros((len(ious), len(overlaps)), np.bool_)
    ignored = np.zeros_like(correct)
    if not overlaps.size:
        return correct, ignored
    is_free = np.ones((len(ious), overlaps.shape[1]), np.bool_)
    levels = np.arange(len(ious))
    lowest = np.minimum(ious, 1 - 1e-10)[:, None]
    for row, overlap in enumerate(overlaps):
        if overlap.max() < ious[0]:
            continue
        # Targets that count come before ignored ones, whatever their overlap, which is at most 1.
        rank = np.where(is_free & (overlap >= lowest), overlap + 2.0 * ~is_ignored, -1.0)
        best = rank.shape[1] - 1 - rank[:, ::-1].argmax(axis=1)  # of equal ones the last, as in COCO's loop
        is_match = rank[levels, best] >= 0
        correct[:, row] = is_match & ~is_ignored[best]
        ignored[:, row] = is_match & is_ignored[best]
        is_free[levels[is_match], best[is_match]] = False
        is_free[:, crowd] = True
    return correct, ignored
