"""Curves of classifiers: ROC, precision-recall, cumulative gains, lift and calibration.

Of single classes they are scikit-learn's (`roc_curve`, `precision_recall_curve`, `calibration_curve`): one
point for each distinct score. `micro` is the curve of all decisions about all classes together; `macro` and
`weighted` average the classes' curves at fixed x, alike or by their number of positives. Classes for which a
curve is undefined, for want of positives (or, for ROC, of negatives), have none and take no part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, IntArray
from trainer.metrics.results import Curve

DoubleArray = npt.NDArray[np.float64]

BINS = 10
"""Of a calibration curve, of equal width."""
_GRID = np.linspace(0, 1, 201)
_FINEST = 1 / 500
_POINTS = 20_000


class Line(NamedTuple):
    """Points [n], x rising, with the score from which on each counts (NaN: none)."""

    x: DoubleArray
    y: DoubleArray
    scores: DoubleArray


def roc(target: BoolArray, score: DoubleArray) -> Line | None:
    """False positive rate → true positive rate, from (0, 0) to (1, 1); truth bool [n], score [n]."""
    positives, negatives = int(target.sum()), int((~target).sum())
    if not positives or not negatives:
        return None
    thresholds, hits, taken = _cumulated(target, score)
    return _from_origin((taken - hits) / negatives, hits / positives, thresholds, 0.0)


def precision_recall(target: BoolArray, score: DoubleArray) -> Line | None:
    """Recall → precision, from (0, 1) on."""
    if not target.any():
        return None
    thresholds, hits, taken = _cumulated(target, score)
    return _from_origin(hits / target.sum(), hits / taken, thresholds, 1.0)


def cumulative_gains(target: BoolArray, score: DoubleArray) -> Line | None:
    """Share of the images with the highest scores → share of the positives that is among them."""
    if not target.any():
        return None
    thresholds, hits, taken = _cumulated(target, score)
    return _from_origin(taken / len(target), hits / target.sum(), thresholds, 0.0)


def lift(target: BoolArray, score: DoubleArray) -> Line | None:
    """Share of the images with the highest scores → how many times more positives than by chance."""
    gains = cumulative_gains(target, score)
    if gains is None:
        return None
    x, y, scores = (values[1:] for values in gains)
    return Line(x, y / x, scores)


def calibration(target: BoolArray, score: DoubleArray, bins: int = BINS) -> tuple[Line, IntArray]:
    """Mean score → share of positives of the bins that hold any, and how many each holds."""
    index, counts = in_bins(score, bins)
    filled = counts > 0
    x = np.bincount(index, weights=score, minlength=bins)[filled] / counts[filled]
    y = np.bincount(index, weights=target, minlength=bins)[filled] / counts[filled]
    return Line(x, y, np.full(len(x), np.nan)), counts[filled]


def in_bins(score: DoubleArray, bins: int) -> tuple[IntArray, IntArray]:
    """The bin of each score, of equal width and closed above (the first also below); and the bins' sizes."""
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], score)
    return index, np.bincount(index, minlength=bins)


def all_curves(classes: Sequence[str], targets: BoolArray, probs: DoubleArray) -> dict[str, list[Curve]]:
    """Every kind of curve: those of the classes, then micro, macro and weighted.

    The more classes, the coarser: points less than a 500th apart are left out, and more of them with more
    than 40 classes.

    Args:
        truths: bool [n, C].
        probs: [n, C] in [0, 1].
    """
    if not len(targets):
        return {}
    step = max(_FINEST, len(classes) / _POINTS)
    found = {
        kind: _curves(classes, targets, probs, line, kind, step)
        for kind, line in (
            ("roc", roc),
            ("precision_recall", precision_recall),
            ("cumulative_gains", cumulative_gains),
            ("lift", lift),
        )
    }
    found["calibration"] = _calibrations(classes, targets, probs)
    return found


