"""Names of the user's callbacks: what they say, and that reading them runs nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.errors import JobError
from trainer.job import callback_path
from trainer.job.callback_path import CallbackPath, parse
from trainer.job.job import Job


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mine:Freeze", CallbackPath("mine", "Freeze")),
        (" my.package.callbacks:Outer.Inner ", CallbackPath("my.package.callbacks", "Outer.Inner")),
        ("mine:Freeze()", CallbackPath("mine", "Freeze")),
        ('mine:Freeze(3, epochs=[1, 2], name="a:b")',
         CallbackPath("mine", "Freeze", (3,), {"epochs": [1, 2], "name": "a:b"})),
        ("mine:Freeze(rate=-0.5, on=None)", CallbackPath("mine", "Freeze", (), {"rate": -0.5, "on": None})),
    ],
)  # fmt: skip
def test_parse_reads_module_class_and_arguments(text: str, expected: CallbackPath) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "mine", "mine:", ":Freeze", "mine.Freeze", "mine:Freeze(", "my-module:Freeze", "mine:1",
        "mine:Freeze(epochs)", "mine:Freeze(exit())", "mine:Freeze(**{'a': 1})", "mine:Freeze()()",
        "mine:(lambda: 1)()", "mine:Freeze[0]", "a/b.py:Freeze",
    ],
)  # fmt: skip
def test_parse_rejects_other_forms(text: str) -> None:
    with pytest.raises(ValueError, match="must be MODULE:CLASS or"):
        parse(text)


def job(**values: Any) -> Job:
    return Job.of(task="image-classification", training_data="a.jsonl", **values)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("csv", ("csv",)),
        ("TensorBoard, csv", ("tensorboard", "csv")),
        (["wandb", "wandb"], ("wandb",)),
        ([], ()),
    ],
)
def test_loggers_are_one_name_or_several(given: Any, expected: tuple[str, ...]) -> None:
    assert job(loggers=given).loggers == expected


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"loggers": "comet"}, "loggers: .*'tensorboard', 'wandb' or 'csv'"),
        ({"loggers": [{"csv": 1}]}, "loggers: "),
        ({"loggers": {"csv": 1}}, "loggers: "),
        ({"callbacks": "mine.Freeze"}, "callbacks: must be MODULE:CLASS"),
        ({"callbacks": [3]}, "callbacks: "),
    ],
)
def test_wrong_names_are_errors_of_the_job(values: dict[str, Any], text: str) -> None:
    with pytest.raises(JobError, match=text):
        job(**values)


def test_job_files_and_trials_keep_loggers_and_callbacks(tmp_path: Path) -> None:
    callback = "mine:Freeze(epochs=3)"
    sweep = job(
        loggers="tensorboard",
        callbacks=callback,
        search_space={"learning_rate": "uniform(0.001, 0.01)"},
        limits={"max_trials": 2},
    )
    file = tmp_path / "job.yaml"
    for each in (sweep, sweep.for_trial({"learning_rate": 0.005})):
        file.write_text(each.to_yaml(), "utf-8")
        assert yaml.safe_load(file.read_text("utf-8"))["local"]["callbacks"] == [callback]
        again = Job.read(file)
        assert (again.loggers, again.callbacks) == (("tensorboard",), (callback,))
    assert "loggers" not in job().to_dict()["local"]


def test_other_processes_find_the_modules_next_to_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/one:/two")
    monkeypatch.setattr(sys, "path", ["/script", "/two"])
    assert callback_path.search_path() == {"PYTHONPATH": "/one:/two:/script"}
    monkeypatch.setattr(sys, "path", [str(Path(sys.executable).parent)])
    assert callback_path.search_path() == {"PYTHONPATH": "/one:/two"}
