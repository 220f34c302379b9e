"""Databases that cannot be used, and databases that are away for a while."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import TYPE_CHECKING

import optuna
import pytest
from sqlalchemy import event

from trainer.errors import FullDiskError, JobError, RunError
from trainer.sweep.execution import storage
from trainer.sweep.execution.storage import open_storage, quiet
from trainer.sweep.execution.trial_queue import TrialQueue

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sweep.conftest import Server

SECRET = "sesame-0815"


def refusal(url: str) -> str:
    with pytest.raises(JobError) as caught:
        open_storage(url)
    text = str(caught.value)
    assert "--storage" in text
    assert SECRET not in text
    return text


def test_a_wrong_password(postgresql: Server) -> None:
    text = refusal(postgresql.url("postgres").replace(postgresql.password_in_urls, SECRET))
    assert "password authentication failed" in text
    assert f"postgresql://127.0.0.1:{postgresql.port}/postgres" in text


def test_a_database_that_is_not_there(postgresql: Server) -> None:
    text = refusal(postgresql.url("nowhere"))
    assert 'database "nowhere" does not exist' in text
    assert postgresql.password not in text


def test_a_server_that_is_not_there(free_port: int) -> None:
    started = time.monotonic()
    text = refusal(f"postgresql://me:{SECRET}@127.0.0.1:{free_port}/sweeps?sslmode=disable")
    assert "refused" in text
    assert time.monotonic() - started < 20
    refusal(f"postgresql://127.0.0.1:{free_port}/sweeps?user=me&password={SECRET}")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"postgresql://me:pa@{SECRET}@host/sweeps", "write @ as %40"),
        (f"postgresql://me:{SECRET}", "must be a URL such as postgresql://"),
        (f"sweeps-{SECRET}", "must be a URL such as postgresql://"),
        (f"postgres://me:{SECRET}@host/sweeps", "write postgresql://"),
        (f"oracel://me:{SECRET}@host/sweeps", "must be a database that SQLAlchemy knows, got oracel"),
    ],
)
def test_addresses_that_are_none(url: str, said: str) -> None:
    assert said in refusal(url)


def test_a_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    text = refusal(f"postgresql://me:{SECRET}@host/sweeps")
    assert "needs a driver that is not installed, got psycopg2" in text
    assert "pip install 'image-trainer[postgresql]'" in text


def test_many_processes_open_an_empty_database_at_once(postgresql: Server) -> None:
    url = postgresql.create("empty")
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(open_storage, [url] * 6))
    assert all(optuna.get_all_study_names(one) == [] for one in opened)


def test_calls_wait_for_a_database_that_restarts(
    postgresql: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trainer")
    opened = open_storage(postgresql.create("restarts"))
    study = optuna.create_study(study_name="one", storage=opened)
    with quiet():
        trial = study.ask()
    postgresql.stop()
    back = Thread(target=lambda: (time.sleep(5), postgresql.start()))
    back.start()
    try:
        trial.report(0.5, 1)
        assert not opened.is_steady(3)
        study.tell(trial, 0.5)
        assert [known.value for known in study.trials] == [0.5]
        assert study.trials[0].intermediate_values == {1: 0.5}
    finally:
        back.join()
    said = [record.getMessage() for record in caplog.records if record.name == "trainer"]
    assert [line.partition(";")[0] for line in said] == [
        "the storage does not answer",
        "the storage answers again",
    ]
    assert postgresql.password not in caplog.text


def test_opening_waits_if_it_is_told_to(postgresql: Server) -> None:
    url = postgresql.create("opened")
    postgresql.stop()
    back = Thread(target=lambda: (time.sleep(2), postgresql.start()))
    back.start()
    try:
        assert optuna.get_all_study_names(open_storage(url, patience=60)) == []
    finally:
        back.join()


def test_patience_ends(postgresql: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_storage(postgresql.create("given-up"))
    study = optuna.create_study(study_name="one", storage=opened)
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 1)
    postgresql.stop()
    try:
        with pytest.raises(RunError, match=r"has not answered for .* --resume"):
            study.get_trials()
        started = time.monotonic()
        with pytest.raises(RunError):  # what else is asked need not wait again
            study.get_trials()
        assert time.monotonic() - started < 1
    finally:
        postgresql.start()
    assert study.get_trials() == []


def test_a_file_that_another_process_holds(tmp_path: Path) -> None:
    """SQLite has one writer at a time; a lock that outlasts its own patience is waited for as well."""
    opened = open_storage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(study_name="one", storage=opened)
    other = open_storage(f"sqlite:///{tmp_path}/study.db?timeout=0.1")
    joined = optuna.load_study(study_name="one", storage=other)
    with opened.engine.begin() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        asking = ThreadPoolExecutor(1).submit(TrialQueue(joined, other, 1).next)
        time.sleep(1)
        assert not asking.done()
    assert asking.result(timeout=60) is not None
    assert len(study.trials) == 1


def test_a_full_disk_is_told_at_once(tmp_path: Path) -> None:
    opened = open_storage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(study_name="one", storage=opened)
    # SQLite then takes the file's present size for the most that there is room for.
    event.listen(opened.engine, "connect", lambda file, _: file.execute("PRAGMA max_page_count = 1"))
    opened.engine.dispose()
    with pytest.raises(
        FullDiskError, match=r"study\.db: cannot be written \(database or disk is full; .*--resume"
    ):
        study.set_user_attr("data", "x" * 100_000)
    assert opened.is_steady(0)
