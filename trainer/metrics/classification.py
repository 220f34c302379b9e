"""Metrics of multi-class and multi-label classification, as scikit-learn defines them.

What is undefined: AUC of a class without positive or without negative images, and average precision of a
class without positive images, take no part in macro and weighted averages; where nothing is left, or there
are no images at all, the figure is NaN. Precision, recall, F1 and Jaccard index are 0 where their
denominator is (scikit-learn's `zero_division=0`), multi-class over the classes that are true or predicted
somewhere, multi-label over all. Predictions are 64-bit floats from here on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, Classification, IntArray, Prediction, Target
from trainer.errors import TrainingError

DoubleArray = npt.NDArray[np.float64]

THRESHOLD = 0.5
"""A multi-label prediction names the classes with at least this probability."""

_AVERAGES = ("macro", "micro", "weighted")


class MulticlassEvaluator:
    """One class an image; a truth is its index.

    The predicted class is the most probable one, of equally probable ones the first.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._probs: list[npt.NDArray[np.floating]] = []
        self._targets: list[int] = []

    def update(self, prediction: Prediction, target: Target) -> None:
        """Add one image; see `trainer.metrics.Evaluator.update`."""
        probs = _checked(prediction, self.classes)
        if isinstance(target, bool) or not isinstance(target, int | np.integer):
            raise TypeError(f"a multi-class truth must be a class index, got {target!r}")
        if not 0 <= target < len(self.classes):
            raise ValueError(f"truth must be in [0, {len(self.classes) - 1}], got {target}")
        # half a percent is what bfloat16 rounding can do
        if abs(float(probs.sum(dtype=np.float64)) - 1) > 0.01:
            raise ValueError(f"probabilities must sum to 1, got {probs.sum()}")
        self._probs.append(probs)
        self._targets.append(int(target))

    def reset(self) -> None:
        """Forget all images."""
        self._probs.clear()
        self._targets.clear()

    def compute(self) -> dict[str, float]:
        """accuracy, {AUC, average_precision_score, f1_score, precision_score, recall_score}_{macro, micro,
        weighted} and log_loss (mean cross entropy, in nats)."""
        probs, targets = self._arrays()
        predicted = probs.argmax(axis=1) if len(targets) else targets
        figures = {"accuracy": float(np.mean(predicted == targets)) if len(targets) else math.nan}
        figures |= _ranking_figures(_one_hot(targets, len(self.classes)), probs)
        figures |= _decision_figures(targets, predicted)
        figures["log_loss"] = math.nan
        if len(targets):
            likelihood = _clipped(
                (probs / probs.sum(axis=1, keepdims=True))[np.arange(len(targets)), targets]
            )
            figures["log_loss"] = float(-np.log(likelihood).mean())
        return figures

    def per_class(self) -> dict[str, dict[str, float]]:
        """For each class: precision, recall, f1-score, support (images of it), auc and average_precision."""
        probs, targets = self._arrays()
        labels = np.arange(len(self.classes))
        return _report(
            self.classes, _one_hot(targets, len(labels)), probs, probs.argmax(1)[:, None] == labels
        )

    def confusion_matrix(self) -> IntArray:
        """int64 [C, C]: how many images of the row's class were predicted to be of the column's."""
        probs, targets = self._arrays()
        matrix = np.zeros((len(self.classes),) * 2, dtype=np.int64)
        np.add.at(matrix, (targets, probs.argmax(axis=1)), 1)
        return matrix

    def arrays(self) -> tuple[DoubleArray, BoolArray, BoolArray]:
        """[n, C] each: the probabilities, and which class is true and which is predicted."""
        probs, targets = self._arrays()
        predicted = probs.argmax(axis=1) if len(targets) else targets
        return probs, _one_hot(targets, len(self.classes)), _one_hot(predicted, len(self.classes))

    def _arrays(self) -> tuple[DoubleArray, IntArray]:
        return _stack(self._probs, len(self.classes)), np.array(self._targets, dtype=np.int64)


