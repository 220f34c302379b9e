"""Calibrated scores: order, thresholds, composition and the graph's version."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.models.score_calibration import ScoreCalibration

CASES = [ScoreCalibration(temperature=t, bias=b) for t, b in ((1.0, 0.0), (0.4, 1.2), (3.0, -2.0))]
SCORES = np.r_[0.0, 1e-6, np.linspace(0.001, 0.999, 200), 1.0].astype(np.float32)


@pytest.mark.parametrize("calibration", CASES)
def test_scores_keep_their_order(calibration: ScoreCalibration) -> None:
    calibrated = calibration.apply(SCORES)
    assert np.all(np.diff(calibrated) > 0)
    assert np.all((calibrated >= 0) & (calibrated <= 1))


def test_temperature_divides_and_bias_shifts_the_logit() -> None:
    score = 1 / (1 + np.exp(-2.0))
    expected = 1 / (1 + np.exp(-(2.0 / 4 + 0.5)))
    assert ScoreCalibration(temperature=4, bias=0.5).apply(np.array([score])) == pytest.approx(expected)


@pytest.mark.parametrize("calibration", CASES)
def test_threshold_of_the_network_lets_through_what_reaches_the_calibrated_one(
    calibration: ScoreCalibration,
) -> None:
    for threshold in (0.0, 0.05, 0.3, 0.9, 1.0):
        before = calibration.threshold_before(threshold)
        reaching = calibration.apply(SCORES) >= threshold
        assert np.all(SCORES[reaching] >= before)
        if 0 < threshold < 1:
            assert threshold - 0.08 < calibration.threshold_after(before) < threshold


def test_then_applies_one_after_the_other() -> None:
    one, other = CASES[1:]
    assert one.then(other).apply(SCORES[5:-5]) == pytest.approx(other.apply(one.apply(SCORES[5:-5])))


@pytest.mark.parametrize("calibration", CASES)
def test_tensors_are_calibrated_alike(calibration: ScoreCalibration) -> None:
    actual = calibration.apply_to_tensor(torch.from_numpy(SCORES)).numpy()
    assert actual == pytest.approx(calibration.apply(SCORES), abs=2e-6)
