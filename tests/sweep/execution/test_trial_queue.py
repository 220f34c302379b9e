"""Several processes at one study: none takes another's trial, and none is lost with a process that dies."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import optuna
import pytest
from optuna import TrialPruned

from trainer.sweep.attempts import TRIAL_NUMBER, WORKER, next_attempt, trial_number
from trainer.sweep.execution import storage
from trainer.sweep.execution import trial_queue as study
from trainer.sweep.execution.messages import UNDEFINED_METRIC, Outcome
from trainer.sweep.execution.storage import open_storage, quiet
from trainer.sweep.execution.trial_queue import TrialQueue
from trainer.sweep.execution.trial_records import Record
from trainer.sweep.sampling import RandomSampler
from trainer.sweep.sampling.grid import GridSampler
from trainer.sweep.space.search_space import parse

if TYPE_CHECKING:
    from tests.sweep.conftest import Server

Join = Callable[..., TrialQueue]

SPACE = parse([{"learning_rate": {"type": "uniform", "min_value": 0.0, "max_value": 1.0}}])
GRID = parse([{"learning_rate": {"type": "choice", "values": [0.1, 0.2, 0.3, 0.4, 0.5]}}])
COMPLETE = Outcome(state="complete", values=(0.5,))
CRASHED = Outcome(state="failed", reason="out of memory", may_succeed=True)


@pytest.fixture
def join(postgresql: Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Join:
    """Joins the test's study in PostgreSQL, as another process would: with a storage of its own."""
    for module in (storage, study):
        monkeypatch.setattr(module, "GRACE_SECONDS", 1)
    url = postgresql.database("studies")
    name = request.node.name
    optuna.create_study(study_name=name, storage=open_storage(url), direction="maximize")

    def joined(max_trials: int = 5, sampler: Any = None) -> TrialQueue:
        opened = open_storage(url)
        known = optuna.load_study(study_name=name, storage=opened, sampler=sampler or RandomSampler())
        return TrialQueue(known, opened, max_trials)

    return joined


def states(of: TrialQueue) -> list[tuple[int, str, int]]:
    return [(record.number, record.state, record.attempts) for record in of.records()]


def only(of: TrialQueue) -> Record:
    (record,) = of.records()
    return record


