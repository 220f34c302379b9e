"""Hands out the trials of a study that several processes share, and records how each ended."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import MaxTrialsCallback  # noqa: F401  makes optuna.study load at once
from optuna.trial import FrozenTrial, Trial, TrialState

from trainer.sweep import attempts
from trainer.sweep.attempts import OUT_OF_MEMORY, RETRY, SURPLUS, TRIAL_NUMBER, WORKER, trial_number
from trainer.sweep.execution.messages import UNDEFINED_METRIC, Outcome
from trainer.sweep.execution.storage import GRACE_SECONDS, SharedStorage, quiet
from trainer.sweep.execution.trial_records import Record, record_of
from trainer.sweep.sampling.grid import GridSampler

log = logging.getLogger("trainer")

_END_STATES: dict[str, TrialState] = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "stopped": TrialState.FAIL,
}


class TrialQueue:
    """The trials of a study. Any number of processes and threads may use queues of the same study.

    Args:
        storage: the study's.
    """

    def __init__(self, study: optuna.Study, storage: SharedStorage, max_trials: int) -> None:
        self.study = study
        self.max_trials = max_trials
        self._storage = storage
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._first_seen: dict[int, float] = {}  # of running attempts without a worker, monotonic seconds

    def next(self) -> Trial | None:
        """Take the next attempt, which is then running; None if there is none to start now."""
        while True:
            for attempt in attempts.unqueued_retries(self._attempts()):
                self.study.add_trial(attempts.next_attempt(attempt))
            if not self.has_more:
                return None
            with quiet():
                trial = self.study.ask()
            self._storage.record_heartbeat(trial._trial_id)
            trial.set_user_attr("host", socket.gethostname())
            trial.set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
            if self._is_first_to_take(trial):
                return trial
            self.drop(trial)

    @property
    def has_more(self) -> bool:
        """Whether there is an attempt to start, new or waiting."""
        trials = self._attempts()
        if attempts.unqueued_retries(trials) or any(trial.state is TrialState.WAITING for trial in trials):
            return True
        sampler = self.study.sampler
        if isinstance(sampler, GridSampler) and sampler.is_exhausted(self.study):
            return False
        return sum(map(attempts.is_first_attempt, trials)) < self.max_trials

    def _is_first_to_take(self, trial: Trial) -> bool:
        """Whether no other process that asked at the same moment took the same trial before."""
        earlier = [other for other in self.study.get_trials(deepcopy=False) if other.number < trial.number]
        previous = attempts.previous_attempt(self._stored(trial))
        if previous is not None:
            return not any(attempts.previous_attempt(other) == previous for other in earlier)
        number = attempts.count_trials_before(earlier, trial.number)
        trial.set_user_attr(TRIAL_NUMBER, number)
        return number < self.max_trials

    def drop(self, trial: Trial) -> None:
        """Strike out an attempt that is one too many."""
        with suppress(UpdateFinishedTrialError):
            trial.set_user_attr(SURPLUS, True)
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def is_over(self, *, after_deadline: bool = False) -> bool:
        """Whether no trial is running or waiting; after the deadline waiting trials no longer count."""
        trials = self._attempts()
        if any(trial.state is TrialState.RUNNING for trial in trials):
            return False
        is_waiting = any(trial.state is TrialState.WAITING for trial in trials)
        return after_deadline or not (is_waiting or attempts.unqueued_retries(trials))

    def tell(self, trial: Trial, outcome: Outcome) -> Outcome:
        """Record how an attempt ended.

        Returns:
            What was recorded, with `may_succeed` only if another attempt follows.
        """
        if outcome.state == "complete" and any(map(math.isnan, outcome.values)):
            changes = {"state": "failed", "reason": UNDEFINED_METRIC, "may_succeed": False}
            outcome = outcome.model_copy(update=changes)
        attributes = {**outcome.attributes, **({"reason": outcome.reason} if outcome.reason else {})}
        if outcome.state == "pruned":
            attributes["pruned_value"] = outcome.values[0]
        if outcome.no_memory:
            attributes[OUT_OF_MEMORY] = True
        if outcome.state == "stopped" or outcome.may_succeed:
            has_crashed = outcome.state == "failed"
            attributes |= attempts.failure_attributes(trial.user_attrs, crashed=has_crashed)
        state = _END_STATES[outcome.state]
        with suppress(UpdateFinishedTrialError):
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            values = outcome.values if outcome.state == "complete" else None
            self.study.tell(trial, values, state, skip_if_finished=True)
        recorded = self._stored(trial)
        is_retried = bool(recorded.user_attrs.get(RETRY))
        if recorded.state is not state:
            reason = "another worker took it over after missing heartbeats"
            return Outcome(state="failed", reason=reason, may_succeed=is_retried)
        return outcome.model_copy(update={"may_succeed": is_retried})

    def stop_orphans(self, reason: str) -> None:
        """Fail the running attempts whose workers on this machine are gone; their trials will be retried."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            host, _, pid = trial.user_attrs.get(WORKER, "").rpartition(":")
            if host == socket.gethostname() and not _is_another_alive(int(pid)):
                self._fail(trial, reason, crashed=False)

    def beat(self, own: Sequence[Trial]) -> set[int]:
        """Send this process's heartbeats, and fail the attempts whose heartbeats have stopped.

        Returns:
            The IDs of those of its own attempts that another process has failed.
        """
        for trial in own:
            self._storage.record_heartbeat(trial._trial_id)
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        # If the database was unreachable, give the others time to send their heartbeats.
        if self._storage.is_steady(GRACE_SECONDS):
            for silent in self._silent(running):
                host = silent.user_attrs.get("host", "its machine")
                # An attempt that no worker had taken yet never ran, so nothing of it can have crashed.
                is_taken = WORKER in silent.user_attrs
                self._fail(silent, f"its worker on {host} stopped responding", crashed=is_taken)
        return {trial._trial_id for trial in own} - {trial._trial_id for trial in running}

    def _silent(self, running: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        stale = self._storage._get_stale_trial_ids(self._study_id)
        now = time.monotonic()
        # A worker that dies while it takes an attempt leaves it without a heartbeat that could become stale.
        self._first_seen = {
            trial._trial_id: self._first_seen.get(trial._trial_id, now)
            for trial in running
            if WORKER not in trial.user_attrs
        }
        return [
            trial
            for trial in running
            if trial._trial_id in stale or now - self._first_seen.get(trial._trial_id, now) > GRACE_SECONDS
        ]

    def _fail(self, trial: FrozenTrial, reason: str, *, crashed: bool) -> None:
        attributes = {"reason": reason, **attempts.failure_attributes(trial.user_attrs, crashed=crashed)}
        if TRIAL_NUMBER not in trial.user_attrs:
            number = attempts.count_trials_before(self.study.get_trials(deepcopy=False), trial.number)
            attributes |= {TRIAL_NUMBER: number} if number < self.max_trials else {SURPLUS: True}
        with suppress(UpdateFinishedTrialError):  # it has ended, or another process was faster
            for name, value in attributes.items():
                self._storage.set_trial_user_attr(trial._trial_id, name, value)
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            retry = "; it will be retried" if attributes[RETRY] else ""
            log.warning("trial %d: %s%s", attributes.get(TRIAL_NUMBER, trial_number(trial)), reason, retry)

    def records(self) -> list[Record]:
        """All trials by number."""
        by_number: dict[int, list[FrozenTrial]] = {}
        for attempt in self._attempts():
            by_number.setdefault(trial_number(attempt), []).append(attempt)
        return [record_of(number, of_trial) for number, of_trial in sorted(by_number.items())]

    def _attempts(self) -> list[FrozenTrial]:
        return attempts.valid_attempts(self.study.get_trials(deepcopy=False))

    def _stored(self, trial: Trial) -> FrozenTrial:
        return self._storage.get_trial(trial._trial_id)


def _is_another_alive(pid: int) -> bool:
    if pid == os.getpid():  # in a container the next process may well get the same ID
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        pass
    return True
