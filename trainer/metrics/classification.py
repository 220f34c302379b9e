"""Metrics of multi-class and multilabel classification, as scikit-learn defines them.

Undefined values: AUC of a class without positive or without negative images, and average precision of a class
without positive images, are left out of macro and weighted averages; if no class is left, or there are no
images, the metric is NaN. Precision, recall, F1 and Jaccard index are 0 if their denominator is
(scikit-learn's `zero_division=0`). They are averaged over the classes that are true or predicted in some
image for multi-class, over all classes for multilabel. All computations are in float64.

Counts, confusion matrices and Jaccard indices are computed here, since scikit-learn rejects empty input and
takes multilabel data with a single class for binary data.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, Classification, IntArray, Prediction, Target
from trainer.errors import TrainingError

DoubleArray = npt.NDArray[np.float64]

THRESHOLD = 0.5
"""A multilabel prediction names the classes with at least this probability."""

_AVERAGES = ("macro", "micro", "weighted")


class _ClassificationEvaluator(ABC):
    """Collects probabilities and targets of images."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._probs: list[npt.NDArray[np.floating]] = []
        self._targets: list[Any] = []

    def update(self, prediction: Prediction, target: Target) -> None:
        """Add one image; see `trainer.metrics.Evaluator.update`."""
        probs = _checked(prediction, self.classes)
        self._targets.append(self._checked_target(target, probs))
        self._probs.append(probs)

    def reset(self) -> None:
        """Remove all images."""
        self._probs.clear()
        self._targets.clear()

    @abstractmethod
    def arrays(self) -> tuple[DoubleArray, BoolArray, BoolArray]:
        """The probabilities, which classes are true, and which are predicted; [n, C] each."""

    def by_class(self) -> dict[str, dict[str, float]]:
        """Report f1-score, precision and recall of each class."""
        hits, predictions, support = self._decisions()
        return {
            name: {
                "f1-score": _ratio(2 * hits[label], predictions[label] + support[label]),
                "precision": _ratio(hits[label], predictions[label]),
                "recall": _ratio(hits[label], support[label]),
            }
            for label, name in enumerate(self.classes)
        }

    def per_class(self) -> dict[str, dict[str, float]]:
        """Report precision, recall, f1-score, support (images), auc and average_precision of each class."""
        probs, targets, _ = self.arrays()
        decisions, report = self.by_class(), {}
        for label, name in enumerate(self.classes):
            report[name] = {
                **{metric: decisions[name][metric] for metric in ("precision", "recall", "f1-score")},
                "support": float(targets[:, label].sum()),
                "auc": _auc(targets[:, label], probs[:, label]),
                "average_precision": _average_precision(targets[:, label], probs[:, label]),
            }
        return report

    def _decisions(self) -> tuple[IntArray, IntArray, IntArray]:
        """Images of each class in which it is found, predicted, and true; [C] each."""
        _, targets, predicted = self.arrays()
        return (targets & predicted).sum(axis=0), predicted.sum(axis=0), targets.sum(axis=0)

    @abstractmethod
    def _checked_target(self, target: Target, probs: npt.NDArray[np.floating]) -> Any: ...

    def _stacked_probs(self) -> DoubleArray:
        return np.array(self._probs, dtype=np.float64).reshape(-1, len(self.classes))


