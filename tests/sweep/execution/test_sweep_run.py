"""Whole sweeps on one machine: trials in processes of their own, on small real data."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml

import trainer
from tests.sweep.processes import trial_processes
from trainer.data.samples import SampleData, make
from trainer.errors import JobError, RunError
from trainer.job.job import Job
from trainer.runs import Run
from trainer.sweep.attempts import trial_number
from trainer.sweep.execution import sweep_run
from trainer.sweep.execution.storage import open_storage
from trainer.tasks import Task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = {
    "number_of_epochs": 2,
    "number_of_workers": 0,
    "random_seed": 4,
    "training_crop_size": 32,
    "validation_crop_size": 32,
    "training_batch_size": 8,
}
MODEL = "timm/test_resnet"
EPOCHS = 40
"""Of the trials that are stopped: long enough for somebody to stop them."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> SampleData:
    return make(Task.CLASSIFICATION, tmp_path_factory.mktemp("digits"), images=20, seed=1)


def job(digits: SampleData, output: Path, *spaces: dict[str, Any], **values: Any) -> Job:
    known: dict[str, Any] = {
        "task": Task.CLASSIFICATION,
        "training_data": (str(digits.train),),
        "validation_data": (str(digits.validation),),
        "model": MODEL,
        "weights": "none",
        "gpus": 0,
        "output": output,
        "search_space": spaces,
        "settings": {**SMALL, **values.pop("settings", {})},
    }
    return Job(**{**known, **values})


def table(run: Path) -> list[dict[str, str]]:
    with (run / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def choice(*values: Any) -> dict[str, Any]:
    return {"type": "choice", "values": list(values)}


def test_a_grid_of_sub_spaces_with_a_trial_that_fails(digits: SampleData, tmp_path: Path) -> None:
    """Four combinations in two sub-spaces, two at a time; one diverges, and the sweep goes on."""
    wild = {"momentum": 0.99, "gradient_clip_value": 1e9, "warmup_cosine_lr_warmup_epochs": 0}
    run = trainer.fit(
        job(
            digits,
            tmp_path / "run",
            {"model_name": MODEL, "learning_rate": choice(0.001, 0.01)},
            {"model_name": "timm/test_vit", "optimizer": choice("adamw"), "learning_rate": choice(0.001)},
            {"model_name": "timm/test_vit", "learning_rate": choice(1.0), **wild, "number_of_epochs": 12},
            limits={"max_trials": 9, "max_concurrent_trials": 2},
            sweep={"sampling_algorithm": "grid"},
            loggers="csv",
        ),
        callbacks=["lightning.pytorch.callbacks:LearningRateMonitor(logging_interval='epoch')"],
    )
    rows = table(run.directory)
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["state"] for row in rows].count("complete") == 3
    (failed,) = (row for row in rows if row["state"] == "failed")
    assert failed["learning_rate"] == "1.0"
    assert "diverged" in failed["reason"]
    assert failed["attempts"] == "1"  # it would diverge again
    complete = [row for row in rows if row["state"] == "complete"]
    best = max(complete, key=lambda row: float(row["accuracy"]))
    result = run.read_result()
    assert result.value == float(best["accuracy"])
    assert result.best_trial == int(best["trial"])
    assert result.model == best["model_name"]
    assert (run.model / "MLmodel").is_file()
    assert len(run.predictions.read_text("utf-8").splitlines()) == 4
    # Each trial's directory is a run that can be gone on with or compared; only the best is packaged.
    for row in complete:
        trial = Run.open(
            Path(row["directory"]), needs=("checkpoints/best.ckpt", "metrics.csv", "result.json")
        )
        assert not trial.model.exists()
        settings = yaml.safe_load(trial.job.read_text("utf-8"))["training_parameters"]
        assert settings["learning_rate"] == float(row["learning_rate"])
        logged = (trial.directory / "csv" / "metrics.csv").read_text("utf-8")
        assert "accuracy" in logged
        assert "lr-" in logged  # by the callback
    with pytest.raises(RunError, match=r"all of its 4 trials have ended|--max-trials over"):
        trainer.resume(run.directory)


