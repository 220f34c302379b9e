"""Curves of classifiers: ROC, precision-recall, cumulative gains, lift and calibration.

The curves of single classes equal scikit-learn's (`roc_curve`, `precision_recall_curve`,
`calibration_curve`), with one point for each distinct score. They are computed here, since gains and lift
need the counts behind them, and the report the sizes of the bins, neither of which scikit-learn returns.

`micro` is the curve of all classes' decisions together. `macro` and `weighted` average the classes' curves at
fixed x, equally or by their number of positives. Classes without positives (for ROC, also without negatives)
have no curve and are left out.
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
"""Number of bins of equal width of a calibration curve."""
_GRID = np.linspace(0, 1, 201)
_MIN_STEP = 1 / 500
_MAX_POINTS = 20_000


class Line(NamedTuple):
    """Points [n] with ascending x, and the score threshold that leads to each (NaN: none)."""

    x: DoubleArray
    y: DoubleArray
    scores: DoubleArray


def roc(target: BoolArray, score: DoubleArray) -> Line | None:
    """False positive rate → true positive rate, from (0, 0) to (1, 1); target bool [n], score [n]."""
    positives, negatives = int(target.sum()), int((~target).sum())
    if not positives or not negatives:
        return None
    thresholds, hits, taken = _cumulative_counts(target, score)
    return _from_origin((taken - hits) / negatives, hits / positives, thresholds, 0.0)


def precision_recall(target: BoolArray, score: DoubleArray) -> Line | None:
    """Recall → precision, starting at (0, 1)."""
    if not target.any():
        return None
    thresholds, hits, taken = _cumulative_counts(target, score)
    return _from_origin(hits / target.sum(), hits / taken, thresholds, 1.0)


def cumulative_gains(target: BoolArray, score: DoubleArray) -> Line | None:
    """Fraction of images with the highest scores → fraction of the positives among them."""
    if not target.any():
        return None
    thresholds, hits, taken = _cumulative_counts(target, score)
    return _from_origin(taken / len(target), hits / target.sum(), thresholds, 0.0)


def lift(target: BoolArray, score: DoubleArray) -> Line | None:
    """Fraction of images with the highest scores → how many times more positives than by chance."""
    gains = cumulative_gains(target, score)
    if gains is None:
        return None
    x, y, scores = (values[1:] for values in gains)
    return Line(x, y / x, scores)


def calibration(target: BoolArray, score: DoubleArray, bins: int = BINS) -> tuple[Line, IntArray]:
    """Mean score → fraction of positives in each non-empty bin, and the bins' sizes."""
    bin_index, counts = in_bins(score, bins)
    filled = counts > 0
    x = np.bincount(bin_index, weights=score, minlength=bins)[filled] / counts[filled]
    y = np.bincount(bin_index, weights=target, minlength=bins)[filled] / counts[filled]
    return Line(x, y, np.full(len(x), np.nan)), counts[filled]


def in_bins(score: DoubleArray, bins: int) -> tuple[IntArray, IntArray]:
    """The bin of each score and the bins' sizes; bins have equal width and include their upper bound."""
    bin_index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], score)
    return bin_index, np.bincount(bin_index, minlength=bins)


def all_curves(classes: Sequence[str], targets: BoolArray, probs: DoubleArray) -> dict[str, list[Curve]]:
    """Compute every kind of curve: those of the classes, then micro, macro and weighted.

    Points less than 1/500 apart are left out; with more than 40 classes, curves become coarser.

    Args:
        targets: bool [n, C].
        probs: [n, C] in [0, 1].
    """
    if not len(targets):
        return {}
    step = max(_MIN_STEP, len(classes) / _MAX_POINTS)
    curves = {
        kind: _curves(classes, targets, probs, line, kind, step)
        for kind, line in (
            ("roc", roc),
            ("precision_recall", precision_recall),
            ("cumulative_gains", cumulative_gains),
            ("lift", lift),
        )
    }
    curves["calibration"] = _calibrations(classes, targets, probs)
    return curves


