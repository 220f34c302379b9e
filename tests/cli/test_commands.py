"""The commands as users meet them: what is printed, where, with which exit code, and how fast."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.program import libraries_loaded_by, trainer
from trainer import cli, settings
from trainer.cli.arguments import Hyperparameters, flag_of, mapping
from trainer.errors import JobError
from trainer.fields import help_text
from trainer.job.job import Job
from trainer.job.sweep import Limits
from trainer.settings import Settings
from trainer.tasks import Task

pytestmark = pytest.mark.usefixtures("warm_processes")

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.fresh_processes
def test_help_answers_within_half_a_second() -> None:
    times = [float("inf")]
    for _ in range(15):
        if min(times) < 0.5:
            break  # on a busy machine even CPU time goes up and down
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert trainer("--help", COVERAGE_PROCESS_CONFIG="").returncode == 0  # not slowed by coverage
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5, times


@pytest.mark.fresh_processes
def test_help_lists_the_commands_and_imports_no_library_of_models() -> None:
    loaded, printed = libraries_loaded_by("--help")
    assert loaded == []
    for command in ("fit", "validate", "predict", "serve", "sample-data", "models", "weights"):
        assert f" {command} " in printed


def test_help_all_shows_every_flag_with_names_default_and_models() -> None:
    done = trainer("fit", "--help-all")
    assert done.returncode == 0
    text = " ".join(done.stdout.replace("│", " ").split())
    for name, info in Settings.model_fields.items():
        for each in (name, *settings.aliases_of(name)):
            assert f"--{each.replace('_', '-')} " in text, each
        assert settings.group_of(name) in text
        assert help_text(info)[:40] in text, name
    assert "[default: 15; 30 for YOLO models, RT-DETRs, DETRs and mask transformers]" in text
    assert "yolov5. One of small, medium, large, extra_large. Only yolov5. [default: medium]" in text
    assert "One of sgd, adam, adamw. [default: sgd" in text
    hidden = ("default_recipe", "substitutes", "ignored_keys", "listed_settings")
    for name, info in Job.model_fields.items():
        if name not in (*hidden, "settings", "limits", "sweep", "search_space"):
            assert f"{flag_of(name)} " in text
            assert help_text(info)[1:40] in text, name
    for name in Limits.model_fields:
        assert f"--{name.replace('_', '-')} " in text
    for flag in ("--config", "--resume", "--dry-run", "--check-data"):
        assert f"{flag} " in text
    assert "--no-dry-run" not in text
    assert "such as 3x2, or none;" in text  # a request may turn off a model's own tiles
    assert "--empty-data" not in text


def test_help_of_fit_fits_two_screens() -> None:
    done = trainer("fit", "--help", COLUMNS="100")
    lines = done.stdout.splitlines()
    assert len(lines) <= 80
    flags = [line.split()[0] for line in lines if line.startswith("  --")]
    assert len(flags) <= 31
    text = " ".join(done.stdout.split())
    assert (
        "--number-of-epochs INT Number of passes over the training data. [default: depends on the model]"
        in text
    )
    assert "--optimizer STR Optimizer. One of sgd, adam, adamw." in text
    assert "--[no-]early-stopping Stop when the primary metric no longer improves. [default: true]" in text


@pytest.mark.parametrize("command", ["validate", "predict", "serve", "sample-data", "models", "weights"])
def test_every_command_has_help(command: str) -> None:
    done = trainer(command, "--help")
    assert done.returncode == 0
    assert f"trainer {command}" in done.stdout


def test_help_of_predict_says_how_to_turn_tiling_off() -> None:
    assert "such as 3x2, or none" in trainer("predict", "--help").stdout


def test_help_names_the_tasks_after_each_commands_own_words() -> None:
    for command, words in (
        ("fit", "The task to train for."),
        ("evaluate", "Task of the --predictions."),
        ("models", "List only the models for this task."),
    ):
        text = " ".join(trainer(command, "--help").stdout.replace("│", " ").split())
        assert f"{words} One of {', '.join(Task)}" in text


@pytest.mark.parametrize(
    "command",
    ["fit", "validate", "evaluate", "report", "predict", "serve", "export", "worker", "sample-data"],
)
def test_examples_in_help_are_indented(command: str) -> None:
    lines = trainer(command, "--help").stdout.splitlines()
    examples = [line for line in lines if line.lstrip().startswith(f"trainer {command} ")]
    assert examples
    assert all(line.startswith("    ") for line in examples)


def test_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert trainer("--version").stdout.strip() == version("image-trainer")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("frobnicate",), "frobnicate"),
        (("fit", "--modle", "yolo11n"), "--model"),
        (("fit", "--learning-rte", "1"), "--learning-rate"),
        (("fit", "--learning-rate", "fast"), "--learning-rate"),
        (("fit", "--number-of-epochs", "1.5"), "--number-of-epochs: must be a whole number"),
        (("fit", "--random-seed", "seven"), "--random-seed"),
        (("fit", "--processes", "1.5"), "--processes: must be a whole number"),
        (("serve", "run", "--port", "80.5"), "--port: must be a whole number"),
        (("sample-data", "object-detection", "data", "--images", "nan"), "--images: must be a whole number"),
        (("validate", "data.jsonl"), "--task"),
        (("sample-data", "object-detection"), "DIRECTORY"),
    ],
)
def test_wrong_arguments_are_rejected_and_named(arguments: tuple[str, ...], said: str) -> None:
    done = trainer(*arguments)
    assert done.returncode not in (0, None)
    assert said in done.stdout + done.stderr


def test_fit_without_task_and_data_asks_for_both() -> None:
    done = trainer("fit")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: the job cannot be run:")
    assert "--task: must be given" in done.stderr
    assert "--data: must be given" in done.stderr


@pytest.mark.fresh_processes
def test_wrong_settings_are_all_reported_before_the_slow_imports() -> None:
    loaded, printed = libraries_loaded_by(
        "fit", "--task", "object-detection", "--model", "yolo11n", "--data", "none.jsonl",
        "--learning-rate", "nan", "--min-size", "600", "--number-of-epochs", "0", "--optimizer", "lion",
        "--advanced-settings", "{",
    )  # fmt: skip
    assert loaded == []
    assert "error: the settings cannot be used:" in printed
    for said in (
        "learning_rate: input should be a finite number",
        "min_size: applies only to R-CNNs, not to yolo11n; remove it",
        "number_of_epochs: input should be greater than 0, got 0",
        "optimizer: input should be 'sgd', 'adam' or 'adamw', got 'lion'",
        "advanced_settings: must be a JSON object",
    ):
        assert said in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--task", "object_detecton"), "object-detection"),
        (("--task", "object-detection", "--model", "yolov11n"), "did you mean yolo11n"),
        (("--task", "object-detection", "--model", "resnet18"), "not for object-detection"),
        (("--task", "object-detection", "--datastore", "blob"), "must be NAME=DIR_OR_URL, got blob"),
        (("--task", "object-detection", "--datastore", "=dir"), "must be NAME=DIR_OR_URL, got =dir"),
        (("--task", "object-detection", "--datastore", "blob="), "must be NAME=DIR_OR_URL, got blob="),
        (
            ("--task", "object-detection", "--gpus", "two"),
            "gpus: must be auto, 0 for the CPU, or a number of GPUs, got 'two'",
        ),
        (
            ("--task", "object-detection", "--gpus=-1"),
            "gpus: must be auto, 0 for the CPU, or a number of GPUs, got -1",
        ),
        (
            ("--task", "object-detection", "--gpus", "²"),
            "gpus: must be auto, 0 for the CPU, or a number of GPUs, got '²'",
        ),
        (("--task", "object-detection", "--processes", "0"), "processes: input should be greater than 0"),
        (("--task", "object-detection", "--validation-data-size", "20"), "validation_data_size"),
        (
            ("--task", "object-detection", "--training-batch-size", "1.5"),
            "training_batch_size: must be a whole number greater than 0, or auto, got '1.5'",
        ),
        (("--config", "없는 파일.yml"), "없는 파일.yml"),
    ],
)
def test_wrong_flag_of_fit_is_an_error_without_a_traceback(arguments: tuple[str, ...], said: str) -> None:
    done = trainer("fit", "--data", "train.jsonl", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr


class StoppedError(Exception):
    """Ends `fit` where the training would begin."""


def job_of(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    """The job that the flags of `fit` amount to; the command is stopped before it trains."""
    from trainer.job.job import Job

    caught: list[Job] = []

    def stop(job: Job, where: str = "") -> None:
        caught.append(job)
        raise StoppedError

    monkeypatch.setattr(Job, "resolve_settings", stop)
    with pytest.raises(StoppedError):
        cli.app(["fit", *map(str, arguments)], exit_on_error=False)
    monkeypatch.undo()
    return caught[0]


def test_flags_become_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(
        monkeypatch,
        "--task", "image_object_detection", "--data", "a.jsonl", "--data", "b",
        "--validation-data", "v.jsonl",
        "--model", "yolov5", "--gpus", "2", "--output", "out/실행", "--weights", "none", "--skip-invalid",
        "--datastore", "one=/mnt/a=b", "--datastore", "two=https://example.org/x",
        "--learning-rate", "1e-3", "--img-size", "320.0", "--no-nesterov", "--early-stopping=0",
        "--model-size", "xlarge", "--seed", "7", "--advanced-settings", '{"apply_mosaic_for_yolo": false}',
    )  # fmt: skip
    assert job.task is Task.DETECTION
    assert job.training_data == ("a.jsonl", "b")
    assert job.validation_data == ("v.jsonl",)
    assert job.datastores == {"one": "/mnt/a=b", "two": "https://example.org/x"}
    assert (job.model_name, job.gpus, job.output) == ("yolov5", 2, Path("out/실행"))
    assert (job.weights_choice, job.skip_invalid) == ("none", True)
    resolved = job.resolve_settings()
    assert (resolved.learning_rate, resolved.image_size, resolved.random_seed) == (0.001, 320, 7)
    assert (resolved.nesterov, resolved.early_stopping) == (False, False)
    assert resolved.model_size == "extra_large"
    assert not resolved.advanced_settings.apply_mosaic_for_yolo


@pytest.mark.parametrize(("typed", "meant"), [("16", 16), ("16.0", 16), ("auto", "auto")])
def test_a_batch_size_is_a_number_or_auto(
    monkeypatch: pytest.MonkeyPatch, typed: str, meant: int | str
) -> None:
    data = ("--task", "image-classification", "--data", "a.jsonl")
    job = job_of(monkeypatch, *data, "--training-batch-size", typed)
    assert job.settings["training_batch_size"] == meant  # so it is in the run's job file
    assert job.resolve_settings().training_batch_size == meant


def test_flags_not_given_leave_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(monkeypatch, "--task", "image-classification", "--data", "a.jsonl")
    assert job.settings == {}
    assert (job.model_name, job.gpus, job.weights_choice) == ("seresnext", "auto", "pretrained")
    assert not job.skip_invalid


def test_flags_override_the_job_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "job.yml"
    content = {
        "task": "image_object_detection",
        "training_data": {"path": "train.jsonl", "type": "mltable"},
        "validation_data_size": 0.3,
        "training_parameters": {"model_name": "yolov5", "lr_scheduler": "step", "img_size": 320, "seed": 1},
        "local": {"weights": "none", "datastores": {"one": "/a", "two": "/b"}, "skip_invalid": True},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    job = job_of(
        monkeypatch, "--config", path, "--model", "yolo11n", "--learning-rate-scheduler", "warmup_cosine",
        "--image-size", "64", "--datastore", "two=/c", "--no-skip-invalid",
    )  # fmt: skip
    assert job.training_data == (str(tmp_path / "train.jsonl"),)
    assert (job.model_name, job.validation_data_size, job.skip_invalid) == ("yolo11n", 0.3, False)
    assert job.datastores == {"one": "/a", "two": "/c"}
    resolved = job.resolve_settings()
    assert (resolved.learning_rate_scheduler, resolved.image_size) == ("warmup_cosine", 64)
    assert resolved.random_seed == 1


@pytest.mark.parametrize("task", Task)
def test_config_takes_other_data(monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    job = job_of(monkeypatch, "--config", CONFIGS / f"{task}.yml", "--data", "mine.jsonl")
    assert (job.task, job.training_data) == (task, ("mine.jsonl",))
    assert job.resolve_settings().number_of_epochs == 15


def test_every_setting_has_a_flag() -> None:
    from dataclasses import fields

    assert [field.name for field in fields(Hyperparameters)] == list(Settings.model_fields)


def test_too_many_gpus_are_rejected_with_the_number_available(digits: Path, tmp_path: Path) -> None:
    done = trainer(
        "fit", "--task", "object-detection", "--data", digits / "train.jsonl", "--gpus", 999,
        "--weights", "none", "--output", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 1
    assert "--gpus: asks for too many, got 999, but this machine has " in done.stderr
    assert not (tmp_path / "run").exists()


def test_datastore_pairs_become_a_mapping() -> None:
    assert mapping(["b=x=y", "c=z"]) == {"b": "x=y", "c": "z"}
    assert mapping(None) == {}
    with pytest.raises(JobError, match="must be NAME=DIR_OR_URL, got c"):
        mapping(["b=x", "c"])
    with pytest.raises(JobError, match="b: is x already, got y; keep one of them"):
        mapping(["b=x", "b=y"])