class MulticlassEvaluator(_ClassificationEvaluator):
    """Evaluates images of one class each; a target is its index.

    The predicted class is the most probable one; of equally probable ones, the first.
    """

    def compute(self) -> dict[str, float]:
        """Compute all metrics.

        They are accuracy, log_loss (mean cross entropy in nats), norm_macro_recall, and AUC,
        average_precision_score, f1_score, precision_score and recall_score, each with the suffixes _macro,
        _micro and _weighted. norm_macro_recall is the mean recall of the classes that images have, scaled so
        that random answers get 0 and right ones 1; NaN if there is only one class.
        """
        probs, labels = self._stacked_probs(), self._labels()
        predicted = probs.argmax(axis=1) if len(labels) else labels
        metrics = {"accuracy": float(np.mean(predicted == labels)) if len(labels) else math.nan}
        metrics |= _ranking_metrics(self._one_hot(labels), probs)
        metrics |= _decision_metrics(labels, predicted)
        support = np.bincount(labels, minlength=len(self.classes))
        hits = np.bincount(labels[predicted == labels], minlength=len(self.classes))
        recalls = hits[support > 0] / support[support > 0]
        metrics["norm_macro_recall"] = _above_chance(recalls, 1 / max(1, len(self.classes)))
        metrics["log_loss"] = math.nan
        if len(labels):
            scaled = probs / probs.sum(axis=1, keepdims=True)
            likelihood = _clipped(scaled[np.arange(len(labels)), labels])
            metrics["log_loss"] = float(-np.log(likelihood).mean())
        return metrics

    def confusion_matrix(self) -> IntArray:
        """Number of images of the row's class that were predicted as the column's, int64 [C, C]."""
        matrix = np.zeros((len(self.classes),) * 2, dtype=np.int64)
        np.add.at(matrix, (self._labels(), self._stacked_probs().argmax(axis=1)), 1)
        return matrix

    def arrays(self) -> tuple[DoubleArray, BoolArray, BoolArray]:
        """The probabilities, which class is true, and which is predicted; [n, C] each."""
        probs, labels = self._stacked_probs(), self._labels()
        return probs, self._one_hot(labels), self._one_hot(probs.argmax(axis=1))

    def _decisions(self) -> tuple[IntArray, IntArray, IntArray]:
        # Without arrays of images by classes, which would be large after each epoch.
        labels, predicted = (
            self._labels(),
            np.array([probs.argmax() for probs in self._probs], dtype=np.int64),
        )
        hits, predictions, support = (
            np.bincount(found, minlength=len(self.classes))
            for found in (labels[labels == predicted], predicted, labels)
        )
        return hits, predictions, support

    def _checked_target(self, target: Target, probs: npt.NDArray[np.floating]) -> int:
        if isinstance(target, bool) or not isinstance(target, int | np.integer):
            raise TypeError(f"a multi-class target must be a class index, got {target!r}")
        if not 0 <= target < len(self.classes):
            raise ValueError(f"target must be in [0, {len(self.classes) - 1}], got {target}")
        # Rounding to bfloat16 can add up to half a percent.
        if abs(float(probs.sum(dtype=np.float64)) - 1) > 0.01:
            raise ValueError(f"probabilities must sum to 1, got {probs.sum()}")
        return int(target)

    def _labels(self) -> IntArray:
        return np.array(self._targets, dtype=np.int64)

    def _one_hot(self, labels: IntArray) -> BoolArray:
        return np.equal.outer(labels, np.arange(len(self.classes)))


class MultilabelEvaluator(_ClassificationEvaluator):
    """Evaluates images of any number of classes; a target is bool [C]."""

    def compute(self) -> dict[str, float]:
        """Compute the metrics of multi-class, and iou and iou_{micro, macro, weighted}.

        For norm_macro_recall, a random answer finds half of a class's images.

        accuracy is the fraction of images whose set of classes is exactly right; log_loss the binary cross
        entropy in nats, averaged over images and classes; iou the Jaccard index of true and predicted set (1
        if both are empty), averaged over images. `iou_classwise` is a method, as it has a value per class.
        """
        probs, targets, predicted = self.arrays()
        metrics = {"accuracy": float((predicted == targets).all(axis=1).mean()) if len(probs) else math.nan}
        metrics |= _ranking_metrics(targets, probs)
        metrics |= _decision_metrics(targets, predicted)
        if not len(probs):
            names = ("log_loss", "iou", "iou_micro", "iou_macro", "iou_weighted", "norm_macro_recall")
            return metrics | dict.fromkeys(names, math.nan)
        likelihood = _clipped(np.where(targets, probs, 1 - probs))
        metrics["log_loss"] = float(-np.log(likelihood).mean())
        union = (targets | predicted).sum(axis=1)
        intersection = (targets & predicted).sum(axis=1)
        metrics["iou"] = float(np.where(union > 0, intersection / np.maximum(union, 1), 1.0).mean())
        intersection, union, support = self._counts()
        recalls = intersection[support > 0] / support[support > 0]
        metrics["norm_macro_recall"] = _above_chance(recalls, 0.5)
        by_class = intersection / np.maximum(union, 1)
        metrics["iou_micro"] = _ratio(intersection.sum(), union.sum())
        metrics["iou_macro"] = float(by_class.mean())
        metrics["iou_weighted"] = _ratio(float((by_class * support).sum()), support.sum())
        return metrics

    def iou_classwise(self) -> dict[str, float]:
        """The Jaccard index of each class over all images; 0 if it is neither true nor predicted in any."""
        intersection, union, _ = self._counts()
        by_class = intersection / np.maximum(union, 1)
        return {name: float(iou) for name, iou in zip(self.classes, by_class, strict=True)}

    def per_class(self) -> dict[str, dict[str, float]]:
        """Report what multi-class does, and iou, of each class."""
        report = super().per_class()
        for name, iou in self.iou_classwise().items():
            report[name]["iou"] = iou
        return report

    def confusion_matrix(self) -> IntArray:
        """The matrix of each class, int64 [C, 2, 2]; rows: absent and present, columns: predicted so."""
        _, targets, predicted = self.arrays()
        counts = [
            (~targets & ~predicted).sum(axis=0),
            (~targets & predicted).sum(axis=0),
            (targets & ~predicted).sum(axis=0),
            (targets & predicted).sum(axis=0),
        ]
        return np.array(counts, dtype=np.int64).T.reshape(-1, 2, 2)

    def arrays(self) -> tuple[DoubleArray, BoolArray, BoolArray]:
        """The probabilities, which classes are true, and which are predicted; [n, C] each."""
        probs = self._stacked_probs()
        targets = np.array(self._targets, dtype=np.bool_).reshape(-1, len(self.classes))
        return probs, targets, probs >= THRESHOLD

    def _checked_target(self, target: Target, probs: npt.NDArray[np.floating]) -> BoolArray:
        if not isinstance(target, np.ndarray):
            raise TypeError(f"a multilabel target must be a bool array, got {type(target).__name__}")
        if target.shape != (len(self.classes),):
            raise ValueError(f"target must have shape ({len(self.classes)},), got {target.shape}")
        return target.astype(np.bool_)

    def _counts(self) -> tuple[IntArray, IntArray, IntArray]:
        """Images of each class that are true and predicted, true or predicted, and true; [C] each."""
        matrix = self.confusion_matrix()
        return matrix[:, 1, 1], matrix.sum(axis=(1, 2)) - matrix[:, 0, 0], matrix[:, 1].sum(axis=1)


