"""The study of a sweep: its trials in a storage that several processes share, and what becomes of each."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import MaxTrialsCallback  # noqa: F401  makes optuna.study load at once
from optuna.trial import FrozenTrial, Trial, TrialState

from trainer.sweep.execution import attempts
from trainer.sweep.execution.attempts import AGAIN, NO_MEMORY, PLACE, SURPLUS, WORKER, place_of
from trainer.sweep.execution.storage import GRACE_SECONDS, SharedStorage, quiet

log = logging.getLogger("trainer")

State = Literal["waiting", "running", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How one attempt at a trial ended.

    Attributes:
        state: "stopped" if the sweep was: the trial goes on when the sweep does.
        values: of the objectives, in their order; of a pruned trial the best primary metric alone.
        reason: why it failed.
        may_succeed: whether another attempt can help.
        no_memory: memory ran out; another attempt trains its batches in parts.
        attributes: what else is worth keeping: best epoch, seconds, directory.
    """

    state: Literal["complete", "pruned", "failed", "stopped"]
    values: tuple[float, ...] = ()
    reason: str = ""
    may_succeed: bool = False
    no_memory: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """A trial as the table shows it, all its attempts taken together.

    Attributes:
        number: counts the trials, not the attempts; its directory's name.
        parameters: what was proposed for it.
        values: of the objectives; empty while there are none.
        latest: the last reported value of the primary metric, None before the first.
    """

    number: int
    state: State
    parameters: dict[str, Any]
    values: tuple[float, ...]
    latest: float | None
    attempts: int
    attributes: dict[str, Any]
    duration: timedelta | None


