"""Calibration of scores: its error, and fits against other optimisers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize
from scipy.special import softmax
from sklearn import metrics as sk

from trainer.metrics import calibration
from trainer.metrics.results import Calibration


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_temperature_recovers_the_scale_of_the_logits(factor: float) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (20_000, 4))
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (honest.cumsum(axis=1) > rng.random((len(honest), 1))).argmax(axis=1)
    probs = honest**factor / (honest**factor).sum(axis=1, keepdims=True)
    found = calibration.of_classes(probs, targets)
    assert found is not None

    def loss(temperature: float) -> float:
        scaled = probs ** (1 / temperature)
        return sk.log_loss(targets, scaled / scaled.sum(axis=1, keepdims=True), labels=range(4))

    oracle = optimize.minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-7})
    assert found.temperature == pytest.approx(oracle.x, rel=1e-3)  # but for half an image
    assert found.temperature == pytest.approx(factor, rel=0.05)
    assert found.log_loss == pytest.approx(sk.log_loss(targets, probs))
    assert found.log_loss_scaled == pytest.approx(oracle.fun, abs=1e-6)
    assert found.error_scaled < 0.01
    assert (found.error > 0.05) == (factor != 1)


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    expected = (4 * abs(0.75 - 0.95) + 2 * abs(0.5 - 0.55)) / 6
    assert calibration.expected_error(confidence, right) == pytest.approx(expected)


def test_temperature_for_multilabel() -> None:
    rng = np.random.default_rng(5)
    honest = 1 / (1 + np.exp(-rng.normal(0, 2, (5000, 3))))
    targets = rng.random(honest.shape) < honest
    odds = (honest / (1 - honest)) ** 2
    found = calibration.of_labels(odds / (1 + odds), targets)
    assert found is not None
    assert found.temperature == pytest.approx(2, rel=0.05)
    assert found.error_scaled < 0.015 < found.error


def perfect(images: int) -> Calibration:
    probs = np.eye(3)[np.arange(images) % 3] * 0.97 + 0.01
    found = calibration.of_classes(probs, np.arange(images) % 3)
    assert found is not None
    return found


@pytest.mark.parametrize("images", [10, 30, 1000])
def test_a_network_without_errors_is_trusted_as_far_as_its_images_go(images: int) -> None:
    """Its confidence becomes 1 less half an image in n + 1, not 1."""
    found = perfect(images)
    confidence = np.exp(-found.log_loss_scaled)
    assert confidence == pytest.approx(1 - 0.5 / (images + 1), abs=1e-6)
    assert (found.temperature > 1) is (images == 10)  # the network itself is sure by 0.97


def test_few_images_without_errors_do_not_harm_new_ones() -> None:
    """The loss on new images after a fit to 20 and without one; a plain fit multiplies it by eight."""
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(60):
        logits = rng.normal(0, 8, (420, 5))
        honest = softmax(logits, axis=1)
        targets = (honest.cumsum(axis=1) > rng.random((420, 1))).argmax(axis=1)
        found = calibration.of_classes(honest[:20], targets[:20])
        assert found is not None
        scaled = softmax(logits[20:] / found.temperature, axis=1)
        own = np.arange(400), targets[20:]
        losses.append([-np.log(probs[own]).mean() for probs in (honest[20:], scaled)])
    unfitted, fitted = np.mean(losses, axis=0)
    assert unfitted < fitted < 1.35 * unfitted


def test_degenerate_data_have_a_calibration_or_none() -> None:
    assert calibration.of_classes(np.zeros((0, 3)), np.zeros(0, np.int64)) is None
    assert calibration.of_boxes(np.array([0.04]), np.array([True]), np.zeros(1, np.int64)) is None
    one_class = calibration.of_classes(np.ones((4, 1)), np.zeros(4, np.int64))
    assert one_class is not None
    assert one_class.temperature == 1
    zeros = calibration.of_labels(np.array([[0.0, 1.0]]), np.array([[False, True]]))
    assert zeros is not None
    assert math.isfinite(zeros.log_loss)
    assert (zeros.folds, math.isnan(zeros.error_cross_fitted)) == (0, True)
    alike = calibration.of_labels(np.full((8, 2), 0.5), np.eye(8, 2, dtype=np.bool_))
    assert alike is not None
    assert alike.temperature == 1
    for is_correct in (np.ones(5, np.bool_), np.zeros(5, np.bool_)):
        boxes = calibration.of_boxes(np.linspace(0.3, 0.9, 5), is_correct, np.arange(5))
        assert boxes is not None
        assert 0.05 <= boxes.temperature <= 20
        assert abs(boxes.bias) <= 10
    wrong = calibration.of_classes(np.eye(3)[[0, 1, 2]], np.array([1, 2, 0]))  # sure and never right
    assert wrong is not None
    assert wrong.temperature == pytest.approx(20)


def test_boxes_are_calibrated_by_the_logistic_regression_of_their_logits() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(6)
    logits = rng.normal(0, 1.5, 30_000)
    scores = 1 / (1 + np.exp(-logits))
    is_correct = rng.random(30_000) < 1 / (1 + np.exp(-(0.6 * logits - 1)))
    images = np.arange(30_000) // 3
    found = calibration.of_boxes(scores, is_correct, images)
    assert found is not None
    chosen = scores >= calibration.LOWEST_BOX_SCORE
    oracle = LogisticRegression(C=1e9).fit(logits[chosen, None], is_correct[chosen])
    assert 1 / found.temperature == pytest.approx(oracle.coef_[0, 0], abs=2e-3)
    assert found.bias == pytest.approx(oracle.intercept_[0], abs=2e-3)
    assert (found.scores, found.images) == (chosen.sum(), len(np.unique(images[chosen])))
    assert found.error > 0.15 > 0.02 > found.error_cross_fitted


def test_cross_fitting_is_honest() -> None:
    """On pure noise a fit looks better on its own images than it is; cross-fitting says so."""
    rng = np.random.default_rng(8)
    gains = []
    for _ in range(30):
        probs = rng.dirichlet(np.ones(4), 20)
        found = calibration.of_classes(probs, rng.integers(4, size=20))
        assert found is not None
        gains.append(found.log_loss_cross_fitted - found.log_loss_scaled)
    assert np.mean(gains) > 0
    assert perfect(30).folds == 5
    assert [curve.name for curve in perfect(30).reliability] == ["before", "after, cross-fitted"]
    assert sum(perfect(30).reliability[0].counts) == 30
