"""Intervals of an evaluation's primary metric, and paired differences of models on the same images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trainer
from serving.locate import ARTIFACTS
from serving.scorer import WEIGHTS_FILE
from trainer import cli
from trainer.errors import JobError
from trainer.evaluating.intervals import MeasuredMetric, Resampling, compare, default_metric
from trainer.evaluating.packaged_model import PackagedModel
from trainer.metrics.results import Analysis
from trainer.tasks import Task

Packaged = Callable[..., Path]
Targets = Callable[[Task], Path]


def measured(images: str, values: dict[str, float]) -> MeasuredMetric:
    numbers = np.array([values[image] for image in images])
    return MeasuredMetric("accuracy", tuple(images), lambda weights: weights @ numbers / weights.sum(axis=1))


@pytest.mark.parametrize("task", list(Task))
def test_every_task_has_an_interval_of_its_primary_metric(
    packaged: Packaged, targets: Targets, task: Task
) -> None:
    evaluation = trainer.evaluate(packaged(task), data=targets(task), device="cpu", random_seed=3)
    interval = evaluation.interval
    assert interval is not None
    assert (interval.metric, interval.images, interval.seed) == (task.primary_metric, 6, 3)
    assert interval.value == pytest.approx(evaluation.metrics[task.primary_metric])
    assert interval.low < interval.value < interval.high or interval.low <= interval.value <= interval.high
    assert "fewer than 30 images" in interval.caution
    again = evaluation.difference(evaluation)
    assert again is not None
    assert (again.value, again.low, again.high, again.is_clear) == (0, 0, 0, False)


def test_metric_and_number_of_resamples_can_be_chosen(packaged: Packaged, targets: Targets) -> None:
    task = Task.DETECTION
    data = targets(task)
    evaluation = trainer.evaluate(
        packaged(task), data=data, device="cpu", primary_metric="mAP@0.5:0.95", resamples=150
    )
    assert evaluation.interval is not None
    assert (evaluation.interval.metric, evaluation.interval.resamples) == ("map", 150)
    assert evaluation.interval.value == pytest.approx(evaluation.metrics["map"], abs=1e-6)
    assert trainer.evaluate(packaged(task), data=data, device="cpu", resamples=0).interval is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"primary_metric": "acuracy"}, "--primary-metric: .*did you mean accuracy"),
        ({"primary_metric": "log_loss_train"}, "--primary-metric: must be a metric that evaluations compute"),
        ({"resamples": 20}, "--resamples: must be at least 100, or 0 for no interval, got 20"),
        ({"random_seed": -1}, "--random-seed: must be at least 0"),
    ],
)
def test_wrong_options_are_errors(
    packaged: Packaged, targets: Targets, arguments: dict[str, object], message: str
) -> None:
    task = Task.CLASSIFICATION
    with pytest.raises(JobError, match=message):
        trainer.evaluate(packaged(task), data=targets(task), device="cpu", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "metric", "known"),
    [
        (Task.MULTILABEL, "iou_classwise.zebra", r"iou_classwise\."),
        (Task.DETECTION, "log_loss", "mean_average_precision"),
    ],
)
def test_metric_that_evaluations_lack_is_an_error_before_images_are_scored(
    packaged: Packaged,
    targets: Targets,
    task: Task,
    metric: str,
    known: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PackagedModel, "predict", lambda *_: pytest.fail("images are scored"))
    with pytest.raises(JobError, match=f"got '{metric}'; there are {known}"):
        trainer.evaluate(packaged(task), data=targets(task), device="cpu", primary_metric=metric)


def test_a_jobs_metric_that_evaluations_lack_is_replaced_by_the_tasks() -> None:
    assert default_metric(Task.DETECTION, "map") == "map"
    assert default_metric(Task.DETECTION, "log_loss") == "mean_average_precision"
    assert default_metric(Task.CLASSIFICATION, "log_loss") == "log_loss"
    assert default_metric(Task.CLASSIFICATION, "log_loss_train") == "accuracy"


def test_models_are_compared_on_the_images_that_both_have() -> None:
    one = measured("abcd", {"a": 1, "b": 1, "c": 0, "d": 1})
    other = measured("dcbx", {"d": 0, "c": 0, "b": 0, "x": 1})
    (difference,) = compare([("one", one), ("other", other)], Resampling(resamples=200))
    assert difference.images == 3
    assert difference.value == pytest.approx(-2 / 3)
    assert (difference.low, difference.high) == (pytest.approx(-1), pytest.approx(0))
    assert difference.verdict == "one and other cannot be told apart on these 3 images"
    assert compare([("one", one), ("z", measured("z", {"z": 1}))]) == []


def test_every_two_models_are_compared() -> None:
    values = dict.fromkeys("abcdefgh", 1.0)
    models = [(name, measured("abcdefgh", values)) for name in ("one", "two", "three")]
    pairs = [(each.first, each.second) for each in compare(models, Resampling(100))]
    assert pairs == [("one", "two"), ("one", "three"), ("two", "three")]


def test_command_compares_models(
    packaged: Packaged, targets: Targets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    task = Task.CLASSIFICATION
    for name in ("one", "two"):
        shutil.copytree(packaged(task), tmp_path / name)
    file = tmp_path / "two" / ARTIFACTS / WEIGHTS_FILE
    weights = torch.load(file, weights_only=True)
    torch.save({name: -tensor if "fc" in name else tensor for name, tensor in weights.items()}, file)
    output = tmp_path / "output"
    arguments = [tmp_path / "one", tmp_path / "two", "--data", targets(task), "--output", output]
    cli.app(["evaluate", *map(str, arguments), "--device", "cpu"], result_action="return_value")
    printed = capsys.readouterr().out
    (difference,) = json.loads((output / "comparison.json").read_text("utf-8"))["differences"]
    values = [Analysis.read(output / name / "metrics.json").metrics["accuracy"] for name in ("one", "two")]
    assert difference["value"] == pytest.approx(values[1] - values[0])
    assert difference["value"] != 0
    assert difference["verdict"] in printed
    page = (output / "comparison.html").read_text("utf-8")
    assert difference["verdict"] in page
    assert "Paired differences of accuracy" in page


def test_a_model_named_twice_is_an_error(packaged: Packaged) -> None:
    model = str(packaged(Task.CLASSIFICATION))
    with pytest.raises(JobError, match="must name each model once"):
        cli.app(["evaluate", model, model, "--data", "x.jsonl"])