def thinned(line: Line, step: float) -> Line:
    """Remove the points closer than `step` to the last one kept, except the end."""
    if len(line.x) < 3:
        return line
    x, y = line.x.tolist(), line.y.tolist()
    kept_points = [0]
    for point in range(1, len(x) - 1):
        if max(abs(x[point] - x[kept_points[-1]]), abs(y[point] - y[kept_points[-1]])) >= step:
            kept_points.append(point)
    kept_points.append(len(x) - 1)
    return Line(*(values[kept_points] for values in line))


def as_curve(name: str, line: Line) -> Curve:
    """Convert a class's line into a Curve."""
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
        as_curve(name, thinned(class_line, step))
        for name, class_line in zip(classes, lines, strict=True)
        if class_line is not None
    ]
    micro_line = line(targets.ravel(), probs.ravel())
    if micro_line is None:
        return curves
    thinned_line = thinned(micro_line, step)
    curves.append(Curve(name="micro", x=thinned_line.x.tolist(), y=thinned_line.y.tolist()))
    defined = [label for label, class_line in enumerate(lines) if class_line is not None]
    if not defined:
        return curves
    sampled = np.array([_sampled(class_line, kind) for class_line in lines if class_line is not None])
    grid = _GRID[1:] if kind == "lift" else _GRID
    weights = targets.sum(axis=0)[defined]
    averages = {"macro": sampled.mean(axis=0), "weighted": np.average(sampled, axis=0, weights=weights)}
    return curves + [Curve(name=name, x=grid.tolist(), y=y.tolist()) for name, y in averages.items()]


def _sampled(line: Line, kind: str) -> DoubleArray:
    """Sample a line at the grid's x."""
    x, y, _ = line
    if kind == "precision_recall":
        # The first point that reaches the recall; precision does not run straight between points.
        result: DoubleArray = y[np.searchsorted(x, _GRID, side="left").clip(max=len(x) - 1)]
        return result
    if kind == "lift":  # gains, not lift, run straight between points
        gains = np.interp(_GRID[1:], np.r_[0, x], np.r_[0, y * x])
        return np.asarray(gains / _GRID[1:])
    last = np.r_[x[1:] != x[:-1], True]  # the upper end of a vertical step
    return np.interp(_GRID, x[last], y[last])


def _calibrations(classes: Sequence[str], targets: BoolArray, probs: DoubleArray) -> list[Curve]:
    curves = []
    sums = np.zeros((3, BINS))  # of x, of y, and the number of classes with scores in the bin
    for label, name in enumerate(classes):
        curves.append(_calibration(name, targets[:, label], probs[:, label]))
        filled = in_bins(probs[:, label], BINS)[1] > 0
        sums[:, filled] += np.array([curves[-1].x, curves[-1].y, np.ones(filled.sum())])
    curves.append(_calibration("micro", targets.ravel(), probs.ravel()))
    some = sums[2] > 0  # macro: in each bin, all classes with scores in it count equally
    x, y = sums[0, some] / sums[2, some], sums[1, some] / sums[2, some]
    curves.append(Curve(name="macro", x=x.tolist(), y=y.tolist()))
    return curves


def _calibration(name: str, target: BoolArray, score: DoubleArray) -> Curve:
    line, counts = calibration(target, score)
    return Curve(name=name, x=line.x.tolist(), y=line.y.tolist(), counts=counts.tolist())


def _cumulative_counts(target: BoolArray, score: DoubleArray) -> tuple[DoubleArray, DoubleArray, DoubleArray]:
    """Distinct scores in descending order, and how many positives and images reach each of them."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    hits = np.cumsum(target[order], dtype=np.float64)[last]
    return ordered[last], hits, (last + 1).astype(np.float64)


def _from_origin(x: DoubleArray, y: DoubleArray, scores: DoubleArray, start: float) -> Line:
    return Line(np.r_[0.0, x], np.r_[start, y], np.r_[np.nan, scores])