def test_weak_trials_are_given_up(digits: SampleData, tmp_path: Path) -> None:
    run = trainer.fit(
        job(
            digits,
            tmp_path / "run",
            # Nothing is learned at a rate of 0.
            {"learning_rate": choice(0.01, 0.0)},
            limits={"max_trials": 2},
            sweep={
                "sampling_algorithm": {"type": "grid"},
                "early_termination": {"type": "truncation_selection", "truncation_percentage": 60},
            },
            settings={"number_of_epochs": 6, "early_stopping": False},
            primary_metric="log_loss",
        )
    )
    rows = {float(row["learning_rate"]): row for row in table(run.directory)}
    assert rows[0.01]["state"] == "complete"
    assert rows[0.0]["state"] == "pruned"
    assert int(rows[0.0]["epochs"]) < 6
    assert Run(Path(rows[0.0]["directory"])).best_checkpoint.exists()
    assert run.read_result().best_trial == int(rows[0.01]["trial"])
    assert float(rows[0.01]["log_loss"]) == run.read_result().value < float(rows[0.0]["log_loss"])
    assert f"settings of trial {rows[0.01]['trial']}: learning_rate 0.01" in run.log.read_text("utf-8")


def test_the_fastest_and_the_best(digits: SampleData, tmp_path: Path) -> None:
    run = trainer.fit(
        job(
            digits,
            tmp_path / "run",
            {"model_name": choice(MODEL, "resnet50"), "number_of_epochs": 1},
            limits={"max_trials": 2},
            sweep={"sampling_algorithm": "grid"},
            max_latency_ms=1e6,
        )
    )
    latency = {row["model_name"]: float(row["latency_ms"]) for row in table(run.directory)}
    assert 0 < latency[MODEL] < latency["resnet50"]
    assert any(row["pareto"] == "True" for row in table(run.directory))
    page = run.report.read_text("utf-8")
    assert 'id="pareto"' in page
    assert "complete trials; there are 2" in page  # too few for importance
    for number in ("0000", "0001"):
        assert f'href="trials/{number}/report.html"' in page
        assert (run.directory / "trials" / number / "report.html").is_file()
    with pytest.raises(RunError, match="no trial finished within"):
        trainer.fit(
            job(
                digits,
                tmp_path / "none",
                {"model_name": MODEL, "number_of_epochs": 1},
                limits={"max_trials": 1},
                max_latency_ms=0.001,
            )
        )


