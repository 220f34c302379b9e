"""Whether a classifier's probabilities mean what they say, and the temperature that would make them.

Guo et al., On Calibration of Modern Neural Networks (ICML 2017): the expected calibration error, and
temperature scaling, the division of all logits by one number.
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
_SMALLEST = float(np.finfo(np.float32).tiny)  # a probability that rounding made 0 has no logarithm
_EPSILON = float(np.finfo(np.float64).eps)
_COLDEST, _HOTTEST = 0.01, 100.0


def of_classes(probs: DoubleArray, targets: IntArray) -> Calibration | None:
    """Of a multi-class network; None without images. Its error is that of the most probable class.

    Args:
        probs: [n, C], rows of sum 1.
        truths: class indices [n].
    """
    if not len(targets):
        return None
    logits = np.log(probs.clip(_SMALLEST))

    def scaled(temperature: float) -> DoubleArray:
        powers = np.exp(_normalised(logits / temperature))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def slope(inverse: float) -> float:
        """Of the mean loss, by 1/temperature."""
        p = scaled(1 / inverse)
        return float(((p * logits).sum(axis=1) - logits[np.arange(len(targets)), targets]).mean())

    def loss(p: DoubleArray) -> float:
        return float(-np.log(p[np.arange(len(targets)), targets].clip(_EPSILON)).mean())

    def error(p: DoubleArray) -> float:
        return expected_error(p.max(axis=1), p.argmax(axis=1) == targets)

    temperature = _best(slope)
    after = scaled(temperature)
    return Calibration(
        bins=BINS, error=error(probs), temperature=temperature, log_loss=loss(probs),
        log_loss_scaled=loss(after), error_scaled=error(after),
    )  # fmt: skip


def of_labels(probs: DoubleArray, targets: BoolArray) -> Calibration | None:
    """Of a multi-label network, all decisions about all classes together; both [n, C]."""
    if not targets.size:
        return None
    p, target = probs.ravel().clip(_SMALLEST, 1 - _EPSILON), targets.ravel()
    logits = np.log(p) - np.log1p(-p)

    def scaled(temperature: float) -> DoubleArray:
        return np.asarray(1 / (1 + np.exp(-logits / temperature)))

    def slope(inverse: float) -> float:
        return float(((scaled(1 / inverse) - target) * logits).mean())

    def loss(q: DoubleArray) -> float:
        return float(-np.log(np.where(target, q, 1 - q).clip(_EPSILON)).mean())

    with np.errstate(over="ignore"):  # of a very sure network at a low temperature: 1 / ∞ is 0
        temperature = _best(slope)
        after = scaled(temperature)
    return Calibration(
        bins=BINS, error=expected_error(probs.ravel(), target), temperature=temperature, log_loss=loss(p),
        log_loss_scaled=loss(after), error_scaled=expected_error(after, target),
    )  # fmt: skip


def expected_error(confidence: DoubleArray, right: BoolArray, bins: int = BINS) -> float:
    """The mean over the predictions of their bin's |share that is right − mean confidence|; both [n]."""
    index, _ = in_bins(confidence, bins)
    gaps = np.bincount(index, weights=right, minlength=bins) - np.bincount(
        index, weights=confidence, minlength=bins
    )
    return float(np.abs(gaps).sum() / len(confidence))


def _best(slope: Callable[[float], float]) -> float:
    """The temperature at which the loss, convex in its inverse, has no slope.

    An end of the range where there is none, as for a network that is never wrong.
    """
    low, high = 1 / _HOTTEST, 1 / _COLDEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(1 / (low * high) ** 0.5)


def _normalised(logits: DoubleArray) -> DoubleArray:
    return np.asarray(logits - logits.max(axis=1, keepdims=True))
