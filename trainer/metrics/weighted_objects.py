"""Metrics of detection and segmentation for images with weights, for the bootstrap.

The definitions are those of `trainer.metrics.voc` and of COCO: a metric of weights equals the evaluator's of
a list in which each image occurs as often as its weight says. Objects are matched once, image by image.

Between two true positives only the number of false positives counts, so that a precision-recall curve needs
one point for each true positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from trainer.annotations import BoolArray, IntArray
from trainer.metric_names import VOC
from trainer.metrics import coco_matching
from trainer.metrics.bootstrap import WeightedMetric
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.matching import Matches, match_objects
from trainer.metrics.voc import TRUE_POSITIVE

DoubleArray = npt.NDArray[np.float64]

_RECALLS = np.linspace(0.0, 1.0, 101)
"""The recalls at which COCO samples the precision."""


def object_metric(
    images: Sequence[EvaluatedImage],
    classes: int,
    name: str,
    *,
    iou_threshold: float,
    by_masks: bool,
    metric_type: str = "coco_voc",
) -> WeightedMetric | None:
    """A metric of the images as a function of their weights; None for an unknown name.

    Args:
        name: one of `trainer.metric_names.VOC` or `COCO`.
        iou_threshold: minimum IoU for a match in VOC-style metrics.
        by_masks: compare masks instead of boxes.
        metric_type: for `coco`, mean_average_precision is map_50.
    """
    if name == "mean_average_precision" and metric_type == "coco":
        name = "map_50"
    if name in VOC:
        matches = match_objects(images, iou_threshold, by_masks=by_masks)
        return _voc_metric(matches, len(images), classes, name)
    if name in coco_matching.QUERIES:
        return _coco_metric(images, classes, name, by_masks=by_masks)
    return None


@dataclass(frozen=True)
class _Ranked:
    """The predictions of one class in descending order of score.

    Attributes:
        true_images: image of each true positive [T].
        false_positives: how many false positives of each image are between two true positives: sparse
            [T + 1, images]; row t holds those before the true positive t and after the one before it.
    """

    true_images: IntArray
    false_positives: csr_array

    @classmethod
    def create(cls, scores: DoubleArray, correct: BoolArray, image_of: IntArray, images: int) -> _Ranked:
        """Rank predictions; ties keep the given order.

        Args:
            scores: [n].
            correct: whether each is a true positive, bool [n].
            image_of: index of each one's image [n].
            images: number of images.
        """
        order = np.argsort(-scores, kind="stable")
        correct, image_of = correct[order], image_of[order]
        is_false = ~correct
        rows = np.cumsum(correct)[is_false]
        shape = (int(correct.sum()) + 1, images)
        ones = np.ones(int(is_false.sum()))
        return cls(image_of[correct], csr_array((ones, (rows, image_of[is_false])), shape=shape))

    def counts(self, weights: DoubleArray) -> tuple[DoubleArray, DoubleArray, DoubleArray]:
        """Weights and cumulative counts at the true positives.

        Returns:
            The weight of each true positive [R, T]; the true positives up to each [R, T]; the false positives
            before each and, last, all of them [R, T + 1].
        """
        own = weights[:, self.true_images]
        misses = np.cumsum((self.false_positives @ weights.T).T, axis=1)
        return own, np.cumsum(own, axis=1), misses


def _envelope(hits: DoubleArray, misses: DoubleArray) -> DoubleArray:
    """At each true positive, the highest precision there or later [R, T]."""
    taken = hits + misses[:, :-1]
    precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
    return np.asarray(np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1])


def _voc_metric(matches: Matches, images: int, classes: int, name: str) -> WeightedMetric:
    objects = _objects_by_image(matches.target_images, matches.target_labels, images, classes)
    correct = matches.outcomes == TRUE_POSITIVE
    rankings = []
    for label in range(classes):
        rows = np.flatnonzero(matches.labels == label)
        scores = matches.scores[rows].astype(np.float64)
        rankings.append(_Ranked.create(scores, correct[rows], matches.images[rows], images))

    def metric(weights: DoubleArray, /) -> DoubleArray:
        counts = weights @ objects
        by_class = [
            _voc_value(ranked, weights, count, name) for ranked, count in zip(rankings, counts.T, strict=True)
        ]
        return _mean_of_defined(np.array(by_class).reshape(classes, len(weights)))

    return metric


def _voc_value(ranked: _Ranked, weights: DoubleArray, objects: DoubleArray, name: str) -> DoubleArray:
    """One class's value for each row of weights, NaN if undefined; `objects` are its targets [R]."""
    own, hits, misses = ranked.counts(weights)
    all_hits = own.sum(axis=1)
    if name == "precision":
        taken = all_hits + misses[:, -1]
        return _defined_ratio(all_hits, taken)
    part = all_hits if name == "recall" else (own * _envelope(hits, misses)).sum(axis=1)
    return _defined_ratio(part, objects)


def _coco_metric(
    images: Sequence[EvaluatedImage], classes: int, name: str, *, by_masks: bool
) -> WeightedMetric:
    query = coco_matching.QUERIES[name]
    matches = coco_matching.match(images, query, by_masks=by_masks)
    objects = _objects_by_image(matches.target_images, matches.target_labels, len(images), classes)
    rankings: list[tuple[int, _Ranked]] = []
    for label in range(classes):
        in_class = matches.labels == label
        for correct, ignored in zip(matches.correct, matches.ignored, strict=True):
            rows = np.flatnonzero(in_class & ~ignored)
            ranked = _Ranked.create(matches.scores[rows], correct[rows], matches.images[rows], len(images))
            rankings.append((label, ranked))

    def metric(weights: DoubleArray, /) -> DoubleArray:
        counts = (weights @ objects).T
        values = [_coco_value(ranked, weights, counts[label], query) for label, ranked in rankings]
        return _mean_of_defined(np.array(values).reshape(len(rankings), len(weights)))

    return metric


def _coco_value(
    ranked: _Ranked, weights: DoubleArray, objects: DoubleArray, query: coco_matching.Query
) -> DoubleArray:
    """One class's average precision or recall at one IoU for each row of weights, NaN if undefined."""
    own, hits, misses = ranked.counts(weights)
    if query.is_recall:
        return _defined_ratio(own.sum(axis=1), objects)
    recall = hits / np.maximum(objects, 1)[:, None]
    reached = np.searchsorted(_RECALLS, recall, side="right")
    steps = np.diff(reached, axis=1, prepend=0)
    sampled = (steps * _envelope(hits, misses)).sum(axis=1) / len(_RECALLS)
    return np.where(objects > 0, sampled, np.nan)


def _objects_by_image(image_of: IntArray, labels: IntArray, images: int, classes: int) -> DoubleArray:
    """Number of objects of each class in each image [images, classes]."""
    counts = np.bincount(image_of * classes + labels, minlength=images * classes)
    return counts.reshape(images, classes).astype(np.float64)


def _defined_ratio(part: DoubleArray, whole: DoubleArray) -> DoubleArray:
    """part / whole [R], NaN where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0))


def _mean_of_defined(values: DoubleArray) -> DoubleArray:
    """The mean over the rows of those that are not NaN [R]; NaN without any."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    total = np.where(defined, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
