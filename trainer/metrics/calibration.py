"""Expected calibration error of a classifier's probabilities, and the temperature that calibrates them best.

Source: Guo et al., On Calibration of Modern Neural Networks (ICML 2017). Temperature scaling divides all
logits by one number.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

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

    def scaled(temperature: float) -> DoubleArray:
        powers = np.exp(_shifted(logits / temperature))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def slope(inverse: float) -> float:
        """Derivative of the mean loss with respect to 1/temperature."""
        prob = scaled(1 / inverse)
        return float(((prob * logits).sum(axis=1) - logits[np.arange(len(targets)), targets]).mean())

    def loss(prob: DoubleArray) -> float:
        return float(-np.log(prob[np.arange(len(targets)), targets].clip(_EPSILON)).mean())

    def error(prob: DoubleArray) -> float:
        return expected_error(prob.max(axis=1), prob.argmax(axis=1) == targets)

    temperature = _minimum(slope)
    after = scaled(temperature)
    return Calibration(
        bins=BINS, error=error(probs), temperature=temperature, log_loss=loss(probs),
        log_loss_scaled=loss(after), error_scaled=error(after),
    )  # fmt: skip


def of_labels(probs: DoubleArray, targets: BoolArray) -> Calibration | None:
    """Calibration of a multilabel network, over all decisions; both [n, C]. None without images."""
    if not targets.size:
        return None
    prob, target = probs.ravel().clip(_MIN_PROB, 1 - _EPSILON), targets.ravel()
    logits = np.log(prob) - np.log1p(-prob)

    def scaled(temperature: float) -> DoubleArray:
        return np.asarray(1 / (1 + np.exp(-logits / temperature)))

    def slope(inverse: float) -> float:
        return float(((scaled(1 / inverse) - target) * logits).mean())

    def loss(prob: DoubleArray) -> float:
        return float(-np.log(np.where(target, prob, 1 - prob).clip(_EPSILON)).mean())

    with np.errstate(over="ignore"):  # large logits at a low temperature: 1 / ∞ is 0
        temperature = _minimum(slope)
        after = scaled(temperature)
    return Calibration(
        bins=BINS, error=expected_error(probs.ravel(), target), temperature=temperature, log_loss=loss(prob),
        log_loss_scaled=loss(after), error_scaled=expected_error(after, target),
    )  # fmt: skip


def expected_error(confidence: DoubleArray, is_correct: BoolArray, bins: int = BINS) -> float:
    """Expected calibration error: the mean of |accuracy − mean confidence| over the bins; both [n]."""
    bin_index, _ = in_bins(confidence, bins)
    gaps = np.bincount(bin_index, weights=is_correct, minlength=bins) - np.bincount(
        bin_index, weights=confidence, minlength=bins
    )
    return float(np.abs(gaps).sum() / len(confidence))


def _minimum(slope: Callable[[float], float]) -> float:
    """Find the temperature of minimum loss, which is convex in 1/temperature, by bisection.

    If the loss has no minimum, as for a network without errors, this is an end of the range.
    """
    low, high = 1 / _MAX_TEMPERATURE, 1 / _MIN_TEMPERATURE
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(1 / (low * high) ** 0.5)


def _shifted(logits: DoubleArray) -> DoubleArray:
    return np.asarray(logits - logits.max(axis=1, keepdims=True))
