"""The public names of the package, and how type checkers see them."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import trainer
from trainer import api

EXAMPLE = """\
from pathlib import Path

import trainer

job = trainer.Job(task="object-detection", training_data="train.jsonl", model="yolo11n")
run: trainer.Run = trainer.fit(job)
print(run.read_result().value, run.model)
trainer.resume(run.directory, {"number_of_epochs": 60}, limits={"timeout_minutes": 30})

task: trainer.Task = job.task
paths: tuple[str, ...] = job.training_data
folder: Path | None = job.output
trainer.Job(
    task=trainer.Task.DETECTION,
    training_data=[Path("one.jsonl"), "two"],
    validation_data=Path("validation.jsonl"),
    output="runs/one",
    limits={"max_trials": 10},
    sweep={"sampling_algorithm": "random"},
    search_space=[{"model_name": "yolo11n", "learning_rate": "uniform(0.001, 0.01)"}],
    settings={"number_of_epochs": 5},
)
read: trainer.Job = trainer.Job.read("job.yml", gpus=2)
print(trainer.validate("object-detection", "train.jsonl").summary)

errors: int = trainer.validate("object-detection", "train.jsonl", Path("validation.jsonl")).errors
evaluation = trainer.evaluate(run, data="test.jsonl", slice_by=["camera"])
metrics: dict[str, float] = evaluation.metrics
version: str = trainer.__version__
try:
    trainer.fit(job)
except trainer.TrainerError as error:
    print(error)
"""
WRONG = {
    'trainer.train("train.jsonl")': "attr-defined",
    'trainer.Job(task=3, training_data="a")': "arg-type",
    'trainer.Job(task="object-detection")': "call-arg",
    'trainer.Job(task="object-detection", training_data="a", learning_rate=0.1)': "call-arg",
    'trainer.fit(trainer.Job(task="object-detection", training_data="a"), packages=False)': "call-arg",
    'trainer.evaluate("run", data="a", unknown_classes="ignore")': "arg-type",
}


def test_every_public_name_can_be_imported() -> None:
    names = ["Job", "Run", "Task", "TrainerError", "evaluate", "fit", "resume", "validate"]
    assert trainer.__all__ == sorted([*names, "__version__"])
    assert all(getattr(trainer, name).__name__ == name for name in names)
    assert trainer.__version__ == api.__version__


def test_public_functions_take_no_arbitrary_options_and_document_their_arguments() -> None:
    for function in (trainer.fit, trainer.resume, trainer.evaluate, trainer.validate):
        parameters = inspect.signature(function).parameters
        assert all(each.kind is not each.VAR_KEYWORD for each in parameters.values())
        documented = inspect.getdoc(function) or ""
        assert "Raises:" in documented
        undocumented = [name for name in parameters if name != "job" and f"{name}" not in documented]
        assert undocumented == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'trainer' has no attribute 'train'"):
        _ = trainer.train


def test_importing_the_public_names_loads_no_model_library() -> None:
    code = (
        "import sys, trainer\n"
        "trainer.Job, trainer.Run, trainer.fit, trainer.resume, trainer.evaluate, trainer.validate\n"
        "print(*({'torch', 'lightning', 'timm', 'mlflow', 'optuna'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_type_checker_accepts_documented_calls_and_rejects_wrong_ones(tmp_path: Path) -> None:
    assert (Path(trainer.__file__).parent / "py.typed").exists()
    config = tmp_path / "mypy.ini"
    # Only these packages are read: with torch it would take a minute.
    config.write_text(
        "[mypy]\nfollow_imports = skip\nstrict = true\n"
        "[mypy-trainer.*,pydantic.*,pydantic_core.*]\nfollow_imports = silent\n",
        encoding="utf-8",
    )
    script = tmp_path / "script.py"
    script.write_text(EXAMPLE + "".join(f"{call}\n" for call in WRONG), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(config), str(script)],
        capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "MYPYPATH": str(Path(trainer.__file__).parents[1])},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    first = EXAMPLE.count("\n") + 1
    expected = {first + i: code for i, code in enumerate(WRONG.values())}
    found = {int(line.split(":")[1]): line for line in lines if ": error: " in line}
    assert found.keys() == expected.keys(), done.stdout
    assert all(f"[{code}]" in found[number] for number, code in expected.items()), done.stdout
