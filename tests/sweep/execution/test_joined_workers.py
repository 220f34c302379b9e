"""Sweeps on several machines, which here are several processes, that share a PostgreSQL."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import yaml

from tests.sweep.processes import trial_processes
from trainer.data.samples import SampleData, make
from trainer.errors import DataError, JobError, RunError
from trainer.fitting import resume
from trainer.job.job import Job
from trainer.runs import Run
from trainer.sweep.attempts import WORKER, trial_number
from trainer.sweep.execution.join import join_sweep
from trainer.sweep.execution.storage import open_storage
from trainer.sweep.execution.sweep_run import sweep
from trainer.tasks import Task

if TYPE_CHECKING:
    from tests.sweep.conftest import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc"),
]

EPOCHS = 32  # enough for a trial to be killed in its middle
PATIENCE = 300.0
"""Seconds in which a process must do what is waited for; the machine may be busy with others."""

Command = Callable[..., "Process"]


class Process:
    """A `trainer` command that runs, as on a machine of its own."""

    def __init__(self, directory: Path, number: int, arguments: tuple[object, ...]) -> None:
        self._output = directory / f"{number}-{arguments[0]}.out"
        with self._output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trainer", *map(str, arguments)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TRAINER_HEARTBEAT_SECONDS": "3", "OMP_NUM_THREADS": "1"},
            )

    @property
    def output(self) -> str:
        return self._output.read_text("utf-8")

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self) -> str:
        """What it said, after its end."""
        self.process.wait(timeout=PATIENCE)
        return self.output


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """Starts `trainer`; nothing of it outlives the test."""
    started: list[Process] = []

    def start(*arguments: object) -> Process:
        started.append(Process(tmp_path, len(started), arguments))
        return started[-1]

    yield start
    for each in started:
        if not each.has_ended:
            each.process.kill()
        each.process.wait()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> SampleData:
    return make(Task.CLASSIFICATION, tmp_path_factory.mktemp("digits"), images=20, seed=1)


@pytest.fixture
def job(digits: SampleData, tmp_path: Path) -> dict[str, Any]:
    """A job file's content: trials of some seconds each, no two alike."""
    return {
        "type": "automl",
        "task": "image_classification",
        "training_data": {"path": str(digits.train), "type": "mltable"},
        "validation_data": {"path": str(digits.validation), "type": "mltable"},
        "limits": {"max_trials": 4},
        "sweep": {"sampling_algorithm": "random"},
        "training_parameters": {
            "model_name": "timm/test_resnet",
            "number_of_epochs": EPOCHS,
            "early_stopping": False,
            "number_of_workers": 0,
            "random_seed": 4,
            "training_crop_size": 32,
            "validation_crop_size": 32,
            "training_batch_size": 8,
        },
        "search_space": [{"learning_rate": {"type": "uniform", "min_value": 0.001, "max_value": 0.01}}],
        "local": {"weights": "none", "gpus": 0, "tracking_uri": "none"},
    }


