"""The job files in configs/: each is read, shown by --dry-run, and trained for an epoch on a few images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer import cli
from trainer.data.samples import make
from trainer.job.job import Job
from trainer.runs import Run
from trainer.tasks import Task

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.yml"))
SMALL = {
    Task.CLASSIFICATION: ("--training-crop-size", 32, "--validation-crop-size", 32),
    Task.MULTILABEL: ("--training-crop-size", 32, "--validation-crop-size", 32),
    Task.DETECTION: ("--model", "fasterrcnn_resnet18_fpn", "--min-size", 64, "--max-size", 96),
    Task.SEGMENTATION: ("--model", "maskrcnn_resnet18_fpn", "--min-size", 64, "--max-size", 96),
}


def read(path: Path) -> tuple[Job, list[str]]:
    job = Job.read(path)
    return job, list(job.ignored_keys)


def fit(*arguments: object) -> None:
    cli.app(["fit", *map(str, arguments)], exit_on_error=False, result_action="return_value")


def test_configs_cover_each_task_and_a_sweep() -> None:
    assert {path.stem for path in FILES} == {*(task.value for task in Task), "object-detection-sweep"}
    assert {read(path)[0].task for path in FILES} == set(Task)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_configs_have_azures_form_and_applicable_settings(path: Path) -> None:
    content = yaml.safe_load(path.read_text("utf-8"))
    assert content["type"] == "automl"
    assert "$schema" in content
    job, ignored = read(path)
    assert job.task.job_name == content["task"]
    assert job.training_data == (str(CONFIGS / "data/train.jsonl"),)
    assert job.experiment_name == content["experiment_name"]
    assert {"compute", "description"} <= set(ignored)
    if not job.sweeps:
        resolved = job.resolve_settings()
        for name, value in job.settings.items():
            assert getattr(resolved, name) == value, name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dry_run_of_a_config_needs_no_data(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fit("--config", path, "--dry-run")
    content = yaml.safe_load(capsys.readouterr().out)
    again = tmp_path / "again.yml"
    again.write_text(yaml.safe_dump(content["job"], sort_keys=False), encoding="utf-8")
    assert read(again)[0].to_yaml() == read(path)[0].to_yaml()


def test_sweep_config_samples_each_sub_space(capsys: pytest.CaptureFixture[str]) -> None:
    path = CONFIGS / "object-detection-sweep.yml"
    job, _ = read(path)
    assert job.sweep is not None
    assert job.sweep.early_termination is not None
    assert job.sweep.early_termination["type"] == "bandit"
    fit("--config", path, "--dry-run")
    trials = yaml.safe_load(capsys.readouterr().out)["trials"]
    models = [trial["training_parameters"]["model_name"] for trial in trials]
    assert "yolov5" in models
    assert set(models) - {"yolov5"}
    for trial, model in zip(trials, models, strict=True):
        assert ("model_size" in trial["proposed"]) is (model == "yolov5")
        assert ("min_size" in trial["proposed"]) is (model != "yolov5")
        assert trial["training_parameters"]["number_of_epochs"] == 15


@pytest.mark.slow
@pytest.mark.parametrize("task", Task)
def test_config_trains_on_other_data(task: Task, tmp_path: Path) -> None:
    data = make(task, tmp_path / "data", images=8, seed=1)
    path = CONFIGS / f"{task}.yml"
    given: dict[str, Any] = {"--data": data.train, "--output": tmp_path / "run", "--weights": "none"}
    shipped, _ = read(path)
    if shipped.validation_data:
        given["--validation-data"] = data.validation
    fit(
        "--config", path, "--gpus", 0, "--number-of-epochs", 1, "--number-of-workers", 0,
        "--training-batch-size", 4, *SMALL[task], *(part for pair in given.items() for part in pair),
    )  # fmt: skip
    result = Run.open(tmp_path / "run").read_result()
    assert (result.task, result.epochs, result.primary_metric) == (task, 1, task.primary_metric)
    written, _ = read(tmp_path / "run" / "job.yaml")
    assert written.name == shipped.name
    assert written.resolve_settings().random_seed == shipped.settings["random_seed"]
