"""Attempts at trials: to Optuna each is a trial of its own, to users they are one trial.

An attempt that ended before its time says so, in `AGAIN`, before it is set to failed; whoever asks for a
trial next queues the further attempt. So none is lost with the process that gave it up, at whatever moment
that dies. Two processes may queue the same one: the first counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

CRASHES = 1
"""How often a trial that crashed is tried again."""

PLACE = "place"
"""The attribute that holds a trial's number, of all attempts at it."""
WORKER = "worker"
"""HOST:PID of the process that runs an attempt."""
AGAIN = "again"
"""Of an attempt that failed: whether there is to be another."""
NO_MEMORY = "no_memory"
"""Of an attempt that failed: memory ran out."""
PARTS = "batch_parts"
"""How many parts a batch is trained in, one after the other: twice as many after memory ran out."""
SURPLUS = "surplus"
"""Struck out: more processes asked at once than there were trials to begin."""
_CRASHES, _STOPS = "crashes", "stops"
_OF_ONE = (AGAIN, WORKER, NO_MEMORY)
"""Attributes of one attempt alone."""
_RETRIED, _HISTORY = "failed_trial", "retry_history"
"""Optuna's names for the trial that another one retries, by which samplers know it, and for all before."""


def place_of(trial: FrozenTrial | Trial) -> int:
    """The number of the trial that this is an attempt at, as users see it: attempts are not counted."""
    return int(trial.user_attrs.get(PLACE, trial.number))


def place_among(trials: Sequence[FrozenTrial], number: int) -> int:
    """The place of Optuna's trial `number`, a first attempt, among all: the same whoever asks, and when."""
    return sum(counts(other) for other in trials if other.number < number)


def counts(trial: FrozenTrial) -> bool:
    """Whether it is a trial of its own, and no further attempt at one."""
    return _RETRIED not in trial.system_attrs and not trial.user_attrs.get(SURPLUS)


def before(trial: FrozenTrial) -> int | None:
    """Optuna's number of the attempt after which this one was queued; None for a first one."""
    history = trial.system_attrs.get(_HISTORY)
    return history[-1] if history else None


def valid(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """All attempts, without those that are too many."""
    kept, followed = [], set()
    for trial in trials:
        if not trial.user_attrs.get(SURPLUS) and before(trial) not in followed:
            kept.append(trial)
        followed |= {before(trial)} - {None}
    return kept


def owed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Attempts after which another is still to be queued."""
    followed = set(map(before, trials))
    return [trial for trial in trials if is_to_be_repeated(trial) and trial.number not in followed]


def is_to_be_repeated(trial: FrozenTrial) -> bool:
    """Whether there is to be another attempt after this one, or is already."""
    return trial.state is TrialState.FAIL and bool(trial.user_attrs.get(AGAIN))


def another(known: Mapping[str, Any], *, crashed: bool) -> dict[str, Any]:
    """The attributes of an attempt that ended before its time.

    Args:
        known: its attributes so far.
        crashed: counts against `CRASHES`; a stop of the whole sweep does not.
    """
    count = _CRASHES if crashed else _STOPS
    times = known.get(count, 0) + 1
    return {count: times, AGAIN: not crashed or times <= CRASHES}


def further(trial: FrozenTrial) -> FrozenTrial:
    """The attempt after this one, to be added to the study: with the same parameters, waiting.

    After one that ran out of memory each batch is trained in two parts for each one before. Their gradients
    add up, so that the trial stays what was proposed.
    """
    attributes = {name: value for name, value in trial.user_attrs.items() if name not in _OF_ONE}
    if trial.user_attrs.get(NO_MEMORY):
        attributes[PARTS] = 2 * attributes.get(PARTS, 1)
    history = [*trial.system_attrs.get(_HISTORY, []), trial.number]
    return optuna.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=attributes,
        system_attrs={_RETRIED: trial.number, **trial.system_attrs, _HISTORY: history},
    )