def write(job: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    return path


def wait_for(true: Callable[[], Any], *while_alive: Process) -> None:
    until = time.monotonic() + PATIENCE
    while not true():
        ended = [each.output for each in while_alive if each.has_ended]
        assert not ended, ended[0]
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def trained_epochs(run: Path, trial: int) -> list[int]:
    metrics = run / "trials" / f"{trial:04d}" / "metrics.csv"
    if not metrics.exists():
        return []
    with metrics.open(encoding="utf-8") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def attempts(url: str, name: str) -> list[tuple[int, int, str]]:
    """Of all attempts in a study: the trial's number, the worker's process, the state."""
    storage = open_storage(url)
    if name not in optuna.get_all_study_names(storage):
        return []
    known = optuna.load_study(study_name=name, storage=storage).get_trials()
    storage.engine.dispose()
    return [
        (trial_number(each), int(each.user_attrs.get(WORKER, ":0").rpartition(":")[2]), each.state.name)
        for each in known
    ]


def test_three_workers_of_which_one_is_killed(
    postgresql: Server, command: Command, job: dict[str, Any], tmp_path: Path
) -> None:
    url, run = postgresql.create("three"), tmp_path / "run"
    file = write(job, tmp_path / "job.yml")
    first = command("fit", "--config", file, "--storage", url, "--study", "digits", "--output", run)
    # Its first trial is held until the others, whose imports take longer than trials, have one each.
    wait_for(lambda: trial_processes(run, "0000"), first)
    (held,) = trial_processes(run, "0000")
    os.kill(held, signal.SIGSTOP)
    others = [command("worker", "--storage", url, "--study", "digits", "--gpus", 0) for _ in range(2)]
    victim = others[0]
    wait_for(lambda: len({worker for _, worker, _ in attempts(url, "digits") if worker}) == 3, first, *others)
    os.kill(held, signal.SIGCONT)

    def trial_of_victim() -> int | None:
        mine = [
            trial for trial, worker, state in attempts(url, "digits")
            if worker == victim.process.pid and state == "RUNNING"
        ]  # fmt: skip
        return mine[0] if mine and len(trained_epochs(run, mine[0])) >= 2 else None

    wait_for(lambda: trial_of_victim() is not None, first, *others)
    lost = trial_of_victim()
    assert lost is not None
    assert trial_processes(run, f"{lost:04d}")
    victim.process.send_signal(signal.SIGKILL)
    # Nobody is there for its trial's result, which another worker is to take up in the same directory.
    wait_for(
        lambda: (
            not trial_processes(run, f"{lost:04d}")
            or (lost, victim.process.pid, "FAIL") in attempts(url, "digits")
        )
    )
    assert not trial_processes(run, f"{lost:04d}")

    said = first.wait()
    assert first.process.returncode == 0, said
    words = others[1].wait()
    assert others[1].process.returncode == 0, words
    assert re.search(r"\n[1-3] trials ended here; none are left", words), words
    assert f"trial {lost}: its worker on" in said + words

    # Exactly as many trials as were asked for, none twice, and every worker had its part.
    table = rows(run)
    assert [(row["trial"], row["state"]) for row in table] == [(str(n), "complete") for n in range(4)]
    assert len({row["learning_rate"] for row in table}) == 4
    assert [int(row["attempts"]) for row in table] == [2 if n == lost else 1 for n in range(4)]
    assert "stopped responding" in table[lost]["reason"]
    known = attempts(url, "digits")
    assert {worker for _, worker, _ in known} == {each.process.pid for each in (first, *others)}
    (again,) = [worker for trial, worker, state in known if trial == lost and state == "COMPLETE"]
    assert again != victim.process.pid
    for number in range(4):
        assert trained_epochs(run, number) == list(range(1, EPOCHS + 1))
    log = (run / "trials" / f"{lost:04d}" / "trainer.log").read_text("utf-8")
    assert "resuming from" in log
    best = max(table, key=lambda row: float(row["accuracy"]))
    result = Run(run).read_result()
    assert (result.best_trial, result.value) == (int(best["trial"]), float(best["accuracy"]))
    assert (run / "model" / "MLmodel").is_file()

    # The password is where only its owner reads it, and nobody was told of it.
    assert postgresql.password not in said + words
    holders = [
        path for path in run.rglob("*")
        if path.is_file() and postgresql.password_in_urls.encode() in path.read_bytes()
    ]  # fmt: skip
    assert run / "storage.url" in holders
    assert all(path.stat().st_mode & 0o077 == 0 for path in holders), holders
    # It suffices to resume the sweep.
    with pytest.raises(RunError, match="all of its 4 trials have ended; --max-trials over 4 adds more"):
        resume(run)


def test_two_sweeps_in_a_database_that_restarts(
    postgresql: Server, command: Command, job: dict[str, Any], tmp_path: Path
) -> None:
    """Both begin at once, in a database without tables."""
    url = postgresql.create("two")
    job["training_parameters"]["number_of_epochs"] = 24
    runs = {count: tmp_path / f"sweep-{count}" for count in (1, 2)}
    sweeps = {}
    for count, run in runs.items():
        job["limits"] = {"max_trials": count}
        file = write(job, tmp_path / f"{count}.yml")
        sweeps[count] = command("fit", "--config", file, "--storage", url, "--output", run)
    wait_for(lambda: all(len(trained_epochs(run, 0)) >= 2 for run in runs.values()), *sweeps.values())
    postgresql.stop()
    try:
        time.sleep(6)
    finally:
        postgresql.start()
    for count, run in runs.items():
        said = sweeps[count].wait()
        assert sweeps[count].process.returncode == 0, said
        table = rows(run)
        assert [(row["trial"], row["state"], row["attempts"]) for row in table] == [
            (str(number), "complete", "1") for number in range(count)
        ]
        assert all(trained_epochs(run, number) == list(range(1, 25)) for number in range(count))
        assert "the storage answers again" in said
        assert f"--study {run.name}" in said
        assert (run / "model" / "MLmodel").is_file()


def test_a_command_says_what_is_wrong_with_the_storage(
    postgresql: Server, command: Command, job: dict[str, Any], tmp_path: Path
) -> None:
    url = postgresql.url("postgres").replace(postgresql.password_in_urls, "sesame-0815")
    file = write(job, tmp_path / "job.yml")
    run = tmp_path / "run"
    commands = [
        command("fit", "--config", file, "--storage", url, "--output", run),
        command("worker", "--storage", url, "--study", "digits"),
    ]
    for each in commands:
        said = each.wait()
        assert each.process.returncode == 1
        assert "error: the storage cannot be used:\n  --storage: must be a database" in said
        assert "password authentication failed" in said
        assert "sesame" not in said
        assert "Traceback" not in said
    assert not run.exists()


def test_a_worker_that_cannot_join(
    postgresql: Server, digits: SampleData, job: dict[str, Any], tmp_path: Path
) -> None:
    url = postgresql.create("joining")
    with pytest.raises(JobError, match=r"--study: must be a study in the storage, got 'digits'; .* none"):
        join_sweep(url, "digits")
    optuna.create_study(study_name="foreign", storage=open_storage(url))
    with pytest.raises(JobError, match=r"got 'digits'; there are foreign"):
        join_sweep(url, "digits")
    with pytest.raises(JobError, match=r"is not the study of a sweep, got 'foreign'"):
        join_sweep(url, "foreign")


def test_a_worker_that_does_not_see_the_data(
    postgresql: Server, digits: SampleData, job: dict[str, Any], tmp_path: Path
) -> None:
    """It must not spoil one trial after another, each of which would fail on it."""
    url = postgresql.create("unseen")
    job["training_data"]["path"] = str(tmp_path / "elsewhere.jsonl")
    study = optuna.create_study(study_name="digits", storage=open_storage(url))
    study.set_user_attr("job", yaml.safe_dump(job))
    study.set_user_attr("directory", str(tmp_path))
    with pytest.raises(DataError, match=r"elsewhere.jsonl"):
        join_sweep(url, "digits", gpus=0)
    assert study.trials == []


def test_a_name_that_is_taken(
    postgresql: Server, digits: SampleData, job: dict[str, Any], tmp_path: Path
) -> None:
    url = postgresql.create("taken")
    optuna.create_study(study_name="digits", storage=open_storage(url))
    values = {
        "task": Task.CLASSIFICATION,
        "training_data": (str(digits.train),),
        "search_space": tuple(job["search_space"]),
        "settings": {},
        "weights": "none",
        "gpus": 0,
        "storage": url,
    }
    for named in ({"study": "digits", "output": tmp_path / "run"}, {"output": tmp_path / "digits"}):
        with pytest.raises(
            JobError, match=r"--study: is taken by another sweep in this storage.* `trainer worker --study"
        ):
            sweep(Job(**values, **named))
        assert not named["output"].exists()  # type: ignore[attr-defined]