def _checked(prediction: Prediction, classes: Sequence[str]) -> npt.NDArray[np.floating]:
    if not isinstance(prediction, Classification):
        raise TypeError(f"prediction must be a Classification, got {type(prediction).__name__}")
    probs: npt.NDArray[np.floating] = np.array(prediction.probs)  # a copy: callers reuse their buffers
    if probs.shape != (len(classes),):
        raise ValueError(f"probs must have shape ({len(classes)},), got {probs.shape}")
    if not np.isfinite(probs).all():
        raise TrainingError(
            "the network predicts probabilities that are not numbers (NaN): training has diverged; "
            "lower learning_rate, lengthen warmup_cosine_lr_warmup_epochs or set gradient_clip_norm"
        )
    if len(probs) and not (probs.min() >= 0 and probs.max() <= 1):
        raise ValueError(f"probabilities must be in [0, 1], got {probs.min()} to {probs.max()}")
    return probs


def _clipped(likelihood: DoubleArray) -> DoubleArray:
    epsilon = np.finfo(np.float64).eps  # as in scikit-learn's log_loss
    return likelihood.clip(epsilon, 1 - epsilon)


def _above_chance(recalls: DoubleArray, chance: float) -> float:
    """The mean recall [C] as a fraction of the way from chance to 1, at least 0; NaN if undefined."""
    if not len(recalls) or chance == 1:
        return math.nan
    return max(0.0, (float(recalls.mean()) - chance) / (1 - chance))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def _auc(target: BoolArray, score: DoubleArray) -> float:
    """Area under the ROC curve of one class: target bool [n], score [n]. NaN if undefined."""
    from sklearn import metrics as sk  # takes half a second, which would delay the first training step

    return float(sk.roc_auc_score(target, score)) if target.any() and not target.all() else math.nan


def _average_precision(target: BoolArray, score: DoubleArray) -> float:
    """Step-wise area under the precision-recall curve: target bool [n], score [n]. NaN if undefined."""
    from sklearn import metrics as sk

    return float(sk.average_precision_score(target, score)) if target.any() else math.nan


def _ranking_metrics(targets: BoolArray, probs: DoubleArray) -> dict[str, float]:
    """The metrics that depend only on the order of the probabilities; targets bool [n, C], probs [n, C]."""
    support = targets.sum(axis=0)
    metrics = {}
    for name, measure in (("AUC", _auc), ("average_precision_score", _average_precision)):
        columns = zip(targets.T, probs.T, strict=True)
        by_class = np.array([measure(target, score) for target, score in columns])
        defined = ~np.isnan(by_class)
        metrics[f"{name}_macro"] = float(by_class[defined].mean()) if defined.any() else math.nan
        metrics[f"{name}_micro"] = measure(targets.ravel(), probs.ravel())
        metrics[f"{name}_weighted"] = (
            float(np.average(by_class[defined], weights=support[defined])) if defined.any() else math.nan
        )
    return metrics


def _decision_metrics(targets: IntArray | BoolArray, predicted: IntArray | BoolArray) -> dict[str, float]:
    """F1, precision and recall; both int [n] for multi-class, bool [n, C] for multilabel."""
    from sklearn import metrics as sk

    metrics = {}
    for average in _AVERAGES:
        precision = recall = f1 = math.nan
        if len(targets):
            precision, recall, f1, _ = sk.precision_recall_fscore_support(
                targets, predicted, average=average, zero_division=0
            )
        metrics[f"f1_score_{average}"] = float(f1)
        metrics[f"precision_score_{average}"] = float(precision)
        metrics[f"recall_score_{average}"] = float(recall)
    return metrics
