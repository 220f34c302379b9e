"""The trials of a sweep as users see them: all attempts at a trial are one record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from trainer.sweep import attempts

State = Literal["waiting", "running", "complete", "pruned", "failed"]

_STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class Record:
    """A trial with all of its attempts.

    Attributes:
        number: counts trials, not attempts; also the name of its directory.
        parameters: the settings that were proposed.
        values: of the objectives; empty while there are none.
        latest: the last reported value of the primary metric, None before the first.
        attempts: how many there were.
        attributes: the last attempt's user attributes.
        duration: of the last attempt.
    """

    number: int
    state: State
    parameters: dict[str, Any]
    values: tuple[float, ...]
    latest: float | None
    attempts: int
    attributes: dict[str, Any]
    duration: timedelta | None


def record_of(number: int, of_trial: Sequence[FrozenTrial]) -> Record:
    """Combine the attempts at a trial, the last of which decides."""
    last = of_trial[-1]
    values = tuple(last.values or ())
    if last.state is TrialState.PRUNED and "pruned_value" in last.user_attrs:
        values = (last.user_attrs["pruned_value"],)
    reported = last.intermediate_values
    return Record(
        number=number,
        state="waiting" if attempts.is_retried(last) else _STATES[last.state],
        parameters=dict(last.user_attrs.get("parameters", {})),
        values=values,
        latest=reported[max(reported)] if reported else None,
        attempts=len(of_trial),
        attributes=dict(last.user_attrs),
        duration=last.duration,
    )


def best_of(records: Sequence[Record], max_latency: float | None = None) -> Record | None:
    """The trial with the highest primary metric; a pruned one only if no trial is complete.

    Args:
        max_latency: the highest second objective that counts, in milliseconds.
    """
    for state in ("complete", "pruned"):
        ended = [
            record
            for record in records
            if record.state == state
            and record.values
            and not math.isnan(record.values[0])
            and (max_latency is None or (len(record.values) > 1 and record.values[1] <= max_latency))
        ]
        if ended:
            return max(ended, key=lambda record: record.values[0])  # among equals the first
    return None


def pareto_front(records: Sequence[Record]) -> set[int]:
    """The numbers of the trials that no other beats in one objective without losing in the other.

    The first objective is maximised, the second minimised.
    """
    ended = [record for record in records if record.state == "complete" and len(record.values) == 2]
    return {
        record.number
        for record in ended
        if not any(
            other.values[0] >= record.values[0]
            and other.values[1] <= record.values[1]
            and other.values != record.values
            for other in ended
        )
    }
