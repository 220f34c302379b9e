"""Curves and calibration of classifiers against scikit-learn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from trainer.metrics import curves

Array = npt.NDArray[np.float64]
SCENARIOS = ("random", "ties", "constant", "perfect", "one positive", "zeros and ones")


def decisions(scenario: str, seed: int) -> tuple[npt.NDArray[np.bool_], Array]:
    rng = np.random.default_rng(seed)
    target = rng.random(200) < 0.3
    score = (rng.random(200) + target).clip(0, 1.5) / 1.5
    if scenario == "ties":
        score = np.round(score * 4) / 4
    if scenario == "constant":
        score[:] = 0.3
    if scenario == "perfect":
        score = target * 0.5 + 0.2
    if scenario == "one positive":
        target = np.arange(200) == 17
    if scenario == "zeros and ones":
        score = (score > 0.5).astype(np.float64)
    return target, score


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("seed", range(2))
def test_curves_equal_scikit_learns(scenario: str, seed: int) -> None:
    target, score = decisions(scenario, seed)
    line = curves.roc(target, score)
    assert line is not None
    x, y, thresholds = sk.roc_curve(target, score, drop_intermediate=False)
    np.testing.assert_allclose(line.x, x, atol=1e-9)
    np.testing.assert_allclose(line.y, y, atol=1e-9)
    np.testing.assert_allclose(line.scores[1:], thresholds[1:], atol=1e-9)

    line = curves.precision_recall(target, score)
    assert line is not None
    precision, recall, thresholds = sk.precision_recall_curve(target, score)
    np.testing.assert_allclose(line.x, recall[::-1], atol=1e-9)
    np.testing.assert_allclose(line.y, precision[::-1], atol=1e-9)
    np.testing.assert_allclose(line.scores[1:], thresholds[::-1], atol=1e-9)

    line, counts = curves.calibration(target, score)
    share, mean = calibration_curve(target, score, n_bins=curves.BINS)
    np.testing.assert_allclose(line.x, mean, atol=1e-9)
    np.testing.assert_allclose(line.y, share, atol=1e-9)
    assert counts.sum() == len(target)


@pytest.mark.parametrize("seed", range(3))
def test_gains_and_lift_by_counting(seed: int) -> None:
    target, score = decisions("random", seed)
    gains, lift = curves.cumulative_gains(target, score), curves.lift(target, score)
    assert gains is not None
    assert lift is not None
    assert (gains.x[0], gains.y[0], gains.x[-1], gains.y[-1], lift.y[-1]) == (0, 0, 1, 1, 1)
    best = np.argsort(-score)[:50]
    at = int(np.flatnonzero(np.isclose(lift.x, 50 / 200))[0])
    assert gains.y[at + 1] == pytest.approx(target[best].sum() / target.sum())
    assert lift.y[at] == pytest.approx(target[best].mean() / target.mean())


def test_undefined_curves_are_left_out_of_averages() -> None:
    rng = np.random.default_rng(0)
    targets = np.equal.outer(rng.integers(0, 2, 60), np.arange(3))  # of the third class there are no images
    probs = rng.dirichlet(np.ones(3), 60)
    found = curves.all_curves(["a", "b", "never"], targets, probs)
    for kind in ("roc", "precision_recall", "cumulative_gains", "lift"):
        assert [curve.name for curve in found[kind]] == ["a", "b", "micro", "macro", "weighted"]
        assert all(np.isfinite([*curve.x, *curve.y]).all() for curve in found[kind])
        assert all(np.all(np.diff(curve.x) >= 0) for curve in found[kind])
    assert [curve.name for curve in found["calibration"]] == ["a", "b", "never", "micro", "macro"]
    assert curves.all_curves(["a", "b"], targets[:0, :2], probs[:0, :2]) == {}
    everything = curves.all_curves(["a"], np.ones((5, 1), bool), np.ones((5, 1)))
    assert everything["roc"] == []


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_averaged_roc_curves_have_the_average_area(average: str) -> None:
    rng = np.random.default_rng(4)
    target = rng.integers(0, 4, 3000)
    probs = rng.dirichlet(np.ones(4), 3000) + np.eye(4)[target] * 0.4
    probs /= probs.sum(axis=1, keepdims=True)
    targets = np.equal.outer(target, np.arange(4))
    curve = next(c for c in curves.all_curves(list("abcd"), targets, probs)["roc"] if c.name == average)
    expected = sk.roc_auc_score(targets, probs, average=average)
    assert sk.auc(curve.x, curve.y) == pytest.approx(expected, abs=2e-3)


def test_thinned_curves_keep_their_ends_and_shape() -> None:
    rng = np.random.default_rng(1)
    target = rng.random(50_000) < 0.5
    line = curves.roc(target, rng.random(50_000) + target)
    assert line is not None
    thin = curves.thinned(line, 1 / 500)
    assert len(thin.x) < 1500
    assert (thin.x[0], thin.x[-1], thin.y[-1]) == (0, 1, 1)
    assert np.trapezoid(thin.y, thin.x) == pytest.approx(np.trapezoid(line.y, line.x), abs=1e-3)


def test_many_classes_make_no_large_file() -> None:
    rng = np.random.default_rng(2)
    targets = np.equal.outer(rng.integers(0, 400, 4000), np.arange(400))
    found = curves.all_curves([str(n) for n in range(400)], targets, rng.dirichlet(np.ones(400), 4000))
    assert sum(len(curve.x) for kind in found.values() for curve in kind) < 150_000
