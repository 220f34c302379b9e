"""The examples in README.md and docs/ run: commands on a small data set, Python as it is printed."""

from __future__ import annotations

import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import trainer
from serving.payload import parse_rows
from tests.conftest import ROOT, needs_library
from trainer import cli
from trainer.data.reading.jsonl import read
from trainer.data.samples import make
from trainer.job.job import Job
from trainer.models.augmentation.pipeline import load
from trainer.tasks import Task

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = {"image_size": 64, "number_of_epochs": 1, "training_batch_size": 4, "number_of_workers": 0}
MODEL = "yolo11n"
"""For the examples that name none, because it trains faster than the default."""
NEED_MORE = (
    "serve",
    "worker",
    "torchrun",
    "--storage",
    "--nodes",
    "--xai-parameters",
    "--gpus",
    "workspaceblobstore",
)
"""Commands with these words are only parsed here; tests of serving, sweeps and explanations run them."""


def commands(page: Path) -> Iterator[str]:
    """The `trainer` commands in a page's indented blocks, without comments; continued lines are joined."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    start = r"^ {4}(?:[A-Z_]+=\S+ +)*(?:torchrun .*-m +|docker run .*IMAGE )?trainer "
    for command in re.findall(f"{start}(.*)$", text, re.MULTILINE):
        yield " ".join(command.split("  #")[0].split())


COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples name, and a finished run in runs/one and runs/two."""
    needs_library("ultralytics")
    folder = tmp_path_factory.mktemp("docs")
    sample = make(Task.DETECTION, folder, images=12, seed=0)
    sample.validation.rename(folder / "validation.jsonl")
    lines = (folder / "validation.jsonl").read_text("utf-8")
    (folder / "test.jsonl").write_text(lines.replace("{", '{"camera": "left", ', 1), "utf-8")
    photo = next((folder / "images").rglob("*.*"))
    (folder / "photo.jpg").write_bytes(photo.read_bytes())
    job = Job(
        task="object-detection",
        training_data=folder / "train.jsonl",
        validation_data=folder / "validation.jsonl",
        model="yolo11n",
        weights="none",
        gpus=0,
        settings=dict(TINY),
        tracking_uri="none",
    )
    trainer.fit(job.model_copy(update={"output": folder / "runs" / "one"}))
    shutil.copytree(folder / "runs" / "one", folder / "runs" / "two")
    asset = job.to_yaml().replace(str(folder / "train.jsonl"), "azureml:fridge-items:1")
    (folder / "job.yml").write_text(asset, "utf-8")
    callback = "class UnfreezeAt(Callback):\n    def __init__(self, epoch):\n        self.epoch = epoch\n"
    (folder / "my_callbacks.py").write_text(f"from lightning import Callback\n\n\n{callback}", "utf-8")
    table = folder / "data" / "fridge"
    table.mkdir(parents=True)
    (table / "images").symlink_to(folder / "images")
    shutil.copy(folder / "train.jsonl", table)
    text = "paths:\n- file: ./train.jsonl\ntransformations:\n- read_json_lines: {}\ntype: mltable\n"
    (table / "MLTable").write_text(text, "utf-8")
    return folder


def test_pages_have_commands() -> None:
    assert len(COMMANDS) > 30


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_command_is_one_that_the_program_takes(page: str, command: str) -> None:
    cli.app.parse_args(shlex.split(command), print_error=False, exit_on_error=False)