@pytest.fixture
def command(digits: SampleData, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `trainer fit` on a sweep of three slow trials, two at a time; none outlives the test."""
    content = {
        "type": "automl",
        "task": "image_classification",
        "training_data": {"path": str(digits.train), "type": "mltable"},
        "validation_data": {"path": str(digits.validation), "type": "mltable"},
        "limits": {"max_trials": 3, "max_concurrent_trials": 2},
        "sweep": {"sampling_algorithm": "random"},
        "training_parameters": {
            **SMALL, "model_name": MODEL, "number_of_epochs": EPOCHS, "early_stopping": False
        },
        "search_space": [{"learning_rate": {"type": "uniform", "min_value": 0.001, "max_value": 0.01}}],
    }  # fmt: skip
    file = tmp_path / "job.yml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        first = (
            []
            if "--resume" in arguments
            else ["--config", str(file), "--weights", "none", "--tracking-uri", "none"]
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer", "fit", *first, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(true: Callable[[], bool], seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def epochs(run: Path, trial: int) -> int:
    metrics = run / "trials" / f"{trial:04d}" / "metrics.csv"
    return len(metrics.read_text("utf-8").splitlines()) - 1 if metrics.exists() else 0


def end(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=400)
    return output


def attempts(run: Path) -> dict[int, list[str]]:
    """Of each trial the states of its attempts."""
    study = optuna.load_study(study_name=None, storage=open_storage(f"sqlite:///{run / 'study.db'}"))
    found: dict[int, list[str]] = {}
    for trial in study.get_trials():
        found.setdefault(trial_number(trial), []).append(trial.state.name)
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_killed_trial_and_a_killed_sweep(
    command: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = command("--output", run)
    wait_for(lambda: epochs(run, 0) >= 2 or first.poll() is not None)
    (victim,) = trial_processes(run, "0000")
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: len(attempts(run).get(0, [])) == 2 and bool(trial_processes(run, "0000")))
    wait_for(lambda: epochs(run, 1) >= 2)
    first.send_signal(signal.SIGKILL)
    output = end(first)
    assert "trial 0: failed, its process was ended by signal 9" in output
    # Its trials do not continue by themselves.
    wait_for(lambda: not trial_processes(run), seconds=20)
    assert not (run / "result.json").exists()
    assert table(run)[0]["trial"] == "0"  # of the trial's first end on

    output = end(command("--resume", run))
    assert "resuming the sweep" in output, output
    rows = table(run)
    assert [row["state"] for row in rows] == ["complete"] * 3, output
    assert attempts(run)[0][-1] == "COMPLETE"
    assert int(rows[0]["attempts"]) >= 2
    for number in range(3):
        with (run / "trials" / f"{number:04d}" / "metrics.csv").open() as file:
            # Every epoch once, though some were trained by one process and some by another.
            assert [row["epoch"] for row in csv.DictReader(file)] == [str(e + 1) for e in range(EPOCHS)]
    assert "resuming from" in (run / "trials" / "0000" / "trainer.log").read_text("utf-8")
    assert (run / "model" / "MLmodel").is_file()

    # More trials, of the same sweep.
    extended = end(command("--resume", run, "--max-trials", 4))
    assert [row["state"] for row in table(run)] == ["complete"] * 4, extended
    assert [row["learning_rate"] for row in table(run)[:3]] == [row["learning_rate"] for row in rows]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_ctrl_c_ends_the_trials_and_the_sweep_goes_on(
    command: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = command("--output", run, "--max-trials", 2)
    wait_for(lambda: (epochs(run, 0) >= 2 and epochs(run, 1) >= 2) or first.poll() is not None)
    first.send_signal(signal.SIGINT)
    output = end(first)
    assert first.returncode == 130, output
    assert not trial_processes(run)
    states = [row["state"] for row in table(run)]
    assert "waiting" in states
    for trial, state in enumerate(states):  # on a busy machine one may be through before the other has begun
        assert state == ("complete" if epochs(run, trial) == EPOCHS else "waiting")
    # What ended in time keeps the time limit's promise: the best of what there is, soon.
    output = end(command("--resume", run))
    assert [row["state"] for row in table(run)] == ["complete", "complete"], output


def test_the_time_limit_ends_trials_at_an_evaluation(
    digits: SampleData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The shortest limit is a minute; this one began 50 seconds ago.
    clock = SimpleNamespace(**{**vars(time), "time": lambda: time.time() - 50})
    monkeypatch.setattr(sweep_run, "time", clock)
    started = time.monotonic()
    run = trainer.fit(
        job(
            digits,
            tmp_path / "run",
            {"learning_rate": choice(0.001, 0.002, 0.003)},
            limits={"max_trials": 3, "timeout_minutes": 1},
            sweep={"sampling_algorithm": "grid"},
            settings={"number_of_epochs": 100_000, "early_stopping": False},
        )
    )
    assert time.monotonic() - started < 120
    (row,) = table(run.directory)
    assert row["state"] == "complete"
    assert 0 < int(row["epochs"]) < 100_000
    assert (run.model / "MLmodel").is_file()


def test_wrong_spaces_are_refused_before_anything_is_written(digits: SampleData, tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        trainer.fit(
            job(
                digits,
                tmp_path / "run",
                {"learning_rate": {"type": "choice", "values": []}, "tile_grid_size": "3x2"},
                limits={"max_trials": 2},
                sweep={"early_termination": {"type": "bandit"}},
            )
        )
    assert "search_space[0].learning_rate" in str(caught.value)
    assert "slack" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_resumed_sweep_says_how_its_data_have_changed(
    digits: SampleData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sweep_run._Sweep, "finish", lambda self, *_: self.run)  # no trials
    lines = digits.train.read_text("utf-8").splitlines(keepends=True)
    data = digits.train.with_name("changing.jsonl")
    data.write_text("".join(lines), encoding="utf-8")
    space = {"learning_rate": choice(0.001, 0.01)}
    run = trainer.fit(
        job(digits, tmp_path / "run", space, limits={"max_trials": 2}, training_data=(str(data),))
    )
    trainer.resume(run.directory)
    assert "have changed" not in caplog.text
    lines[1] = lines[1].replace("{", '{"weather": "rain", ', 1)
    data.write_text("".join(lines[1:]), encoding="utf-8")
    trainer.resume(run.directory)
    changed = f"training data: {len(lines) - 1} images instead of {len(lines)}"
    assert f"the data have changed since the sweep started: {changed}" in caplog.text
    assert "weather: is not a key of the data schema" in caplog.text
