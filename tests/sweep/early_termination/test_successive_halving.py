"""Successive halving against hand-computed cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from optuna.trial import TrialState

from trainer.sweep.early_termination.policies import SuccessiveHalvingPolicy

Ends = Callable[..., bool]
POLICY = {"type": "successive_halving", "min_resource": 2, "reduction_factor": 2}


@pytest.mark.parametrize(
    ("value", "others", "ended"),
    [
        (0.1, [], False),  # of one the best half, rounded up, is one
        (0.4, [0.5], True),
        (0.6, [0.5], False),
        (0.4, [0.5, 0.3], False),  # of three the best two
        (0.2, [0.5, 0.3], True),
        (0.4, [0.5, 0.6, 0.3], True),  # of four the best two
        (0.5, [0.5, 0.6, 0.3], False),  # as good as the second
        (0.0, [0.0, 0.0, 0.0], False),  # nothing tells them apart yet
    ],
)
def test_the_better_half_goes_on_from_a_rung(
    ends: Ends, value: float, others: list[float], ended: bool
) -> None:
    assert ends(POLICY, [0.0, value], [[0.0, other] for other in others]) is ended


def test_trials_are_compared_at_rungs_alone(ends: Ends) -> None:
    # rungs 2, 4, 8 …
    for evaluations, ended in ((1, False), (2, True), (3, False), (4, True), (5, False), (8, True)):
        assert ends(POLICY, [0.1] * evaluations, [[0.5] * 9]) is ended, evaluations
    thirds = POLICY | {"reduction_factor": 3}
    assert SuccessiveHalvingPolicy(min_resource=2, reduction_factor=3).is_due(6)
    assert not ends(thirds, [0.1] * 4, [[0.5] * 9])
    # of six the best two
    others = [[value] * 6 for value in (0.9, 0.8, 0.3, 0.2, 0.1)]
    assert ends(thirds, [0.7] * 6, others)
    assert not ends(thirds, [0.85] * 6, others)


def test_the_best_value_up_to_the_rung_counts(ends: Ends) -> None:
    assert not ends(POLICY, [0.6, 0.1], [[0.5, 0.5, 0.9]])
    assert ends(POLICY, [0.6, 0.1, 0.1, 0.1], [[0.5, 0.5, 0.9, 0.0]])


def test_only_who_has_come_to_the_rung_takes_part(ends: Ends) -> None:
    gone = ([0.9], TrialState.PRUNED)
    assert not ends(POLICY, [0.1, 0.1], [[0.9], gone])
    finished, failed = ([0.9, 0.9], TrialState.COMPLETE), ([0.9, 0.9], TrialState.FAIL)
    assert ends(POLICY, [0.1, 0.1], [finished])
    assert not ends(POLICY, [0.1, 0.1], [failed])


def test_where_less_is_better_and_values_that_are_no_numbers(ends: Ends) -> None:
    assert ends(POLICY, [0.6, 0.5], [[0.9, 0.4]], maximise=False)
    assert not ends(POLICY, [0.6, 0.3], [[0.9, 0.4]], maximise=False)
    assert ends(POLICY, [math.nan, math.nan], [[0.1, 0.1]])
    assert not ends(POLICY, [0.1, 0.1], [[math.nan, math.nan]])
