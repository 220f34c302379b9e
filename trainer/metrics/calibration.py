"""How well scores match the frequency of right answers, and the calibration that makes them match best.

Sources: Guo et al., On Calibration of Modern Neural Networks (ICML 2017), for the expected calibration error
and a classifier's temperature; Küppers et al., Multivariate Confidence Calibration for Object Detection (CVPR
Workshops 2020), for the logistic calibration of a detector's scores.

A fit to few images without errors would raise every score to 1. So the targets are not 0 and 1, but leave
half an image in n + 1 for an error that has not been seen, as Platt (Probabilistic Outputs for Support Vector
Machines, 1999, section 2.2) does with one in n + 2: of 500 images and more the temperature hardly changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit, softmax

from trainer.annotations import BoolArray, IntArray
from trainer.metrics.curves import in_bins
from trainer.metrics.results import Calibration, Curve
from trainer.models.score_calibration import LEAST_SCORE, MOST_SCORE, ScoreCalibration

DoubleArray = npt.NDArray[np.float64]

BINS = 15
LOWEST_BOX_SCORE = 0.05
"""Boxes with lower scores are left out: they are many, hardly ever right, and would decide the fit. It is the
score from which torchvision's detectors return boxes."""
_MIN_PROB = float(np.finfo(np.float32).tiny)  # avoids the logarithm of probabilities rounded to 0
_EPSILON = float(np.finfo(np.float64).eps)
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0
_MAX_BIAS = 10.0
_FOLDS = 5
_NO_CHANGE = ScoreCalibration(temperature=1.0)


def of_classes(probs: DoubleArray, targets: IntArray) -> Calibration | None:
    """Calibration of a multi-class network, by its most probable class; None without images.

    Args:
        probs: [n, C]; rows sum to 1.
        targets: class indices [n].
    """
    return _calibration(_Classes(np.log(probs.clip(_MIN_PROB)), targets)) if len(targets) else None


def of_labels(probs: DoubleArray, targets: BoolArray) -> Calibration | None:
    """Calibration of a multilabel network, over all decisions; both [n, C]. None without images."""
    if not targets.size:
        return None
    images = np.repeat(np.arange(len(targets)), targets.shape[1])
    logits = logit(probs.ravel().clip(_MIN_PROB, MOST_SCORE))
    return _calibration(_Decisions(logits, targets.ravel(), images, has_bias=False))


def of_boxes(scores: npt.NDArray[np.floating], is_correct: BoolArray, images: IntArray) -> Calibration | None:
    """Calibration of a detector, over its boxes of at least LOWEST_BOX_SCORE; None without any.

    Args:
        scores: [n].
        is_correct: which boxes match an object, bool [n].
        images: index of each box's image [n].
    """
    chosen = scores >= LOWEST_BOX_SCORE
    if not chosen.any():
        return None
    logits = logit(scores[chosen].astype(np.float64).clip(LEAST_SCORE, MOST_SCORE))
    _, numbers = np.unique(images[chosen], return_inverse=True)
    return _calibration(_Decisions(logits, is_correct[chosen], numbers, has_bias=True))


