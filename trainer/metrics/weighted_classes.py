"""Metrics of multi-class and multilabel classification for images with weights, for the bootstrap.

The definitions are those of `trainer.metrics.classification`: a metric of weights equals that evaluator's of
a list in which each image occurs as often as its weight says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray
from trainer.metric_names import CLASSWISE
from trainer.metrics.bootstrap import WeightedMetric
from trainer.metrics.classification import MulticlassEvaluator, MultilabelEvaluator

DoubleArray = npt.NDArray[np.float64]

_MAX_PAIRS = 1_000_000
"""Up to this many pairs of a positive and a decision, `_FewPositives` is faster than `_Ranking`, given the
number of resamples that the bootstrap computes at a time."""
_CHUNK_ELEMENTS = 20_000_000
"""Weights of sorted scores that are in memory at a time."""


def class_metric(evaluator: MulticlassEvaluator | MultilabelEvaluator, name: str) -> WeightedMetric | None:
    """A metric of the evaluator's images as a function of their weights; None for an unknown name.

    Args:
        name: one of `trainer.metric_names.names_of`, or `iou_classwise.CLASS` for multilabel.
    """
    probs, targets, predicted = evaluator.arrays()
    is_multiclass = isinstance(evaluator, MulticlassEvaluator)
    stem, _, average = name.rpartition("_")
    if name == "accuracy":
        return _mean_of((predicted == targets).all(axis=1))
    if name == "log_loss":
        return _mean_of(_losses(probs, targets, is_multiclass=is_multiclass))
    if name == "norm_macro_recall":
        return _norm_macro_recall(targets, predicted, 1 / max(1, probs.shape[1]) if is_multiclass else 0.5)
    if stem in _DECISIONS and average in _AVERAGES:
        return _decision_metric(targets, predicted, *_DECISIONS[stem], average, only_present=is_multiclass)
    if stem in _RANKINGS and average in _AVERAGES:
        return _ranking_metric(targets, probs, stem, average)
    if is_multiclass:
        return None
    if name == "iou":
        union = (targets | predicted).sum(axis=1)
        intersection = (targets & predicted).sum(axis=1)
        return _mean_of(np.where(union > 0, intersection / np.maximum(union, 1), 1.0))
    if name.startswith(CLASSWISE):
        label = name.removeprefix(CLASSWISE)
        column = [index for index, known in enumerate(evaluator.classes) if known == label]
        if not column:
            return None
        columns = targets[:, column], predicted[:, column]
        return _decision_metric(*columns, 1, (1, 1, -1), "macro", only_present=False)
    if stem == "iou" and average in _AVERAGES:
        return _decision_metric(targets, predicted, 1, (1, 1, -1), average, only_present=False)
    return None


_DECISIONS = {
    "precision_score": (1, (1, 0, 0)),
    "recall_score": (1, (0, 1, 0)),
    "f1_score": (2, (1, 1, 0)),
}
"""By metric: numerator as a multiple of hits, denominator as multiples of predictions, positives and hits."""
_AVERAGES = ("macro", "micro", "weighted")
_RANKINGS = ("AUC", "average_precision_score")


def _mean_of(values: npt.NDArray[np.generic]) -> WeightedMetric:
    """The weighted mean of a value of each image [n]."""
    numbers = values.astype(np.float64)

    def metric(weights: DoubleArray, /) -> DoubleArray:
        return np.asarray(weights @ numbers / weights.sum(axis=1))

    return metric


def _losses(probs: DoubleArray, targets: BoolArray, *, is_multiclass: bool) -> DoubleArray:
    """Each image's log loss in nats [n], with scikit-learn's bounds."""
    epsilon = np.finfo(np.float64).eps
    if is_multiclass:
        likelihood = (probs / probs.sum(axis=1, keepdims=True))[targets]
        return np.asarray(-np.log(likelihood.clip(epsilon, 1 - epsilon)))
    likelihood = np.where(targets, probs, 1 - probs).clip(epsilon, 1 - epsilon)
    return np.asarray(-np.log(likelihood).mean(axis=1))


def _norm_macro_recall(targets: BoolArray, predicted: BoolArray, chance: float) -> WeightedMetric:
    hits = (targets & predicted).astype(np.float64)
    positives = targets.astype(np.float64)

    def metric(weights: DoubleArray, /) -> DoubleArray:
        support = weights @ positives
        if chance == 1:
            return np.full(len(weights), np.nan)
        recall = _mean_where(_ratios(weights @ hits, support), support > 0)
        return np.maximum(0.0, (recall - chance) / (1 - chance))

    return metric


def _decision_metric(
    targets: BoolArray,
    predicted: BoolArray,
    hit_factor: int,
    factors: tuple[int, int, int],
    average: str,
    *,
    only_present: bool,
) -> WeightedMetric:
    """hit_factor · hits / (factors · (predictions, positives, hits)), averaged over the classes.

    Args:
        only_present: the macro average is over the classes that are true or predicted in some image.
    """
    counted = [array.astype(np.float64) for array in (targets & predicted, predicted, targets)]

    def metric(weights: DoubleArray, /) -> DoubleArray:
        hits, predictions, support = (weights @ array for array in counted)
        whole = factors[0] * predictions + factors[1] * support + factors[2] * hits
        if average == "micro":
            return _ratios(hit_factor * hits.sum(axis=1), whole.sum(axis=1))
        ratios = _ratios(hit_factor * hits, whole)
        if average == "weighted":
            return _ratios((ratios * support).sum(axis=1), support.sum(axis=1))
        present = predictions + support > 0
        return _mean_where(ratios, present if only_present else np.ones_like(present))

    return metric


def _ranking_metric(targets: BoolArray, probs: DoubleArray, stem: str, average: str) -> WeightedMetric:
    """AUC or average precision; classes without positives (for AUC, also without negatives) are left out."""
    positives = targets.astype(np.float64)
    if average == "micro":
        classes = probs.shape[1]
        ranking = _Ranking(targets.ravel(), probs.ravel(), np.arange(probs.size) // max(1, classes))
        return lambda weights, /: ranking.compute(weights, stem)
    images = np.arange(len(probs))
    rankings = [
        _FewPositives(target, prob)
        if np.count_nonzero(target) * len(target) <= _MAX_PAIRS
        else _Ranking(target, prob, images)
        for target, prob in zip(targets.T, probs.T, strict=True)
    ]

    def metric(weights: DoubleArray, /) -> DoubleArray:
        by_class = np.array([ranking.compute(weights, stem) for ranking in rankings]).T
        defined = ~np.isnan(by_class)
        if average == "macro":
            return _mean_where(by_class, defined)
        support = np.where(defined, weights @ positives, 0.0)
        total = support.sum(axis=1)
        value = _ratios((np.where(defined, by_class, 0.0) * support).sum(axis=1), total)
        return np.where(total > 0, value, np.nan)

    return metric


class _Ranking:
    """Decisions in descending order of score, each with its image."""

    def __init__(self, targets: BoolArray, scores: DoubleArray, images: npt.NDArray[np.int64]) -> None:
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        self.images, self.targets = images[order], targets[order].astype(np.float64)
        self.ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True]) if len(order) else order

    def compute(self, weights: DoubleArray, stem: str) -> DoubleArray:
        """AUC or average precision for each row of weights."""
        rows = max(1, _CHUNK_ELEMENTS // max(1, len(self.images)))
        parts = [self._compute(weights[start : start + rows], stem) for start in range(0, len(weights), rows)]
        return np.concatenate(parts)

    def _compute(self, weights: DoubleArray, stem: str) -> DoubleArray:
        ordered = weights[:, self.images]
        taken = np.cumsum(ordered, axis=1)[:, self.ends]
        hits = np.cumsum(ordered * self.targets, axis=1)[:, self.ends]
        if not len(self.ends):
            return np.full(len(weights), np.nan)
        positives, negatives = hits[:, -1], taken[:, -1] - hits[:, -1]
        new_hits = np.diff(hits, axis=1, prepend=0.0)
        if stem == "AUC":
            new_misses = np.diff(taken - hits, axis=1, prepend=0.0)
            area = (new_misses * (hits - new_hits / 2)).sum(axis=1)
            return np.where((positives > 0) & (negatives > 0), _ratios(area, positives * negatives), np.nan)
        precision = _ratios(hits, taken)
        return np.where(positives > 0, _ratios((new_hits * precision).sum(axis=1), positives), np.nan)


class _FewPositives:
    """Ranks the decisions on a class with few positives by comparing each positive with all decisions.

    With a thousand classes, this takes a few products of small matrices for each, while `_Ranking` goes
    through all decisions of every class.
    """

    def __init__(self, targets: BoolArray, scores: DoubleArray) -> None:
        self._positives = np.flatnonzero(targets)
        self._targets, self._scores = targets, scores

    def compute(self, weights: DoubleArray, stem: str) -> DoubleArray:
        """AUC or average precision for each row of weights."""
        own = weights[:, self._positives]
        count = own.sum(axis=1)
        thresholds = self._scores[self._positives]
        if stem == "AUC":
            others = weights.sum(axis=1) - count
            # The negatives below each positive, and half of those tied with it.
            is_below = (self._scores[:, None] < thresholds) + 0.5 * (self._scores[:, None] == thresholds)
            area = (own * (weights @ (is_below * ~self._targets[:, None]))).sum(axis=1)
            return np.where((count > 0) & (others > 0), _ratios(area, count * others), np.nan)
        taken = weights @ (self._scores[:, None] >= thresholds).astype(np.float64)
        hits = own @ (thresholds[:, None] >= thresholds).astype(np.float64)
        return np.where(count > 0, _ratios((own * _ratios(hits, taken)).sum(axis=1), count), np.nan)


def _ratios(part: DoubleArray, whole: DoubleArray) -> DoubleArray:
    """part / whole, 0 where the whole is."""
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)


def _mean_where(values: DoubleArray, chosen: Sequence[bool] | BoolArray) -> DoubleArray:
    """The mean of each row's chosen values; NaN without any."""
    mask = np.asarray(chosen)
    count = mask.sum(axis=1)
    total = np.where(mask, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
