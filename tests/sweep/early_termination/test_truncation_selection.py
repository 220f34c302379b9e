"""The truncation selection policy against hand-computed cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from optuna.trial import TrialState

Ends = Callable[..., bool]


def policy(percentage: int = 20, **more: Any) -> dict[str, Any]:
    return {"type": "truncation_selection", "truncation_percentage": percentage, **more}


@pytest.mark.parametrize(
    ("percentage", "others", "ended"),
    [
        # the value is 0.25
        (20, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], False),  # 3rd worst of 10, the worst 2 end
        (30, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], True),  # the worst 3 end
        (29, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], False),  # 2.9 of 10 are 2
        (20, [0.3, 0.4, 0.5], False),  # 0.8 of 4 are none
        (25, [0.3, 0.4, 0.5], True),
        (50, [0.3], True),
        (50, [0.2], False),
        (99, [], False),
        (99, [0.1], False),  # 1.98 of 2 are 1, and that is the other
    ],
)
def test_the_worst_part_is_ended(ends: Ends, percentage: int, others: list[float], ended: bool) -> None:
    assert ends(policy(percentage), [0.25], [[value] for value in others]) is ended


def test_where_less_is_better(ends: Ends) -> None:
    assert ends(policy(50), [0.3], [[0.2]], maximise=False)
    assert not ends(policy(50), [0.1], [[0.2]], maximise=False)


def test_trials_are_compared_by_what_they_had_at_the_interval(ends: Ends) -> None:
    assert not ends(policy(50), [0.3], [[0.2, 0.9]])  # a better one, later
    assert ends(policy(50), [0.3, 0.3], [[0.2, 0.9]])
    assert not ends(policy(50), [0.3, 0.1], [[0.2, 0.2]])  # the best so far counts
    assert ends(policy(50), [0.1, 0.2], [[0.3, 0.1]])


def test_of_equal_trials_the_later_is_the_worse(ends: Ends) -> None:
    assert ends(policy(50), [0.0], [[0.0]])
    # not all end when all are equal: of 5 only the last does, and this one would have to be it
    assert ends(policy(20), [0.0], [[0.0]] * 4)
    assert not ends(policy(20), [0.0], [[0.0]] * 3)
    assert not ends(policy(20), [0.1], [[0.0], [0.2], [0.2], [0.2]])


def test_running_trials_take_part_once_they_have_come_as_far(ends: Ends) -> None:
    assert not ends(policy(50), [0.1, 0.1], [[0.9]])
    assert ends(policy(50), [0.1, 0.1], [[0.9, 0.9]])
    # one that finished before takes part with what it had
    assert ends(policy(50), [0.1, 0.1], [([0.9], TrialState.COMPLETE)])


@pytest.mark.parametrize(
    ("exclude", "ended"), [(False, True), (True, False), ("false", True), ("True", False)]
)
def test_finished_jobs_are_left_out_on_request(ends: Ends, exclude: Any, ended: bool) -> None:
    # with the finished ones it is the worst of 4, of which 1 ends; without, of 2, of which none does
    others = [([0.5], TrialState.COMPLETE), ([0.6], TrialState.PRUNED), [0.7]]
    assert ends(policy(25, exclude_finished_jobs=exclude), [0.4], others) is ended


def test_failed_trials_do_not_count(ends: Ends) -> None:
    assert not ends(policy(50), [0.4], [([0.5], TrialState.FAIL)])


def test_values_that_are_no_numbers_and_missing_ones(ends: Ends) -> None:
    assert not ends(policy(50), [], [[0.5]])
    assert not ends(policy(50), [0.4], [[math.nan]])
    assert ends(policy(50), [math.nan], [[0.4]])
    assert ends(policy(50), [math.nan], [[math.nan]])  # as of all equal trials, the later
    assert not ends(policy(50), [math.nan], [[]])
    assert not ends(policy(50), [0.4, math.nan], [[0.3, 0.3]])
