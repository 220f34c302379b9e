"""Expected calibration error of a classifier's probabilities, and the temperature that calibrates them best.

Source: Guo et al., On Calibration of Modern Neural Networks (ICML 2017). Temperature scaling divides all
logits by one number.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, softmax

from trainer.annotations import BoolArray, IntArray
from trainer.metrics.curves import in_bins
from trainer.metrics.results import Calibration

DoubleArray = npt.NDArray[np.float64]

BINS = 15
_MIN_PROB = float(np.finfo(np.float32).tiny)  # avoids the logarithm of probabilities rounded to 0
_EPSILON = float(np.finfo(np.float64).eps)
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.01, 100.0


def of_classes(probs: DoubleArray, targets: IntArray) -> Calibration | None:
    """Calibration of a multi-class network, by its most probable class; None without images.

    Args:
        probs: [n, C]; rows sum to 1.
        targets: class indices [n].
    """
    if not len(targets):
        return None
    logits = np.log(probs.clip(_MIN_PROB))
    rows = np.arange(len(targets))

    def slope(prob: DoubleArray) -> float:
        return float(((prob * logits).sum(axis=1) - logits[rows, targets]).mean())

    def measure(prob: DoubleArray) -> tuple[float, float]:
        loss = -np.log(prob[rows, targets].clip(_EPSILON)).mean()
        return expected_error(prob.max(axis=1), prob.argmax(axis=1) == targets), float(loss)

    return _calibration(probs, lambda temperature: softmax(logits / temperature, axis=1), slope, measure)


def of_labels(probs: DoubleArray, targets: BoolArray) -> Calibration | None:
    """Calibration of a multilabel network, over all decisions; both [n, C]. None without images."""
    if not targets.size:
        return None
    probs, target = probs.ravel().clip(_MIN_PROB, 1 - _EPSILON), targets.ravel()
    logits = logit(probs)

    def slope(prob: DoubleArray) -> float:
        return float(((prob - target) * logits).mean())

    def measure(prob: DoubleArray) -> tuple[float, float]:
        loss = -np.log(np.where(target, prob, 1 - prob).clip(_EPSILON)).mean()
        return expected_error(prob, target), float(loss)

    return _calibration(probs, lambda temperature: expit(logits / temperature), slope, measure)


def expected_error(confidence: DoubleArray, is_correct: BoolArray, bins: int = BINS) -> float:
    """Expected calibration error: the mean of |accuracy − mean confidence| over the bins; both [n]."""
    bin_index, _ = in_bins(confidence, bins)
    gaps = np.bincount(bin_index, weights=is_correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _calibration(
    probs: DoubleArray,
    scaled: Callable[[float], DoubleArray],
    slope: Callable[[DoubleArray], float],
    measure: Callable[[DoubleArray], tuple[float, float]],
) -> Calibration:
    """Find the temperature of minimum loss, which is convex in 1/temperature, by bisection.

    If the loss has no minimum, as for a network without errors, the temperature is an end of the range.

    Args:
        scaled: temperature → probabilities, as `probs`.
        slope: probabilities → derivative of the mean loss with respect to 1/temperature.
        measure: probabilities → expected calibration error and mean loss.
    """
    low, high = 1 / _MAX_TEMPERATURE, 1 / _MIN_TEMPERATURE
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(scaled(1 / middle)) > 0 else (middle, high)
    temperature = float(1 / (low * high) ** 0.5)
    error, loss = measure(probs)
    error_scaled, loss_scaled = measure(scaled(temperature))
    return Calibration(
        bins=BINS, error=error, temperature=temperature, log_loss=loss,
        log_loss_scaled=loss_scaled, error_scaled=error_scaled,
    )  # fmt: skip