def expected_error(confidence: DoubleArray, is_correct: BoolArray, bins: int = BINS) -> float:
    """Expected calibration error: the mean of |accuracy − mean confidence| over the bins; both [n]."""
    bin_index, _ = in_bins(confidence, bins)
    gaps = np.bincount(bin_index, weights=is_correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


class _Scored(ABC):
    """Scores with their targets, of images numbered from 0.

    Attributes:
        images: image of each score.
    """

    images: IntArray

    @abstractmethod
    def fit(self, rows: BoolArray) -> ScoreCalibration:
        """The calibration of least loss on some of the scores."""

    @abstractmethod
    def apply(self, calibration: ScoreCalibration) -> DoubleArray:
        """Calibrated probabilities."""

    @abstractmethod
    def confidence(self, probs: DoubleArray) -> tuple[DoubleArray, BoolArray]:
        """Confidence in each answer, and whether the answer is right."""

    @abstractmethod
    def loss(self, probs: DoubleArray) -> float:
        """Mean negative log-likelihood in nats."""


class _Classes(_Scored):
    """Logits of multi-class images [n, C]."""

    def __init__(self, logits: DoubleArray, targets: IntArray) -> None:
        self.logits, self.targets = logits, targets
        self.images = np.arange(len(targets))

    def fit(self, rows: BoolArray) -> ScoreCalibration:
        logits, classes = self.logits[rows], self.logits.shape[1]
        if classes < 2:
            return _NO_CHANGE
        unseen = _unseen(len(logits))
        # The mean logit of the targets, which share `unseen` among the classes that are not the true one.
        own = logits[np.arange(len(logits)), self.targets[rows]]
        others = (logits.sum(axis=1) - own) / (classes - 1)
        wanted = float(((1 - unseen) * own + unseen * others).mean())

        def slope(log_temperature: float) -> float:
            probs = softmax(logits / np.exp(log_temperature), axis=1)
            return float((probs * logits).sum(axis=1).mean()) - wanted

        return ScoreCalibration(temperature=_root(slope))

    def apply(self, calibration: ScoreCalibration) -> DoubleArray:
        return np.asarray(softmax(self.logits / calibration.temperature, axis=1))

    def confidence(self, probs: DoubleArray) -> tuple[DoubleArray, BoolArray]:
        return probs.max(axis=1), probs.argmax(axis=1) == self.targets

    def loss(self, probs: DoubleArray) -> float:
        own = probs[np.arange(len(probs)), self.targets]
        return float(-np.log(own.clip(_EPSILON)).mean())


class _Decisions(_Scored):
    """Logits of decisions that are right or wrong [n]: labels of images, or boxes."""

    def __init__(self, logits: DoubleArray, targets: BoolArray, images: IntArray, *, has_bias: bool) -> None:
        self.logits, self.targets, self.images, self.has_bias = logits, targets, images, has_bias

    def fit(self, rows: BoolArray) -> ScoreCalibration:
        logits = self.logits[rows]
        unseen = _unseen(len(np.unique(self.images[rows])))
        wanted = np.where(self.targets[rows], 1 - unseen, unseen)
        if not self.has_bias:

            def slope(log_temperature: float) -> float:
                return float(((expit(logits / np.exp(log_temperature)) - wanted) * logits).mean())

            return ScoreCalibration(temperature=_root(slope))

        def loss(parameters: DoubleArray) -> tuple[float, DoubleArray]:
            scaled = parameters[0] * logits + parameters[1]
            gap = expit(scaled) - wanted
            value = np.logaddexp(0, scaled) - wanted * scaled
            return float(value.mean()), np.array([(gap * logits).mean(), gap.mean()])

        bounds = [(1 / _MAX_TEMPERATURE, 1 / _MIN_TEMPERATURE), (-_MAX_BIAS, _MAX_BIAS)]
        factor, bias = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds).x
        return ScoreCalibration(temperature=float(1 / factor), bias=float(bias))

    def apply(self, calibration: ScoreCalibration) -> DoubleArray:
        return np.asarray(expit(self.logits / calibration.temperature + calibration.bias))

    def confidence(self, probs: DoubleArray) -> tuple[DoubleArray, BoolArray]:
        return probs, self.targets

    def loss(self, probs: DoubleArray) -> float:
        return float(-np.log(np.where(self.targets, probs, 1 - probs).clip(_EPSILON)).mean())


def _unseen(images: int) -> float:
    """The probability that is left for errors that the images do not show."""
    return 0.5 / (images + 1)


def _root(slope: Callable[[float], float]) -> float:
    """The temperature at which the slope of a loss that is convex in 1 / temperature is 0.

    Args:
        slope: as a function of the temperature's logarithm.
    """
    low, high = np.log(_MIN_TEMPERATURE), np.log(_MAX_TEMPERATURE)
    # The slope is with respect to 1 / temperature, so it falls as the temperature rises.
    at_low, at_high = slope(low), slope(high)
    if abs(at_low) < _EPSILON and abs(at_high) < _EPSILON:  # all scores are alike
        return 1.0
    if at_low <= 0:
        return _MIN_TEMPERATURE
    if at_high >= 0:
        return _MAX_TEMPERATURE
    return float(np.exp(brentq(slope, low, high, xtol=1e-9)))


def _calibration(scored: _Scored) -> Calibration:
    """Fit to all images, and measure before and after; also after by fits to other images (cross-fitting)."""
    everything = np.ones(len(scored.images), np.bool_)
    fitted = scored.fit(everything)
    before, after = scored.apply(_NO_CHANGE), scored.apply(fitted)
    images = int(scored.images.max()) + 1
    folds = min(_FOLDS, images)
    held_out = after.copy()
    fold_of = np.random.default_rng(0).permutation(images)[scored.images] % folds
    for fold in range(folds if folds > 1 else 0):
        held_out[fold_of == fold] = scored.apply(scored.fit(fold_of != fold))[fold_of == fold]
    is_known = folds > 1
    curves = [_reliability("before", *scored.confidence(before))]
    if is_known:
        curves.append(_reliability("after, cross-fitted", *scored.confidence(held_out)))
    return Calibration(
        bins=BINS,
        images=images,
        scores=len(before),
        error=expected_error(*scored.confidence(before)),
        temperature=fitted.temperature,
        bias=fitted.bias,
        log_loss=scored.loss(before),
        log_loss_scaled=scored.loss(after),
        error_scaled=expected_error(*scored.confidence(after)),
        folds=folds if is_known else 0,
        log_loss_cross_fitted=scored.loss(held_out) if is_known else float("nan"),
        error_cross_fitted=expected_error(*scored.confidence(held_out)) if is_known else float("nan"),
        reliability=curves,
    )


def _reliability(name: str, confidence: DoubleArray, is_correct: BoolArray) -> Curve:
    """Mean confidence → fraction of right answers in each bin that has answers."""
    bin_index, counts = in_bins(confidence, BINS)
    filled = counts > 0
    x, y = (
        np.bincount(bin_index, weights=values, minlength=BINS)[filled] / counts[filled]
        for values in (confidence, is_correct)
    )
    return Curve(name=name, x=x.tolist(), y=y.tolist(), counts=counts[filled].tolist())
