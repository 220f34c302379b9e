"""`trainer fit --dry-run`: what a job would do, without doing it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from trainer import cli
from trainer.data.samples import make
from trainer.errors import JobError
from trainer.job.job import Job
from trainer.tasks import Task

HEAVY = ("torch", "torchvision", "lightning", "mlflow", "timm", "ultralytics")
JOB: dict[str, Any] = {
    "type": "automl",
    "compute": "azureml:gpu-cluster",
    "task": "image_object_detection",
    "training_data": {"path": "train", "type": "mltable"},
    "limits": {"timeout_minutes": 60, "max_trials": 10, "max_concurrent_trials": 2},
    "training_parameters": {"number_of_epochs": 4, "min_size": 500, "random_seed": 7},
    "sweep": {
        "sampling_algorithm": "random",
        "early_termination": {"type": "bandit", "slack_factor": 0.2, "evaluation_interval": 2},
    },
    "search_space": [
        {
            "model_name": "yolov5",
            "learning_rate": "uniform(0.001, 0.01)",
            "model_size": "choice('small','medium')",
        },
        {
            "model_name": {"type": "choice", "values": ["fasterrcnn_resnet50_fpn"]},
            "learning_rate": {"type": "uniform", "min_value": 0.0001, "max_value": 0.001},
            "optimizer": {"type": "choice", "values": ["sgd", "adam", "adamw"]},
        },
    ],
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "작업.yml"
    content = {key: value for key, value in (JOB | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[dict[str, Any], str]:
    """What it prints, read as YAML and as it is."""
    cli.app(["fit", "--dry-run", *map(str, arguments)], exit_on_error=False, result_action="return_value")
    printed = capsys.readouterr()
    assert printed.err == ""
    content = yaml.safe_load(printed.out)
    assert isinstance(content, dict)
    return content, printed.out


def test_job_space_and_first_trials_are_printed_as_yaml(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    content, printed = dry_run(capsys, "--config", path)
    assert list(content) == ["job", "search_space", "trials"]
    assert printed.startswith(f"# {path}: without effect here: compute\n")
    assert "without a seed" not in printed
    assert "&id" not in printed
    # The job as a file that runs again.
    again = tmp_path / "again.yml"
    again.write_text(yaml.safe_dump(content["job"], sort_keys=False), encoding="utf-8")
    jobs_read = [Job.read(each) for each in (path, again)]
    assert jobs_read[0].to_yaml() == jobs_read[1].to_yaml()
    # The space as it was understood.
    assert content["search_space"][0]["learning_rate"] == {
        "type": "uniform",
        "min_value": 0.001,
        "max_value": 0.01,
    }
    assert content["search_space"][0]["model_name"] == "yolov5"
    # The trials with what they would be trained with.
    assert [trial["trial"] for trial in content["trials"]] == [0, 1, 2, 3, 4]
    models = set()
    for trial in content["trials"]:
        settings, proposed = trial["training_parameters"], trial["proposed"]
        models.add(settings["model_name"])
        assert proposed.items() <= settings.items()
        assert (settings["number_of_epochs"], settings["random_seed"]) == (4, 7)
        if settings["model_name"] == "yolov5":
            assert 0.001 <= settings["learning_rate"] <= 0.01
            assert settings["model_size"] in ("small", "medium")
            assert "min_size" not in settings
        else:
            assert 0.0001 <= settings["learning_rate"] <= 0.001
            assert settings["min_size"] == 500
            assert "optimizer" in proposed
    assert models == {"yolov5", "fasterrcnn_resnet50_fpn"}


def test_seed_repeats_the_trials_and_its_absence_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    first, second, other = (
        dry_run(capsys, "--config", path, "--random-seed", seed)[0]["trials"] for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other
    _, printed = dry_run(capsys, "--config", write(tmp_path, training_parameters=None))
    assert "# without a seed, the sweep itself will draw other settings than these\n" in printed


def test_grid_ends_when_exhausted_or_at_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path,
        sweep={"sampling_algorithm": "grid"},
        search_space={"model_name": "yolo11n", "optimizer": "choice('sgd', 'adam', 'adamw')"},
        training_parameters=None,
    )
    content, printed = dry_run(capsys, "--config", path)
    assert [trial["proposed"]["optimizer"] for trial in content["trials"]] == ["sgd", "adam", "adamw"]
    assert "without a seed" not in printed
    limits = ("--max-trials", 2, "--max-concurrent-trials", 1, "--timeout-minutes", 9)
    content, _ = dry_run(capsys, "--config", path, *limits)
    assert len(content["trials"]) == 2
    assert content["job"]["limits"] == {"max_trials": 2, "max_concurrent_trials": 1, "timeout_minutes": 9}


@pytest.mark.parametrize("algorithm", ["bayesian", {"type": "random", "rule": "sobol"}])
def test_every_sampler_shows_its_first_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], algorithm: Any
) -> None:
    content, _ = dry_run(capsys, "--config", write(tmp_path, sweep={"sampling_algorithm": algorithm}))
    assert len(content["trials"]) == 5
    assert len({str(trial["proposed"]) for trial in content["trials"]}) == 5


def test_flags_override_the_file_and_its_search_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, _ = dry_run(
        capsys, "--config", write(tmp_path), "--model", "fasterrcnn_resnet50_fpn", "--learning-rate", "0.02",
        "--nodes", 2, "--data", "mine.jsonl",
    )  # fmt: skip
    assert [space["model_name"] for space in content["search_space"]] == ["fasterrcnn_resnet50_fpn"]
    assert all(trial["training_parameters"]["learning_rate"] == 0.02 for trial in content["trials"])
    assert content["job"]["properties"] == {"node_count_per_trial": "2"}
    assert content["job"]["training_data"]["path"] == str(Path.cwd() / "mine.jsonl")


def test_flag_gives_the_path_of_registered_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path,
        training_data={"path": "azureml:fridge:1", "type": "mltable"},
        validation_data={"path": "azureml:other@latest"},
        local={"data_assets": {"other": "elsewhere", "fridge": "not here"}},
    )
    content, _ = dry_run(capsys, "--config", path, "--data-asset", "fridge=/data/fridge=1")
    assert content["job"]["training_data"]["path"] == "/data/fridge=1"
    assert content["job"]["validation_data"]["path"] == str(tmp_path / "elsewhere")


def test_single_run_is_shown_with_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--task", "object-detection", "--data", "a.jsonl", "--model", "yolo11n", "--beta1", "0.8")
    content, printed = dry_run(capsys, *flags)
    assert "# beta1 has no effect with optimizer sgd, only with adam or adamw\n" in printed
    assert list(content) == ["job"]
    assert content["job"]["training_parameters"]["learning_rate"] == 0.01
    assert content["job"]["training_parameters"]["model_name"] == "yolo11n"


def test_job_without_a_search_space_is_noted_as_automatic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, printed = dry_run(capsys, "--config", write(tmp_path, search_space=None, sweep=None))
    assert content["search_space"] == "automatic"
    assert "# without search_space, models and settings are chosen once the data are known\n" in printed


def test_check_data_counts_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(Task.DETECTION, tmp_path / "train", images=10, seed=1)
    given = ("--config", write(tmp_path), "--data", data.train)
    assert "data" not in dry_run(capsys, *given)[0]
    content, _ = dry_run(capsys, *given, "--check-data")
    counts = content["data"]
    assert counts["training_images"] + counts["validation_images"] == 8
    lines = data.train.read_text("utf-8").splitlines()
    assert counts["classes"] == sorted({box["label"] for line in lines for box in json.loads(line)["label"]})
    content, _ = dry_run(capsys, *given, "--validation-data", data.validation, "--check-data")
    assert (content["data"]["training_images"], content["data"]["validation_images"]) == (8, 2)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, which prints at its end which slow libraries it has loaded."""
    code = (
        "import sys, trainer.cli as cli\n"
        "try:\n    cli.main()\n"
        f"finally:\n    print('# loaded:', *[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "fit", *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip


def test_what_follows_from_the_images_is_shown_with_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make(Task.CLASSIFICATION, tmp_path, images=6)
    given = ("--task", "image-classification", "--data", data.train, "--recipe", "modern")
    content, printed = dry_run(capsys, *given)
    assert "# number_of_epochs, training_batch_size: chosen by the number" in printed
    assert "training_batch_size" not in content["job"]["training_parameters"]
    content, printed = dry_run(capsys, *given, "--validation-data", data.validation, "--check-data")
    assert content["job"]["training_parameters"]["training_batch_size"] == 8
    assert "chosen by" not in printed


@pytest.mark.parametrize("algorithm", ["random", "bayesian", {"type": "random", "rule": "sobol"}])
def test_dry_run_needs_neither_torch_nor_data(tmp_path: Path, algorithm: Any) -> None:
    done = run("--config", write(tmp_path, sweep={"sampling_algorithm": algorithm}), "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("# loaded:\n")
    assert len(yaml.safe_load(done.stdout)["trials"]) == 5
    assert list(tmp_path.iterdir()) == [tmp_path / "작업.yml"]


@pytest.mark.parametrize(
    ("arguments", "changes", "said"),
    [
        (("--dry-run", "--check-data"), {}, "train"),
        (("--check-data",), {}, "--check-data: needs --dry-run"),
        (("--dry-run", "--resume", "runs/x"), {}, "--dry-run: cannot be combined with --resume"),
        (("--dry-run", "--data-asset", "fridge"), {}, "--data-asset: must be NAME=PATH, got fridge"),
        (("--dry-run", "--model", "yolo11n"), {}, "--model: must be a model of the search space"),
        (("--dry-run", "--max-trials", "0"), {}, "limits.max_trials"),
        (("--dry-run", "--max-trials", "1"), {}, "max_concurrent_trials (2) must be at most max_trials (1)"),
        (("--dry-run", "--learning-rate", "2"), {}, "learning_rate"),
        (
            ("--dry-run",),
            {"search_space": [{"model_name": "yolov5", "min_size": "choice(1, 2)"}]},
            "search_space[0].min_size: applies only to R-CNNs, not to yolov5",
        ),
        (("--dry-run",), {"training_data": {"path": "azureml:fridge:1"}}, "--data-asset fridge=PATH"),
    ],
)
def test_wrong_jobs_are_errors(
    tmp_path: Path, arguments: tuple[str, ...], changes: dict[str, Any], said: str
) -> None:
    done = run("--config", write(tmp_path, **changes), *arguments)
    assert done.returncode == 1
    assert done.stdout.endswith("# loaded:\n")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert said in done.stderr


def test_resume_takes_only_the_settings_of_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []

    def resume(directory: Path, settings: dict[str, Any], **others: Any) -> SimpleNamespace:
        taken.extend([directory, settings, others])
        return SimpleNamespace(is_rank_zero=False)

    monkeypatch.setattr("trainer.fitting.resume", resume)
    # A flag mapped these data when the run started; it cannot be given again.
    path = write(tmp_path, training_data={"path": "azureml:fridge:1"}, training_parameters={"seed": 7})
    arguments = ["fit", "--config", str(path), "--resume", str(tmp_path), "--number-of-epochs", "9"]
    cli.app(arguments, exit_on_error=False, result_action="return_value")
    assert taken == [tmp_path, {"seed": 7, "number_of_epochs": 9}, {"progress": True}]


def test_augmentation_file_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is relative to the job file; its names and arguments are checked as before training."""
    (tmp_path / "own.yaml").write_text("- RandomInvert\n", encoding="utf-8")
    alone: dict[str, Any] = {
        **dict.fromkeys(("limits", "sweep", "search_space")),
        "training_parameters": {"model_name": "yolov5"},
    }
    path = write(tmp_path, local={"augmentation": "own.yaml"}, **alone)
    content, printed = dry_run(capsys, "--config", path)
    assert content["job"]["local"]["augmentation"] == str(tmp_path / "own.yaml")
    assert "own.yaml (torchvision) replaces the recipe's augmentation" in printed
    switches = content["job"]["training_parameters"]["advanced_settings"]
    assert switches["apply_automl_train_augmentations"] is False
    (tmp_path / "own.yaml").write_text("- RandomInvert: {probability: 1}\n", encoding="utf-8")
    with pytest.raises(JobError, match=r"own.yaml:1: .*probability: is not an argument"):
        dry_run(capsys, "--config", path)


def test_search_space_cannot_turn_on_what_the_augmentation_file_replaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text("- RandomInvert\n", encoding="utf-8")
    space = [{"model_name": "resnet18", "mixup_alpha": "choice(0, 0.2)"}]
    parameters: dict[str, Any] = {}
    changes = {"task": "image_classification", "search_space": space, "training_parameters": parameters}
    path = write(tmp_path, **changes)
    assert dry_run(capsys, "--config", path)[0]["trials"]
    with pytest.raises(JobError, match="mixup_alpha must be off, since the augmentation file replaces"):
        dry_run(capsys, "--config", path, "--augmentation", tmp_path / "own.yaml")