class MultilabelEvaluator:
    """Any number of classes an image; a truth is bool [C]."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._probs: list[npt.NDArray[np.floating]] = []
        self._targets: list[BoolArray] = []

    def update(self, prediction: Prediction, target: Target) -> None:
        """Add one image; see `trainer.metrics.Evaluator.update`."""
        probs = _checked(prediction, self.classes)
        if not isinstance(target, np.ndarray):
            raise TypeError(f"a multi-label truth must be a bool array, got {type(target).__name__}")
        if target.shape != (len(self.classes),):
            raise ValueError(f"truth must have shape ({len(self.classes)},), got {target.shape}")
        self._probs.append(probs)
        self._targets.append(target.astype(np.bool_))

    def reset(self) -> None:
        """Forget all images."""
        self._probs.clear()
        self._targets.clear()

    def compute(self) -> dict[str, float]:
        """What multi-class computes, and iou and iou_{micro, macro, weighted}.

        accuracy is the share of images whose set of classes is exactly right; log_loss the binary cross
        entropy, in nats, averaged over images and classes; iou the Jaccard index of true and predicted set
        (1 if both are empty) averaged over images. `iou_classwise` is a method, as it has a value a class.
        """
        probs, targets = self._arrays()
        predicted = probs >= THRESHOLD
        images = len(targets)
        figures = {"accuracy": float((predicted == targets).all(axis=1).mean()) if images else math.nan}
        figures |= _ranking_figures(targets, probs)
        figures |= _decision_figures(targets, predicted)
        figures["log_loss"] = figures["iou"] = math.nan
        if images:
            likelihood = _clipped(np.where(targets, probs, 1 - probs))
            figures["log_loss"] = float(-np.log(likelihood).mean())
            union = (targets | predicted).sum(axis=1)
            both = (targets & predicted).sum(axis=1)
            figures["iou"] = float(np.where(union > 0, both / np.maximum(union, 1), 1.0).mean())
        intersection, union, support = self._counts()
        by_class = intersection / np.maximum(union, 1)
        figures["iou_micro"] = _ratio(intersection.sum(), union.sum()) if images else math.nan
        figures["iou_macro"] = float(by_class.mean()) if images else math.nan
        figures["iou_weighted"] = (
            _ratio(float((by_class * support).sum()), support.sum()) if images else math.nan
        )
        return figures

    def iou_classwise(self) -> dict[str, float]:
        """The Jaccard index of each class over all images, 0 if it is neither true nor predicted in any."""
        intersection, union, _ = self._counts()
        by_class = intersection / np.maximum(union, 1)
        return {name: float(iou) for name, iou in zip(self.classes, by_class, strict=True)}

    def per_class(self) -> dict[str, dict[str, float]]:
        """For each class: precision, recall, f1-score, support, auc, average_precision and iou."""
        probs, targets = self._arrays()
        report = _report(self.classes, targets, probs, probs >= THRESHOLD)
        for name, iou in self.iou_classwise().items():
            report[name]["iou"] = iou
        return report

    def confusion_matrix(self) -> IntArray:
        """int64 [C, 2, 2]: for each class [[true negatives, false positives], [false negatives, true
        positives]]."""
        probs, targets = self._arrays()
        predicted = probs >= THRESHOLD
        counts = [
            (~targets & ~predicted).sum(axis=0),
            (~targets & predicted).sum(axis=0),
            (targets & ~predicted).sum(axis=0),
            (targets & predicted).sum(axis=0),
        ]
        return np.array(counts, dtype=np.int64).T.reshape(-1, 2, 2)

    def arrays(self) -> tuple[DoubleArray, BoolArray, BoolArray]:
        """[n, C] each: the probabilities, and which classes are true and which are predicted."""
        probs, targets = self._arrays()
        return probs, targets, probs >= THRESHOLD

    def _counts(self) -> tuple[IntArray, IntArray, IntArray]:
        matrix = self.confusion_matrix()
        return matrix[:, 1, 1], matrix.sum(axis=(1, 2)) - matrix[:, 0, 0], matrix[:, 1].sum(axis=1)

    def _arrays(self) -> tuple[DoubleArray, BoolArray]:
        targets = np.array(self._targets, dtype=np.bool_).reshape(-1, len(self.classes))
        return _stack(self._probs, len(self.classes)), targets


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


def _stack(probs: Sequence[npt.NDArray[np.floating]], classes: int) -> DoubleArray:
    return np.array(probs, dtype=np.float64).reshape(-1, classes)


def _one_hot(targets: IntArray, classes: int) -> BoolArray:
    return np.equal.outer(targets, np.arange(classes))


def _clipped(likelihood: DoubleArray) -> DoubleArray:
    epsilon = np.finfo(np.float64).eps  # as scikit-learn's log_loss does for 64-bit floats
    return likelihood.clip(epsilon, 1 - epsilon)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def _auc(target: BoolArray, score: DoubleArray) -> float:
    """Area under the ROC curve of one class: truth bool [n], score [n]. NaN if undefined."""
    from sklearn import metrics as sk  # half a second, which a training's first step need not wait for

    return float(sk.roc_auc_score(target, score)) if target.any() and not target.all() else math.nan


def _average_precision(target: BoolArray, score: DoubleArray) -> float:
    """Step-wise area under the precision-recall curve: truth bool [n], score [n]. NaN if undefined."""
    from sklearn import metrics as sk

    return float(sk.average_precision_score(target, score)) if target.any() else math.nan


def _ranking_figures(targets: BoolArray, probs: DoubleArray) -> dict[str, float]:
    """What depends on the order of the probabilities alone; truths bool [n, C], probs [n, C]."""
    support = targets.sum(axis=0)
    figures = {}
    for name, measure in (("AUC", _auc), ("average_precision_score", _average_precision)):
        by_class = np.array(
            [measure(targets[:, label], probs[:, label]) for label in range(targets.shape[1])]
        )
        defined = ~np.isnan(by_class)
        figures[f"{name}_macro"] = float(by_class[defined].mean()) if defined.any() else math.nan
        figures[f"{name}_micro"] = measure(targets.ravel(), probs.ravel())
        figures[f"{name}_weighted"] = (
            float(np.average(by_class[defined], weights=support[defined])) if defined.any() else math.nan
        )
    return figures


def _decision_figures(targets: IntArray | BoolArray, predicted: IntArray | BoolArray) -> dict[str, float]:
    """F1, precision and recall of decided classes: both int [n] (multi-class) or bool [n, C]."""
    from sklearn import metrics as sk

    figures = {}
    for average in _AVERAGES:
        precision = recall = f1 = math.nan
        if len(targets):
            precision, recall, f1, _ = sk.precision_recall_fscore_support(
                targets, predicted, average=average, zero_division=0
            )
        figures[f"f1_score_{average}"] = float(f1)
        figures[f"precision_score_{average}"] = float(precision)
        figures[f"recall_score_{average}"] = float(recall)
    return figures


def _report(
    classes: Sequence[str], targets: BoolArray, probs: DoubleArray, predicted: BoolArray
) -> dict[str, dict[str, float]]:
    """truths, probs and predicted are [n, C]."""
    report = {}
    hits = (targets & predicted).sum(axis=0)
    for label, name in enumerate(classes):
        found, support = int(predicted[:, label].sum()), int(targets[:, label].sum())
        report[name] = {
            "precision": _ratio(hits[label], found),
            "recall": _ratio(hits[label], support),
            "f1-score": _ratio(2 * hits[label], found + support),
            "support": float(support),
            "auc": _auc(targets[:, label], probs[:, label]),
            "average_precision": _average_precision(targets[:, label], probs[:, label]),
        }
    return report
