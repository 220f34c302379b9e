"""Packaging of a checkpoint: with a calibration fitted to the validation images, and its record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from serving.scorer import read_spec
from tests.training.conftest import job
from trainer.data.samples import SampleData
from trainer.evaluating.evaluate import evaluate_model
from trainer.job.job import Job
from trainer.metrics.results import Analysis
from trainer.models import create, specify
from trainer.models.weights.reading import SPEC_KEY
from trainer.runs import Durations, Result, Run
from trainer.tasks import Task
from trainer.training.job_data import load_data
from trainer.training.packaging import package
from trainer.training.report_writing import remake, report

MODELS = {task: "timm/test_resnet" for task in Task if task.is_classification} | {Task.DETECTION: "yolo11n"}


def untrained(job: Job, classes: tuple[str, ...]) -> Run:
    """A run whose best checkpoint is an untrained network that is sure of itself."""
    assert job.output is not None
    run = Run.create_at(job.output)
    run.write_job(job.to_yaml())
    spec = specify(job.task, job.model_name, job.resolve_settings(), classes, pretrained=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create(spec).build()
    for name, tensor in network.state_dict().items():
        if name == "fc.weight":
            tensor.mul_(20)
        elif ".cv3." in name and name.endswith(".2.bias"):  # the scores of a YOLO's boxes, near 0 otherwise
            tensor.fill_(-1.0)
    weights = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({SPEC_KEY: spec.to_json(), "state_dict": weights}, run.best_checkpoint)
    return run


@pytest.mark.parametrize("task", list(MODELS))
def test_calibrate_packages_what_fits_the_validation_images(
    digits: dict[Task, SampleData], tmp_path: Path, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = job(digits, task, MODELS[task], tmp_path / "run", number_of_workers=0)
    data = load_data(wanted, 7)
    run = untrained(wanted, data.classes)
    assert package(run, data, on_gpu=False) is None
    raw = run.predictions.read_text("utf-8")
    assert read_spec(run.model / "artifacts").calibration is None
    with caplog.at_level("INFO", "trainer"):
        calibration = package(run, data, on_gpu=False, calibrate=True)
    assert calibration is not None
    assert "which are few" in caplog.text
    assert f"calibrated by temperature {calibration.temperature:.3f}" in caplog.text
    assert read_spec(run.model / "artifacts").calibration == calibration.fitted
    assert (calibration.bias != 0) is task.has_boxes
    assert calibration.log_loss_scaled < calibration.log_loss
    assert calibration.images == len(data.validation)
    assert run.predictions.read_text("utf-8") != raw
    # The packaged model, and its predictions for the report, have the scores after calibration.
    evaluated = evaluate_model(run.model, [digits[task].validation], device="cpu").analysis
    if task.is_classification:
        assert evaluated.calibration is not None
        assert evaluated.calibration.log_loss == pytest.approx(calibration.log_loss_scaled, abs=1e-4)
    result = Result(
        task=task, model=wanted.model_name, primary_metric=wanted.metric, value=0.5, best_epoch=1, epochs=1,
        durations=Durations(), model_path="model", metrics={}, seed=7, versions={},
        calibration=calibration.summary(),
    )  # fmt: skip
    run.write_result(result)
    report(run, wanted, data, calibration)
    for _ in range(2):
        analysis = Analysis.read(run.evaluation)
        assert analysis.packaged_calibration == calibration
        assert json.loads(run.evaluation.read_text("utf-8"))["packaged_calibration"]["error"] >= 0
        assert "Reliability of the scores" in run.report.read_text("utf-8")
        remake([run.directory])  # keeps it


def test_boxes_without_scores_are_not_calibrated(
    digits: dict[Task, SampleData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = job(digits, Task.DETECTION, "yolo11n", tmp_path / "run")
    data = load_data(wanted, 7)
    run = untrained(wanted, data.classes)
    checkpoint = torch.load(run.best_checkpoint, weights_only=True)
    for name, tensor in checkpoint["state_dict"].items():
        if ".cv3." in name and name.endswith(".2.bias"):
            tensor.fill_(-20.0)
    torch.save(checkpoint, run.best_checkpoint)
    assert package(run, data, on_gpu=False, calibrate=True) is None
    assert "not calibrated: no box" in caplog.text
    assert read_spec(run.model / "artifacts").calibration is None


def test_trials_are_not_calibrated_but_their_sweep_is() -> None:
    space = {"learning_rate": "uniform(0.001, 0.1)"}
    sweep = Job(
        task="object-detection", model="yolo11n", training_data="a", search_space=space, calibrate=True
    )
    assert sweep.calibrate
    assert not sweep.for_trial({"learning_rate": 0.1}).calibrate
