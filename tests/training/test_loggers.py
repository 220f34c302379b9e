"""Loggers next to MLflow: their files, resumed runs, and packages that are missing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import trainer
from tests.training.conftest import job, resume, rows
from trainer.data.samples import SampleData
from trainer.errors import JobError, RunError, TrackingError
from trainer.runs import Run
from trainer.tasks import Task
from trainer.training import loggers
from trainer.training.fit import fit
from trainer.training.loggers import Loggers

WANDB = """
import json, os
run = None
class Config(dict):
    def update(self, values, allow_val_change=False): dict.update(self, values)
class Run:
    url = None
    def __init__(self, options):
        if os.environ.get("WANDB_MODE") != "offline":
            raise RuntimeError("api_key not configured")
        self.options, self.config, self.dir = options, Config(), os.path.join(options["dir"], "wandb")
        self.note("init", options)
    def note(self, what, value):
        with open(os.environ["WANDB_STUB"], "a") as file: print(json.dumps([what, value]), file=file)
    def define_metric(self, *_, **__): pass
    def log(self, metrics): self.note("log", metrics)
    def finish(self, exit_code=0): self.note("finish", exit_code)
def init(**options): return Run(options)
"""


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_resumed_runs_continue_their_logs(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run")
    run = fit(wanted.changed(loggers="tensorboard", tracking_uri="none"), packages=False)
    with pytest.raises(JobError, match="loggers"):
        resume(run.directory, {"number_of_epochs": 3}, loggers=["no"])
    resumed = resume(run.directory, {"number_of_epochs": 3}, loggers=["tensorboard", "csv"])
    table = rows(resumed)
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    # A logger that is new gets the earlier epochs, too.
    logged = csv_rows(run.directory / "csv" / "metrics.csv")
    assert [row["step"] for row in logged] == ["1", "2", "3"]
    events = EventAccumulator(str(run.directory / "tensorboard")).Reload()
    for name in ("train_loss", "accuracy", "learning_rate"):
        expected = [float(row[name]) for row in table]
        assert [float(row[name]) for row in logged] == pytest.approx(expected)
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [1, 2, 3]
        assert [scalar.value for scalar in scalars] == pytest.approx(expected, rel=1e-5)
    by_class = csv_rows(run.class_metrics)
    assert [row["epoch"] for row in by_class if row["class"] == by_class[0]["class"]] == ["1", "2", "3"]
    for row in by_class:
        name = f"recall_by_class/{row['class']}"
        assert float(logged[int(row["epoch"]) - 1][name]) == float(row["recall"])
    assert "learning_rate" in (run.directory / "tensorboard" / "hparams.yaml").read_text()


def test_a_missing_package_is_an_error_before_the_data_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    wanted = trainer.Job(
        task="object-detection", training_data="none.jsonl", loggers=["tensorboard", "wandb", "csv"]
    )
    with pytest.raises(JobError) as caught:
        trainer.fit(wanted)
    assert [problem.hint for problem in caught.value.problems] == [
        "pip install tensorboard", "pip install wandb"
    ]  # fmt: skip


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for wandb; returns the file that gets what it is told, a JSON list in each line."""
    package = tmp_path / "packages" / "wandb"
    (package / "sdk" / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text(WANDB)
    (package / "sdk" / "__init__.py").write_text("")
    (package / "sdk" / "lib" / "__init__.py").write_text("class RunDisabled: pass\n")
    (package / "wandb_run.py").write_text("from wandb import Run\n")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    monkeypatch.setenv("WANDB_STUB", str(tmp_path / "told.jsonl"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return tmp_path / "told.jsonl"


def opened(directory: Path, **values: Any) -> Loggers:
    wanted = trainer.Job(
        task="object-detection", training_data="a.jsonl", model="yolo11n", loggers="wandb", **values
    )
    return Loggers(wanted, Run(directory), is_rank_zero=True)


def test_wandb_resumes_the_same_run(wandb: Path, tmp_path: Path) -> None:
    trial = tmp_path / "fridge" / "trials" / "0003"
    trial.mkdir(parents=True)
    table = [{"epoch": 1}, {"epoch": 2}]
    with opened(trial) as first:
        for row in first.missing("wandb", table[:1]):
            first.log("wandb", row["epoch"], {"recall": 0.5})
    second = opened(trial, experiment_name="mine")
    assert second.missing("wandb", table) == [{"epoch": 2}]
    second.log("wandb", 2, {"recall": 0.6})
    second.__exit__(ValueError)
    told = [json.loads(line) for line in wandb.read_text().splitlines()]
    assert [what for what, _ in told] == ["init", "log", "finish"] * 2
    one, other = (value for what, value in told if what == "init")
    assert one["id"] == other["id"]
    assert one["resume"] == "allow"
    assert (one["dir"], one["name"], one["group"]) == (str(trial), "fridge-0003", "fridge")
    assert (one["project"], other["project"]) == ("trainer-object-detection", "mine")
    assert told[1][1] == {"epoch": 1, "recall": 0.5, "trainer/global_step": 1}
    assert [value for what, value in told if what == "finish"] == [0, 1]


@pytest.mark.usefixtures("wandb")
def test_wandb_without_an_account_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(TrackingError, match="api_key not configured; run `wandb login`, or set WANDB_MODE"):
        opened(tmp_path)


def test_a_damaged_note_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "loggers.json").write_text('{"csv": 3}')
    with pytest.raises(RunError, match=r"loggers\.json: cannot be read: .*if you delete it"):
        opened(tmp_path)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    wanted = trainer.Job(task="object-detection", training_data="a.jsonl", loggers=["tensorboard", "csv"])
    with Loggers(wanted, Run(tmp_path), is_rank_zero=False) as other:
        assert list(other.by_name) == ["tensorboard", "csv"]  # for callbacks that look for one
    assert not list(tmp_path.iterdir())