class SweepStudy:
    """Takes trials from a study and tells it how they ended. Safe to use from many processes at once."""

    def __init__(self, study: optuna.Study, max_trials: int) -> None:
        self.study = study
        self.max_trials = max_trials
        self._nameless: dict[int, float] = {}

    def next(self) -> Trial | None:
        """A trial to run, set to running for this process; None while there is none to begin."""
        while True:
            trials = self._attempts()
            for trial in attempts.owed(trials):
                self.study.add_trial(attempts.further(trial))
            if not self.has_more:
                return None
            with quiet():
                taken = self.study.ask()
            self._storage.record_heartbeat(taken._trial_id)
            taken.set_user_attr("host", socket.gethostname())
            taken.set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
            if self._is_first(taken):
                return taken
            self.drop(taken)

    @property
    def has_more(self) -> bool:
        """Whether there is a trial to begin, or to take up again."""
        trials = self._attempts()
        if attempts.owed(trials) or any(trial.state is TrialState.WAITING for trial in trials):
            return True
        is_exhausted = getattr(self.study.sampler, "is_exhausted", None)  # of a grid
        if is_exhausted is not None and is_exhausted(self.study):
            return False
        return sum(map(attempts.counts, trials)) < self.max_trials

    def _is_first(self, trial: Trial) -> bool:
        """Of several processes that asked at once for the same, the first alone has it."""
        known = [other for other in self.study.get_trials(deepcopy=False) if other.number < trial.number]
        before = attempts.before(self._frozen(trial))
        if before is not None:
            return not any(attempts.before(other) == before for other in known)
        place = attempts.place_among(known, trial.number)
        trial.set_user_attr(PLACE, place)
        return place < self.max_trials

    def drop(self, trial: Trial) -> None:
        """Strike out a trial that is one too many."""
        with suppress(UpdateFinishedTrialError):
            trial.set_user_attr(SURPLUS, True)
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def is_over(self, *, late: bool = False) -> bool:
        """Whether no trial runs or waits.

        Args:
            late: the time is up, and what waits will not begin.
        """
        trials = self._attempts()
        if any(trial.state is TrialState.RUNNING for trial in trials):
            return False
        waits = any(trial.state is TrialState.WAITING for trial in trials)
        return late or not (waits or attempts.owed(trials))

    def tell(self, trial: Trial, outcome: Outcome) -> Outcome:
        """Record how an attempt ended.

        Returns:
            What was recorded; `may_succeed` says whether there is another attempt.
        """
        if outcome.state == "complete" and any(map(math.isnan, outcome.values)):
            outcome = replace(outcome, state="failed", reason="its metric is undefined", may_succeed=False)
        attributes = {**outcome.attributes, **({"reason": outcome.reason} if outcome.reason else {})}
        if outcome.state == "pruned":
            attributes["pruned_value"] = outcome.values[0]
        if outcome.no_memory:
            attributes[NO_MEMORY] = True
        if outcome.state == "stopped" or outcome.may_succeed:
            attributes |= attempts.another(trial.user_attrs, crashed=outcome.state == "failed")
        state = _ENDS[outcome.state]
        with suppress(UpdateFinishedTrialError):
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            values = outcome.values if outcome.state == "complete" else None
            self.study.tell(trial, values, state, skip_if_finished=True)
        recorded = self._frozen(trial)
        again = bool(recorded.user_attrs.get(AGAIN))
        if recorded.state is not state:
            return Outcome("failed", reason="others did not hear of it and took it over", may_succeed=again)
        return replace(outcome, may_succeed=again)

    def stop_running(self, reason: str) -> None:
        """Trials whose processes died with an earlier process of this machine wait for another attempt."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            host, _, process = trial.user_attrs.get(WORKER, "").rpartition(":")
            if host == socket.gethostname() and not _is_another_alive(int(process)):
                self._give_up(trial, reason, crashed=False)

    def beat(self, own: Sequence[Trial]) -> set[int]:
        """Say that this process's trials live, and give up those whose workers have fallen silent.

        Returns:
            The ids of those that are not its own any more: it was silent for too long itself.
        """
        for trial in own:
            self._storage.record_heartbeat(trial._trial_id)
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        # When the database was away, the others must have the time to be heard again.
        if self._storage.is_steady(GRACE_SECONDS):
            for silent in self._silent(running):
                host = silent.user_attrs.get("host", "its machine")
                self._give_up(silent, f"its worker on {host} stopped answering", crashed=True)
        return {trial._trial_id for trial in own} - {trial._trial_id for trial in running}

    def _silent(self, running: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        stale = self._storage._get_stale_trial_ids(self.study._study_id)
        now = time.monotonic()
        # A process that dies as it takes a trial leaves it without a heartbeat that could end.
        self._nameless = {
            trial._trial_id: self._nameless.get(trial._trial_id, now)
            for trial in running
            if WORKER not in trial.user_attrs
        }
        return [
            trial
            for trial in running
            if trial._trial_id in stale or now - self._nameless.get(trial._trial_id, now) > GRACE_SECONDS
        ]

    def _give_up(self, trial: FrozenTrial, reason: str, *, crashed: bool) -> None:
        attributes = {"reason": reason, **attempts.another(trial.user_attrs, crashed=crashed)}
        if PLACE not in trial.user_attrs:
            place = attempts.place_among(self.study.get_trials(deepcopy=False), trial.number)
            attributes |= {PLACE: place} if place < self.max_trials else {SURPLUS: True}
        with suppress(UpdateFinishedTrialError):  # it has ended, or another process was faster
            for name, value in attributes.items():
                self._storage.set_trial_user_attr(trial._trial_id, name, value)
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            again = "; it is tried again" if attributes[AGAIN] else ""
            log.warning("trial %d: %s%s", attributes.get(PLACE, place_of(trial)), reason, again)

    def records(self) -> list[Record]:
        """All trials by number."""
        by_place: dict[int, list[FrozenTrial]] = {}
        for trial in self._attempts():
            by_place.setdefault(place_of(trial), []).append(trial)
        return [_record(number, tried) for number, tried in sorted(by_place.items())]

    def _attempts(self) -> list[FrozenTrial]:
        return attempts.valid(self.study.get_trials(deepcopy=False))

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)

    @property
    def _storage(self) -> SharedStorage:
        storage: Any = self.study._storage
        return cast(SharedStorage, getattr(storage, "_backend", storage))  # Optuna wraps it to cache trials


def _is_another_alive(process: int) -> bool:
    if process == os.getpid():  # in a container the next process may well have the same number
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


_ENDS: dict[str, TrialState] = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "stopped": TrialState.FAIL,
}

_STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def _record(number: int, tried: Sequence[FrozenTrial]) -> Record:
    last = tried[-1]
    values = tuple(last.values or ())
    if last.state is TrialState.PRUNED and "pruned_value" in last.user_attrs:
        values = (last.user_attrs["pruned_value"],)
    reported = last.intermediate_values
    return Record(
        number=number,
        state="waiting" if attempts.is_to_be_repeated(last) else _STATES[last.state],
        parameters=dict(last.user_attrs.get("parameters", {})),
        values=values,
        latest=reported[max(reported)] if reported else None,
        attempts=len(tried),
        attributes=dict(last.user_attrs),
        duration=last.duration,
    )
