"""The commands as users meet them: what is printed, where, with which exit code, and how fast."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

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
HEAVY = ("torch", "torchvision", "lightning", "mlflow", "timm", "ultralytics")


def trainer(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own, in a terminal wide enough to search its help.

    Args:
        variables: environment variables.
    """
    code = "from trainer.cli import main; main()"
    environment = {**os.environ, "COLUMNS": "300", "PYTHONIOENCODING": "utf-8", **variables}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def libraries_loaded_by(*arguments: object) -> tuple[list[str], str]:
    """The slow libraries that a command imports, and what it prints, its error included."""
    code = (
        "import sys, trainer.cli as cli\n"
        "try:\n    cli.main()\n"
        "finally:\n"
        f"    print('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip
    printed, _, loaded = done.stdout.rpartition("loaded:")
    return loaded.split(), printed + done.stderr


def write_lines(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small detection set, made by the command."""
    folder = tmp_path_factory.mktemp("data") / "작은 숫자"
    done = trainer("sample-data", "object-detection", folder, "--images", 10)
    assert done.returncode == 0, done.stderr
    assert str(folder / "train.jsonl") in done.stdout
    typed = shlex.quote(str(folder / "train.jsonl"))
    assert f"trainer fit --task object-detection --data {typed}" in done.stdout
    return folder


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
    assert "[default: 15; 30 for YOLO models, RT-DETRs and RF-DETRs]" in text
    assert "yolov5. One of small, medium, large, extra_large. Only yolov5. [default: medium]" in text
    assert "One of sgd, adam, adamw. [default: sgd" in text
    for name, info in Job.model_fields.items():
        if name not in ("settings", "limits", "sweep", "search_space", "ignored_keys"):
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
    assert job.settings["training_batch_size"] == meant  # so it stands in the run's job file
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


@pytest.mark.fresh_processes
def test_validate_summarises_valid_data_without_torch(digits: Path) -> None:
    loaded, printed = libraries_loaded_by(
        "validate",
        digits / "train.jsonl",
        digits / "validation.jsonl",
        "--task",
        "object-detection",
        "--images",
    )
    assert loaded == []
    assert printed.startswith("10 images, ")
    done = trainer("validate", "--data", digits / "train.jsonl", "--task", "image_object_detection")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("8 images, ")


def test_validate_prints_every_problem(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(digits / "images")
    box = {"label": "one", "topX": 0.1, "topY": 0.1, "bottomX": 0.5, "bottomY": 0.5}
    images = [f"images/train/{i:05}.jpg" for i in range(5)]
    path = write_lines(
        tmp_path / "데이터.jsonl",
        {"image_url": images[0], "label": [box]},
        "{not json",
        {"image_url": images[1], "label": [box | {"bottomX": 37}]},
        {"image_url": images[2], "label": [box | {"topX": 0.7}]},
        {"image_url": "images/없음.jpg", "label": []},
        {"image_url": images[3], "label": "one"},
        {"image_url": images[4]},
    )
    done = trainer("validate", path, "--task", "object-detection")
    assert done.returncode == 1
    assert done.stderr == ""
    for line in range(2, 8):
        assert f"{path}:{line}: " in done.stdout, line
    assert not any(line.strip().startswith(f"{path}:1: ") for line in done.stdout.splitlines())
    assert "label[0].bottomX" in done.stdout
    assert "pixels" in done.stdout
    assert "1 images" in done.stdout


def test_class_names_outside_the_terminals_encoding_are_escaped(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "wrong.jsonl", {"image_url": "a.png", "label": ["사과 🍌"]})
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "validate", str(path), "--task", "image-classification"],
        capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert "\\uc0ac\\uacfc \\U0001f34c" in done.stdout


def test_validate_succeeds_with_warnings(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(digits / "images")
    line = {"image_url": "images/train/00000.jpg", "label": [], "colour": "red"}
    path = write_lines(tmp_path / "train.jsonl", line)
    done = trainer("validate", path, "--task", "object-detection")
    assert "warning: " in done.stdout
    assert "colour" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("missing.jsonl", "--task", "object-detection"),
        ("missing.jsonl", "--task", "nonsense"),
        ("missing.jsonl", "--task", "object-detection", "--datastore", "blob"),
    ],
)
def test_validate_fails_for_missing_input(arguments: tuple[str, ...]) -> None:
    done = trainer("validate", *arguments)
    assert done.returncode == 1
    assert arguments[-1] in done.stdout + done.stderr or arguments[0] in done.stdout


def test_validate_maps_datastores(digits: Path, tmp_path: Path) -> None:
    url = "azureml://subscriptions/1/datastores/blob/paths/images/train/00000.jpg"
    path = write_lines(tmp_path / "train.jsonl", {"image_url": url, "label": []})
    unmapped = trainer("validate", path, "--task", "object-detection")
    assert unmapped.returncode == 1
    assert "--datastore blob=DIR_OR_URL" in unmapped.stdout
    mapped = trainer(
        "validate", path, "--task", "object-detection", "--datastore", f"blob={digits}", "--images"
    )
    assert f"{path}:1: " not in mapped.stdout
    assert mapped.stdout.rstrip().splitlines()[-1].startswith("1 images")


def test_real_data_as_azure_users_hold_them_are_valid(shared_data: Path) -> None:
    folder = shared_data / "fridge_azure"
    tables = sorted(path.parent for path in folder.glob("*/MLTable"))
    store = f"workspaceblobstore={folder / 'datastore'}"
    done = trainer("validate", *tables, "--task", "object-detection", "--datastore", store, "--images")
    assert done.returncode == 0, done.stdout
    assert "6 images" in done.stdout


@pytest.mark.fresh_processes
def test_models_are_listed_for_all_tasks_or_one() -> None:
    loaded, printed = libraries_loaded_by("models")
    assert loaded == []
    rows = {line.split()[0]: " ".join(line.split()) for line in printed.splitlines() if line.strip()}
    tasks = "image-classification, image-classification-multilabel"
    licences = "timm, Apache-2.0 ImageNet-1k; Apache-2.0"
    assert rows["resnet18"] == f"resnet18 {tasks} 11.7 M 224 {licences} no"
    assert rows["fasterrcnn_resnet50_fpn"].startswith(
        "fasterrcnn_resnet50_fpn object-detection 41.8 M 600–1333 torchvision, BSD-3-Clause COCO; "
    )
    assert rows["yolo11x"] == "yolo11x object-detection 57.0 M 640 ultralytics, AGPL-3.0 COCO; AGPL-3.0 no"
    assert rows["timm/NAME"].startswith(f"timm/NAME {tasks} timm, Apache-2.0")
    for size in ("small", "medium", "large", "extra_large"):
        assert f" yolov5 --model-size {size} " in printed
    loaded, printed = libraries_loaded_by("models", "--task", "image_instance_segmentation")
    assert loaded == []
    assert "maskrcnn_resnet50_fpn (default)" in printed
    assert "fasterrcnn" not in printed
    wrong = trainer("models", "--task", "segmentation")
    assert (wrong.returncode, wrong.stdout) == (1, "")


@pytest.mark.fresh_processes
def test_models_answers_within_a_second() -> None:
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert trainer("models", COVERAGE_PROCESS_CONFIG="").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 1, times


@pytest.mark.fresh_processes  # where weights are is read on import
def test_models_shows_which_weights_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here() -> dict[str, str]:
        lines = trainer("models").stdout.splitlines()
        return {line.split()[0]: line.split()[-1] for line in lines if line.strip()}

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    (tmp_path / "torch/hub/checkpoints/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth").touch()
    repository = tmp_path / "hub/models--timm--resnet18.a1_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0123", encoding="utf-8")
    (repository / "snapshots/0123").mkdir(parents=True)
    (repository / "snapshots/0123/model.safetensors").touch()
    (tmp_path / "가중치").mkdir()
    (tmp_path / "가중치/yolo11n.pt").touch()
    monkeypatch.setenv("TRAINER_WEIGHTS", str(tmp_path / "가중치"))
    found = here()
    assert found["fasterrcnn_resnet50_fpn"] == found["resnet18"] == "cache"
    assert found["yolo11n"] == "TRAINER_WEIGHTS"
    assert found["resnet34"] == found["yolo11s"] == found["fasterrcnn_resnet18_fpn"] == "no"


def test_weights_prints_file_and_destination() -> None:
    done = trainer("weights", "--model", "resnet18")
    assert (done.returncode, done.stderr) == (0, "")
    assert "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors" in done.stdout
    assert "trainer fit --task image-classification --model resnet18 --weights weights" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "yolo1n"), "did you mean yolo11n"),
        (("--model", "resnet18", "--task", "object-detection"), "not for object-detection"),
        (("--model", "가나다"), "`trainer models` lists the names"),
        ((), "--model"),
    ],
)
def test_weights_rejects_unknown_models(arguments: tuple[str, ...], said: str) -> None:
    done = trainer("weights", *arguments)
    assert done.returncode not in (0, None)
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize("task", Task)
def test_sample_data_are_valid_data(task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    made = trainer("sample-data", task, folder, "--images", 6, "--seed", 3)
    assert made.returncode == 0, made.stderr
    checked = trainer(
        "validate", folder / "train.jsonl", folder / "validation.jsonl", "--task", task, "--images"
    )
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.splitlines()[-1] != ""
    assert "6 images" in checked.stdout


def test_sample_data_never_overwrites(digits: Path) -> None:
    before = (digits / "train.jsonl").read_bytes()
    done = trainer("sample-data", "object-detection", digits)
    assert done.returncode == 1
    assert str(digits) in done.stderr
    assert (digits / "train.jsonl").read_bytes() == before


def test_datastore_pairs_become_a_mapping() -> None:
    assert mapping(["b=x=y", "c=z"]) == {"b": "x=y", "c": "z"}
    assert mapping(None) == {}
    with pytest.raises(JobError, match="must be NAME=DIR_OR_URL, got c"):
        mapping(["b=x", "c"])