@pytest.mark.slow
def test_readme_commands_run_one_after_the_other(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("TRAINER_WEIGHTS", "none")
    ran = []
    for page, command in COMMANDS:
        if page != "README.md" or any(word in command for word in NEED_MORE):
            continue
        words = shlex.split(command.replace("runs/…", "runs/one"))
        if words[:2] == ["fit", "--resume"]:
            words = [*words[:3], f"--number-of-epochs={2 + len(ran)}"]  # the run is finished: more epochs
        elif words[0] == "fit" and "--dry-run" not in words:
            given = " ".join(words)
            tiny = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
            tiny += [f"--model={MODEL}"] if "--config" not in words else []
            words += [flag for flag in tiny if flag.partition("=")[0] not in given]
            words += ["--gpus=0", "--tracking-uri=none"]
        if "--config" in words and "--data-asset" not in words:
            words += ["--data-asset", "fridge-items=data/fridge"]
        if "configs/" in command or "--max-trials" in words or "answers.jsonl" in words:
            continue  # tests/job/test_configs.py, tests/automode and tests/evaluating run these
        if words[:2] == ["fit", "--resume"] and ran.count(words):
            continue
        if words[0] == "export":
            needs_library("onnx")
        exit_code = cli.app(words, exit_on_error=False, result_action="return_value")
        assert exit_code in (0, None), command
        ran.append(words)
    capsys.readouterr()
    assert {words[0] for words in ran} >= {"validate", "fit", "predict", "report", "evaluate", "export"}


@pytest.mark.slow
def test_readme_python_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert code
    quick = {"model": MODEL, "settings": TINY, "weights": "none", "gpus": 0, "tracking_uri": "none"}
    monkeypatch.setattr(trainer, "Job", partial(Job, **quick), raising=False)
    for block in code:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize(
    "command",
    [
        command
        for page, command in COMMANDS
        if page in ("augmentation.md", "data.md") and command.startswith(("fit ", "validate "))
    ],
)
def test_command_of_a_page_runs(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("TRAINER_WEIGHTS", "none")
    (workplace / "own.yaml").write_text(augmentation_example(), "utf-8")
    words = shlex.split(command) + (["--dry-run"] if command.startswith("fit ") else [])
    assert cli.app(words, exit_on_error=False, result_action="return_value") in (0, None)
    capsys.readouterr()


def augmentation_example() -> str:
    """The file that docs/augmentation.md shows."""
    page = (ROOT / "docs" / "augmentation.md").read_text("utf-8")
    (block,) = re.findall(r"^ {4}replaces: .*\n(?: {4}.*\n)+", page, re.MULTILINE)
    return textwrap.dedent(block)


def test_augmentation_pages_file_is_loaded_for_every_task(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(augmentation_example(), "utf-8")
    for task in Task:
        load(file, task)


def test_data_page_tables_are_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "data.md").read_text("utf-8")
    of_lines, of_folders = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    sample = make(Task.CLASSIFICATION, tmp_path, images=4, seed=0)
    (tmp_path / "MLTable").write_text(of_lines, "utf-8")
    table = read([str(tmp_path)], Task.CLASSIFICATION)
    assert table.problems == []
    assert len(table.records) == len(sample.train.read_text("utf-8").splitlines())
    folder = tmp_path / "table"
    for name in ("can", "carton"):
        (folder / "images" / name).mkdir(parents=True)
        shutil.copy(next((tmp_path / "images").rglob("*.*")), folder / "images" / name)
    (folder / "MLTable").write_text(of_folders, "utf-8")
    table = read([str(folder)], Task.CLASSIFICATION)
    assert table.problems == []
    assert table.records.classes == ("can", "carton")


def test_explanations_page_row_asks_for_an_explanation() -> None:
    page = (ROOT / "docs" / "explanations.md").read_text("utf-8")
    (text,) = re.findall(r'^ {4}(\{"image_base64".*\n.*\})$', page, re.MULTILINE)
    (row,) = parse_rows([text.replace("…", "iVBORw0KGgo=")], Task.CLASSIFICATION)
    assert row.explanation is not None
    assert row.explanation.xai_algorithm == "xrai"


def test_serving_pages_container_copies_what_exists() -> None:
    page = (ROOT / "docs" / "serving.md").read_text("utf-8")
    copied = re.findall(r"^COPY (.*) \S+$", page, re.MULTILINE)
    files = [ROOT / name for names in copied for name in names.split() if name != "model"]
    assert len(files) >= 5
    assert all(file.exists() for file in files)


def test_data_page_lines_follow_the_schema(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "data.md").read_text("utf-8")
    lines = re.findall(r'^ {4}(\{"image_url".*\})$', page, re.MULTILINE)
    assert len(lines) == len(Task)
    for task, line in zip(Task, lines, strict=True):
        file = tmp_path / f"{task}.jsonl"
        file.write_text(line + "\n", "utf-8")
        assert read([str(file)], task).problems == []
