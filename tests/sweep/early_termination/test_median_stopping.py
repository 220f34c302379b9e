"""The median stopping policy against hand-computed cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from optuna.trial import TrialState

POLICY = {"type": "median_stopping"}
Ends = Callable[..., bool]

# Running averages over intervals 1 to 3: 0.4, 0.5 and 0.8
OTHERS = [[0.2, 0.4, 0.6], [0.5, 0.5, 0.5], [0.7, 0.8, 0.9]]


@pytest.mark.parametrize(
    ("values", "ended"),
    [
        # own average 0.2; median of 0.2, 0.4, 0.5, 0.8 is 0.45, the own best 0.3
        ([0.1, 0.2, 0.3], True),
        # own average 0.3; median of 0.3, 0.4, 0.5, 0.8 is 0.45, the own best 0.46
        ([0.2, 0.24, 0.46], False),
        # the best is not the last: average 0.26; the best 0.46
        ([0.46, 0.2, 0.12], False),
        # own average 0.44; median of 0.4, 0.44, 0.5, 0.8 is 0.47, the own best 0.46
        ([0.46, 0.42, 0.44], True),
        # as good as the median is not worse: own average 0.75; median of 0.4, 0.5, 0.75, 0.8 is 0.625
        ([0.625, 0.625, 0.625], False),
    ],
)
def test_hand_computed_cases(ends: Ends, values: list[float], ended: bool) -> None:
    assert ends(POLICY, values, OTHERS) is ended


def test_averages_are_those_up_to_the_same_interval(ends: Ends) -> None:
    # at interval 1 the averages are 0.2, 0.5, 0.7 and the own 0.4: the median is 0.45
    assert ends(POLICY, [0.4], OTHERS)
    # 0.2, 0.5, 0.7 and 0.55: 0.525
    assert not ends(POLICY, [0.55], OTHERS)
    # a trial that ended after two intervals counts by these: 0.2, 0.3 and the own average 0.1: 0.2
    early = [([0.1, 0.3], TrialState.COMPLETE), [0.3, 0.3, 0.3]]
    assert ends(POLICY, [0.1, 0.1, 0.1], early)
    assert not ends(POLICY, [0.05, 0.05, 0.2], early)


def test_where_less_is_better(ends: Ends) -> None:
    # averages 0.4, 0.5, 0.8 and the own 0.9: the median is 0.65
    assert ends(POLICY, [1.1, 0.9, 0.7], OTHERS, maximise=False)
    assert not ends(POLICY, [1.2, 0.9, 0.6], OTHERS, maximise=False)


def test_a_trial_alone_is_never_ended(ends: Ends) -> None:
    assert not ends(POLICY, [0.1, 0.0, -1.0])
    assert not ends(POLICY, [0.1], [[]])


def test_finished_and_pruned_trials_count_and_failed_ones_do_not(ends: Ends) -> None:
    for state, ended in ((TrialState.COMPLETE, True), (TrialState.PRUNED, True), (TrialState.FAIL, False)):
        assert ends(POLICY, [0.1], [([0.8], state)]) is ended


def test_values_that_are_no_numbers_and_missing_ones(ends: Ends) -> None:
    assert not ends(POLICY, [], OTHERS)
    assert not ends(POLICY, [math.nan], [])
    assert not ends(POLICY, [math.nan], [[math.nan], []])
    assert ends(POLICY, [math.nan], [[0.5]])
    # only numbers are averaged: 0.6 and the own 0.4 or 0.65, so that the median is 0.5 or 0.625
    assert ends(POLICY, [0.4, 0.4], [[math.nan, 0.6]])
    assert not ends(POLICY, [0.65, math.nan], [[math.nan, 0.6]])