def thinned(line: Line, step: float) -> Line:
    """The line without the points that are nearer than `step` to the last one kept, but for its end."""
    if len(line.x) < 3:
        return line
    x, y = line.x.tolist(), line.y.tolist()
    kept = [0]
    for point in range(1, len(x) - 1):
        if max(abs(x[point] - x[kept[-1]]), abs(y[point] - y[kept[-1]])) >= step:
            kept.append(point)
    kept.append(len(x) - 1)
    return Line(*(values[kept] for values in line))


def as_curve(name: str, line: Line) -> Curve:
    """A line of a class as it is written down."""
    return Curve(name=name, x=line.x.tolist(), y=line.y.tolist(), scores=line.scores.tolist())


def _curves(
    classes: Sequence[str],
    targets: BoolArray,
    probs: DoubleArray,
    line: Callable[[BoolArray, DoubleArray], Line | None],
    kind: str,
    step: float,
) -> list[Curve]:
    lines = [line(targets[:, label], probs[:, label]) for label in range(len(classes))]
    curves = [
        as_curve(name, thinned(each, step))
        for name, each in zip(classes, lines, strict=True)
        if each is not None
    ]
    together = line(targets.ravel(), probs.ravel())
    if together is None:
        return curves
    thin = thinned(together, step)
    curves.append(Curve(name="micro", x=thin.x.tolist(), y=thin.y.tolist()))
    defined = [label for label, each in enumerate(lines) if each is not None]
    if not defined:
        return curves
    sampled = np.array([_sampled(each, kind) for each in lines if each is not None])
    grid = _GRID[1:] if kind == "lift" else _GRID
    weights = targets.sum(axis=0)[defined]
    curves.append(Curve(name="macro", x=grid.tolist(), y=sampled.mean(axis=0).tolist()))
    average = np.average(sampled, axis=0, weights=weights)
    curves.append(Curve(name="weighted", x=grid.tolist(), y=average.tolist()))
    return curves


def _sampled(line: Line, kind: str) -> DoubleArray:
    """The line at the grid's x."""
    x, y, _ = line
    if kind == "precision_recall":
        # the first point that reaches the recall: precision between two points is not on a straight line
        result: DoubleArray = y[np.searchsorted(x, _GRID, side="left").clip(max=len(x) - 1)]
        return result
    if kind == "lift":  # the straight lines are those of the gains
        gains = np.interp(_GRID[1:], np.r_[0, x], np.r_[0, y * x])
        return np.asarray(gains / _GRID[1:])
    last = np.r_[x[1:] != x[:-1], True]  # of a vertical step its upper end
    return np.interp(_GRID, x[last], y[last])


def _calibrations(classes: Sequence[str], targets: BoolArray, probs: DoubleArray) -> list[Curve]:
    curves = []
    sums = np.zeros((3, BINS))
    for label, name in enumerate(classes):
        curves.append(_calibration(name, targets[:, label], probs[:, label]))
        index, counts = in_bins(probs[:, label], BINS)
        filled = counts > 0
        for row, values in enumerate((probs[:, label], targets[:, label])):
            sums[row, filled] += np.bincount(index, weights=values, minlength=BINS)[filled] / counts[filled]
        sums[2] += filled
    curves.append(_calibration("micro", targets.ravel(), probs.ravel()))
    some = sums[2] > 0  # macro: each class that has something in a bin counts alike there
    x, y = sums[0, some] / sums[2, some], sums[1, some] / sums[2, some]
    curves.append(Curve(name="macro", x=x.tolist(), y=y.tolist()))
    return curves


def _calibration(name: str, target: BoolArray, score: DoubleArray) -> Curve:
    line, counts = calibration(target, score)
    return Curve(name=name, x=line.x.tolist(), y=line.y.tolist(), counts=counts.tolist())


def _cumulated(target: BoolArray, score: DoubleArray) -> tuple[DoubleArray, DoubleArray, DoubleArray]:
    """The distinct scores, falling; how many positives, and how many at all, have at least each."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    hits = np.cumsum(target[order], dtype=np.float64)[last]
    return ordered[last], hits, (last + 1).astype(np.float64)


def _from_origin(x: DoubleArray, y: DoubleArray, scores: DoubleArray, start: float) -> Line:
    return Line(np.r_[0.0, x], np.r_[start, y], np.r_[np.nan, scores])
