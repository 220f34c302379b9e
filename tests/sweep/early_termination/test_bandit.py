"""The bandit policy against hand-computed cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from optuna.trial import TrialState

FACTOR = {"type": "bandit", "slack_factor": 0.2}
AMOUNT = {"type": "bandit", "slack_amount": 0.2}
Ends = Callable[..., bool]


@pytest.mark.parametrize(
    ("policy", "value", "ended"),
    [
        # Microsoft's own example: the best has 0.8, so 0.8 / 1.2 = 0.6667 and 0.8 − 0.2 = 0.6 are the limits
        (FACTOR, 0.66, True),
        (FACTOR, 0.67, False),
        (AMOUNT, 0.59, True),
        (AMOUNT, 0.61, False),
    ],
)
def test_the_documented_example(ends: Ends, policy: dict[str, object], value: float, ended: bool) -> None:
    at_interval_10 = policy | {"evaluation_interval": 10}
    assert ends(at_interval_10, [0.0] * 9 + [value], [[0.0] * 9 + [0.8]]) is ended
    assert not ends(at_interval_10, [0.0] * 8 + [value], [[0.0] * 9 + [0.8]])


@pytest.mark.parametrize(
    ("policy", "value", "ended"),
    # less is better, the best has 0.5: the limits are 0.5 · 1.2 = 0.6 and 0.5 + 0.2 = 0.7
    [(FACTOR, 0.61, True), (FACTOR, 0.59, False), (AMOUNT, 0.71, True), (AMOUNT, 0.69, False)],
)
def test_where_less_is_better(ends: Ends, policy: dict[str, object], value: float, ended: bool) -> None:
    assert ends(policy, [value], [[0.5]], maximise=False) is ended


def test_it_is_the_best_metric_so_far_that_counts(ends: Ends) -> None:
    assert not ends(FACTOR, [0.7, 0.1], [[0.1, 0.8]])
    assert ends(FACTOR, [0.1, 0.6], [[0.8, 0.1]])


def test_others_are_looked_at_only_up_to_the_same_interval(ends: Ends) -> None:
    assert not ends(FACTOR, [0.3], [[0.35, 0.9, 0.95]])
    assert ends(FACTOR, [0.3, 0.3], [[0.35, 0.9, 0.95]])
    assert ends(FACTOR, [0.3, 0.3, 0.3], [[0.9]])  # one that has come less far


def test_finished_and_pruned_trials_count_and_failed_ones_do_not(ends: Ends) -> None:
    for state, ended in ((TrialState.COMPLETE, True), (TrialState.PRUNED, True), (TrialState.FAIL, False)):
        assert ends(FACTOR, [0.1], [([0.8], state)]) is ended


def test_the_best_trial_itself_goes_on_also_with_a_metric_under_0(ends: Ends) -> None:
    assert not ends(FACTOR, [0.8], [[0.1], [0.2]])
    assert not ends(FACTOR, [-1.0], [[-1.0], [-1.0]])  # an undefined mean average precision
    # −1 − 1 · 0.2 / 1.2 = −1.1667
    assert ends(FACTOR, [-1.17], [[-1.0]])
    assert not ends(FACTOR, [-1.16], [[-1.0]])
    assert not ends(FACTOR, [0.0], [[0.0]])
    assert ends(FACTOR, [0.0], [[0.01]])


def test_values_that_are_no_numbers_and_missing_ones(ends: Ends) -> None:
    assert not ends(FACTOR, [], [[0.8]])
    assert not ends(FACTOR, [math.nan], [])
    assert not ends(FACTOR, [math.nan], [[math.nan], []])
    assert ends(FACTOR, [math.nan], [[0.8]])
    assert ends(AMOUNT, [math.nan], [[0.8]])
    assert not ends(FACTOR, [0.75, math.nan], [[0.8, 0.8]])
    assert not ends(FACTOR, [0.5], [[math.nan], [], [0.55]])
    assert not ends(FACTOR, [math.nan], [[math.nan]], maximise=False)
