"""Attempts at a trial: each is a trial of its own to Optuna, together they are one trial to users.

A worker whose attempt fails records in `RETRY` whether the trial gets another attempt, before it sets the
attempt to failed. The next worker that asks for a trial queues the new attempt. No attempt is lost this way,
whenever a worker dies. If two workers queue the same attempt, the first one counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

MAX_CRASHES = 1
"""How many crashes of one trial are followed by another attempt."""

# User attributes of an attempt. The stored names are those of existing studies.
TRIAL_NUMBER = "place"
"""The trial's number as users see it, the same for all attempts at a trial."""
WORKER = "worker"
"""HOST:PID of the process that runs the attempt."""
RETRY = "again"
"""For a failed attempt: whether another one follows."""
OUT_OF_MEMORY = "no_memory"
"""For a failed attempt: whether memory ran out."""
MICRO_BATCHES = "batch_parts"
"""How many micro-batches each batch is split into; doubled each time that memory runs out."""
SURPLUS = "surplus"
"""Whether the attempt is struck out, because several workers asked for the last trial at once."""
_CRASHES, _STOPS = "crashes", "stops"
_OF_ONE_ATTEMPT = (RETRY, WORKER, OUT_OF_MEMORY)
"""Attributes that the next attempt does not inherit."""
_RETRIED, _HISTORY = "failed_trial", "retry_history"
"""Optuna's system attributes, which samplers know: the first attempt's number, and those of all before."""


def trial_number(attempt: FrozenTrial | Trial) -> int:
    """The number of the trial as users see it, which does not count attempts."""
    return int(attempt.user_attrs.get(TRIAL_NUMBER, attempt.number))


def count_trials_before(attempts: Sequence[FrozenTrial], number: int) -> int:
    """The trial number of the first attempt that Optuna numbers `number`; all processes get the same."""
    return sum(is_first_attempt(other) for other in attempts if other.number < number)


def first_attempt_number(attempt: FrozenTrial) -> int:
    """Optuna's number of the first attempt at the same trial."""
    return int(attempt.system_attrs.get(_RETRIED, attempt.number))


def is_first_attempt(attempt: FrozenTrial) -> bool:
    """Whether this is a trial's first attempt and not struck out."""
    return _RETRIED not in attempt.system_attrs and not is_surplus(attempt)


def is_surplus(attempt: FrozenTrial) -> bool:
    """Whether the attempt is struck out."""
    return bool(attempt.user_attrs.get(SURPLUS))


def previous_attempt(attempt: FrozenTrial) -> int | None:
    """Optuna's number of the attempt that this one follows; None for a first attempt."""
    history = attempt.system_attrs.get(_HISTORY)
    return history[-1] if history else None


def valid_attempts(attempts: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """All attempts, in order, without those that are struck out or were queued twice."""
    valid, followed = [], set()
    for attempt in attempts:
        previous = previous_attempt(attempt)
        if not is_surplus(attempt) and previous not in followed:
            valid.append(attempt)
        if previous is not None:
            followed.add(previous)
    return valid


def unqueued_retries(attempts: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The failed attempts whose next attempt has not been queued yet."""
    followed = set(map(previous_attempt, attempts))
    return [attempt for attempt in attempts if is_retried(attempt) and attempt.number not in followed]


def is_retried(attempt: FrozenTrial) -> bool:
    """Whether another attempt follows this one, queued or not."""
    return attempt.state is TrialState.FAIL and bool(attempt.user_attrs.get(RETRY))


def failure_attributes(attributes: Mapping[str, Any], *, crashed: bool) -> dict[str, Any]:
    """The attributes to record for an attempt that failed or was stopped, `RETRY` among them.

    Args:
        attributes: the attempt's user attributes so far.
        crashed: counts against `MAX_CRASHES`; stopping the whole sweep does not.
    """
    counter = _CRASHES if crashed else _STOPS
    count = attributes.get(counter, 0) + 1
    return {counter: count, RETRY: not crashed or count <= MAX_CRASHES}


def next_attempt(attempt: FrozenTrial) -> FrozenTrial:
    """A waiting attempt with the same parameters, to be added to the study.

    If memory ran out, each batch is split into twice as many micro-batches. Their gradients are accumulated,
    so the settings stay those that were proposed.
    """
    attributes = {name: value for name, value in attempt.user_attrs.items() if name not in _OF_ONE_ATTEMPT}
    if attempt.user_attrs.get(OUT_OF_MEMORY):
        attributes[MICRO_BATCHES] = 2 * attributes.get(MICRO_BATCHES, 1)
    history = [*attempt.system_attrs.get(_HISTORY, []), attempt.number]
    return optuna.create_trial(
        state=TrialState.WAITING,
        params=attempt.params,
        distributions=attempt.distributions,
        user_attrs=attributes,
        system_attrs={_RETRIED: attempt.number, **attempt.system_attrs, _HISTORY: history},
    )