def beat_until(of: TrialQueue, true: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        of.beat([])
        time.sleep(0.1)


def test_all_ask_at_once(join: Join) -> None:
    def work(process: TrialQueue) -> list[int]:
        mine = []
        while (trial := process.next()) is not None:
            SPACE.suggest(trial)
            mine.append(trial_number(trial))
            process.tell(trial, COMPLETE)
        return mine

    processes = [join() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        taken = [place for mine in pool.map(work, processes) for place in mine]
    assert sorted(taken) == [0, 1, 2, 3, 4]
    assert states(join()) == [(place, "complete", 1) for place in range(5)]
    # What was struck out takes no number from those that a larger sweep adds.
    assert trial_number(join(max_trials=6).next()) == 5


def test_all_ask_for_the_last_of_a_grid(join: Join) -> None:
    """More trials are allowed than there are combinations."""

    def work(process: TrialQueue) -> list[float]:
        mine = []
        while (trial := process.next()) is not None:
            try:
                mine.append(GRID.suggest(trial)["learning_rate"])
            except TrialPruned:
                process.drop(trial)
            else:
                process.tell(trial, COMPLETE)
        return mine

    processes = [join(max_trials=20, sampler=GridSampler(GRID)) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        taken = [value for mine in pool.map(work, processes) for value in mine]
    assert sorted(taken) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert states(processes[0]) == [(place, "complete", 1) for place in range(5)]
    assert processes[0].is_over()


def test_a_larger_grid_goes_on_where_it_was(join: Join) -> None:
    small = join(max_trials=2, sampler=GridSampler(GRID))
    for _ in range(2):
        trial = small.next()
        assert trial is not None
        GRID.suggest(trial)
        small.tell(trial, COMPLETE)
    with quiet():
        small.drop(small.study.ask())  # of a process that asked for the last one, too
    large = join(max_trials=9, sampler=GridSampler(GRID))
    added = []
    while (trial := large.next()) is not None:
        added.append(GRID.suggest(trial)["learning_rate"])
        large.tell(trial, COMPLETE)
    assert added == [0.3, 0.4, 0.5]


def test_a_crash_is_tried_again_once_with_the_same_settings(join: Join) -> None:
    first, second = join(max_trials=1), join(max_trials=1)
    trial = first.next()
    assert trial is not None
    proposal = SPACE.suggest(trial)
    assert first.tell(trial, CRASHED).may_succeed
    # The process may die at any moment from here: what it said is enough for others.
    assert not second.is_over()
    assert second.is_over(after_deadline=True)
    assert states(second) == [(0, "waiting", 1)]
    again = second.next()
    assert again is not None
    assert (trial_number(again), SPACE.suggest(again)) == (0, proposal)
    assert first.next() is None
    assert not second.tell(again, CRASHED).may_succeed
    assert states(first) == [(0, "failed", 2)]
    assert only(first).attributes["reason"] == "out of memory"
    assert first.is_over()
    assert first.next() is None


def test_a_stop_is_no_crash(join: Join) -> None:
    process = join(max_trials=1)
    for _ in range(3):
        trial = process.next()
        assert trial is not None
        process.tell(trial, Outcome(state="stopped"))
    assert process.next() is not None


def test_two_processes_queue_the_same_attempt(join: Join) -> None:
    first, second = join(max_trials=1), join(max_trials=1)
    trial = first.next()
    assert trial is not None
    first.tell(trial, CRASHED)
    (failed,) = first.study.get_trials()
    for _ in range(2):
        first.study.add_trial(next_attempt(failed))
    assert states(first) == [(0, "waiting", 2)]
    again = first.next()
    assert again is not None
    assert second.next() is None
    first.tell(again, COMPLETE)
    assert states(second) == [(0, "complete", 2)]
    assert second.is_over()


def test_a_worker_falls_silent_and_comes_back(join: Join) -> None:
    dead, alive = join(max_trials=1), join(max_trials=1)
    trial = dead.next()
    assert trial is not None
    proposal = SPACE.suggest(trial)
    assert alive.next() is None
    assert not alive.is_over()
    beat_until(alive, lambda: alive.has_more)
    assert "stopped responding" in only(alive).attributes["reason"]
    again = alive.next()
    assert again is not None
    assert SPACE.suggest(again) == proposal
    # It has been away only, and finds that its trial is another's now.
    assert dead.beat([trial]) == {trial._trial_id}
    assert alive.beat([again]) == set()
    told = dead.tell(trial, Outcome(state="complete", values=(0.9,)))
    assert (told.state, told.may_succeed) == ("failed", True)
    alive.tell(again, COMPLETE)
    assert (only(alive).values, states(alive)) == ((0.5,), [(0, "complete", 2)])


def test_who_beats_is_left_alone(join: Join) -> None:
    busy, other = join(max_trials=1), join(max_trials=1)
    trial = busy.next()
    assert trial is not None
    until = time.monotonic() + 4
    while time.monotonic() < until:
        assert busy.beat([trial]) == set()
        other.beat([])
        time.sleep(0.2)
    assert states(other) == [(0, "running", 1)]


def test_nobody_is_blamed_for_a_database_that_was_away(join: Join, postgresql: Server) -> None:
    busy, other = join(max_trials=1), join(max_trials=1)
    trial = busy.next()
    assert trial is not None
    time.sleep(1.5)  # the other has seen the database for long enough to judge
    busy.beat([trial])
    postgresql.stop()
    back = Thread(target=lambda: (time.sleep(2), postgresql.start()))
    back.start()
    try:
        other.beat([])  # returns when the database is back, in which all heartbeats are old
        assert busy.beat([trial]) == set()
    finally:
        back.join()
    assert states(other) == [(0, "running", 1)]


def test_a_process_dies_as_it_takes_a_trial(join: Join) -> None:
    """Before it could give it a number or a heartbeat."""
    process = join(max_trials=2)
    with quiet():
        process.study.ask()
    other = process.next()
    assert other is not None
    assert trial_number(other) == 1
    process.tell(other, COMPLETE)
    beat_until(process, lambda: process.has_more)
    trial = process.next()
    assert trial is not None
    assert trial.user_attrs[TRIAL_NUMBER] == 0
    process.tell(trial, COMPLETE)
    assert states(process) == [(0, "complete", 2), (1, "complete", 1)]


def test_a_process_that_dies_as_it_takes_a_retry_costs_no_attempt(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = join(max_trials=1)
    trial = process.next()
    assert trial is not None
    process.tell(trial, CRASHED)  # another crash would be the last
    with monkeypatch.context() as patch:
        patch.setattr(process._storage, "record_heartbeat", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            process.next()
    beat_until(process, lambda: process.has_more)
    retried = process.next()
    assert retried is not None
    process.tell(retried, COMPLETE)
    assert states(process) == [(0, "complete", 3)]


def test_a_sweep_that_goes_on_takes_up_what_died_here_alone(join: Join) -> None:
    process = join(max_trials=3)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = None
    try:
        for owner in (f"{sleeper.pid}", f"{ended.pid}", None):
            trial = process.next()
            assert trial is not None
            host = trial.user_attrs["host"]
            trial.set_user_attr(WORKER, f"{host}:{owner}" if owner else f"not-{host}:{ended.pid}")
        process.stop_orphans("the sweep was stopped")
        assert states(process) == [(0, "running", 1), (1, "waiting", 1), (2, "running", 1)]
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_metric_that_is_no_number_fails_the_trial(join: Join) -> None:
    process = join(max_trials=1)
    trial = process.next()
    assert trial is not None
    assert process.tell(trial, Outcome(state="complete", values=(float("nan"),))).state == "failed"
    assert only(process).state == "failed"
    assert only(process).attributes["reason"] == UNDEFINED_METRIC
