"""Whole runs on small real data: their files, their errors, and that their results can be trusted."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

import trainer
from serving.scorer import read_spec
from tests.training.conftest import SMALL, job, rows
from trainer.data.samples import SampleData, make
from trainer.errors import DataError, JobError, RunError, TrainingError
from trainer.job.job import Job
from trainer.models.training_items import Batch
from trainer.runs import Run
from trainer.tasks import Task
from trainer.training.module import TrainingModule


@pytest.mark.parametrize(
    ("task", "model", "metric"),
    [
        (Task.CLASSIFICATION, "resnet18", "norm_macro_recall"),
        (Task.MULTILABEL, "timm/test_resnet", "log_loss"),
        (Task.DETECTION, "yolo11n", "map"),
        (Task.SEGMENTATION, "maskrcnn_resnet18_fpn", ""),
    ],
)
def test_run_directory_is_complete(
    digits: dict[Task, SampleData], task: Task, model: str, metric: str, tmp_path: Path
) -> None:
    wanted = job(digits, task, model, tmp_path / "run")
    wanted = wanted.model_copy(update={"calibrate": task is Task.MULTILABEL})
    run = trainer.fit(wanted.changed(primary_metric=metric) if metric else wanted)
    result, metric = run.read_result(), metric or task.primary_metric
    assert (result.task, result.model, result.primary_metric) == (task, model, metric)
    assert result.epochs == 2
    table = rows(run)
    assert [row["epoch"] for row in table] == ["1", "2"]
    best = (min if metric == "log_loss" else max)(table, key=lambda row: float(row[metric]))
    assert float(best[metric]) == pytest.approx(result.value)
    assert int(best["epoch"]) == result.best_epoch
    assert all(math.isfinite(float(row["train_loss"])) for row in table)
    assert result.durations.total >= result.durations.train > 0
    # The predictions are in the order of the data.
    lines = digits[task].validation.read_text("utf-8").splitlines()
    answers = [json.loads(line) for line in run.predictions.read_text("utf-8").splitlines()]
    assert [a["image_url"] for a in answers] == [json.loads(line)["image_url"] for line in lines]
    assert all("boxes" in answer if task.has_boxes else "probs" in answer for answer in answers)
    for checkpoint in (run.best_checkpoint, run.last_checkpoint):
        torch.load(checkpoint, weights_only=True)
    assert (run.model / "MLmodel").is_file()
    assert (
        bool(result.calibration) is bool(read_spec(run.model / "artifacts").calibration) is wanted.calibrate
    )
    said = run.log.read_text("utf-8")
    assert "epoch 2/2" in said
    # every metric of an evaluation is logged by name, and is in the table
    assert "log_loss_train" in result.metrics
    for name, value in result.metrics.items():
        assert name in table[-1]
        if not name.startswith("iou_classwise."):
            assert f"{name} {value:.4f}" in said


def test_metric_of_an_unknown_class_is_an_error_before_images_are_decoded(
    digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "trainer.data.training_data.check_images_of", lambda *_, **__: pytest.fail("images are decoded")
    )
    wanted = job(digits, Task.MULTILABEL, "timm/test_resnet", tmp_path / "run")
    with pytest.raises(JobError, match=r"must name a class of the data, got 'cat'; there are eight, five"):
        trainer.fit(wanted.changed(primary_metric="iou_classwise.cat"))


def test_job_file_of_a_run_reproduces_it(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    first = trainer.fit(job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "first"))
    again = Job.read(first.job, output=tmp_path / "again")
    assert again.ignored_keys == ()
    assert yaml.safe_load(first.job.read_text("utf-8"))["task"] == "image_classification"
    second = trainer.fit(again)
    assert second.job.read_text("utf-8") == first.job.read_text("utf-8")
    same = [{k: v for k, v in row.items() if k != "seconds"} for row in rows(first)]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in rows(second)] == same
    assert second.predictions.read_text("utf-8") == first.predictions.read_text("utf-8")


def test_workers_do_not_change_the_result(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    runs = [
        trainer.fit(job(digits, Task.DETECTION, "yolo11n", tmp_path / str(n), number_of_workers=n))
        for n in (0, 2)
    ]
    losses = [[row["train_loss"] for row in rows(run)] for run in runs]
    assert losses[0] == losses[1]


def test_taken_directory_is_an_error_and_unchanged(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    taken = tmp_path / "run"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="run"):
        trainer.fit(job(digits, Task.CLASSIFICATION, "timm/test_resnet", taken))
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]


def test_invalid_data_are_an_error_before_anything_is_written(tmp_path: Path) -> None:
    data = make(Task.CLASSIFICATION, tmp_path / "data", images=12, seed=0)
    count = len(data.train.read_text("utf-8").splitlines())
    with data.train.open("a", encoding="utf-8") as file:
        file.write('{"image_url": "nowhere.png", "label": "one"}\nno json\n')
    wanted = Job(
        task=Task.CLASSIFICATION,
        training_data=(str(data.train),),
        model="timm/test_resnet",
        weights="none",
        gpus=0,
        output=tmp_path / "run",
        settings={"number_of_epochs": 1, "number_of_workers": 0, **SMALL["timm/test_resnet"]},
    )
    with pytest.raises(DataError) as caught:
        trainer.fit(wanted)
    assert f"train.jsonl:{count + 1}: image_url" in str(caught.value)
    assert f"train.jsonl:{count + 2}" in str(caught.value)
    assert not (tmp_path / "run").exists()

    run = trainer.fit(wanted.model_copy(update={"skip_invalid": True}))
    skipped = [json.loads(line) for line in run.skipped.read_text("utf-8").splitlines()]
    assert [line["line"] for line in skipped] == [count + 1, count + 2]
    assert "left out 2 lines" in run.log.read_text("utf-8")


def test_loss_that_stays_far_above_its_start_ends_the_run(
    digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = TrainingModule._losses

    def diverging(self: TrainingModule, batch: Batch) -> dict[str, Tensor]:
        # A loss over 100 is none by itself.
        factor = 200 if self.current_epoch < 3 else 1e5
        return {name: loss * factor for name, loss in losses(self, batch).items()}

    monkeypatch.setattr(TrainingModule, "_losses", diverging)
    small = {"training_batch_size": 4, "number_of_epochs": 9, "early_stopping": False}
    with pytest.raises(
        TrainingError, match=r"diverged in epoch 6, .*: since batch 1 of epoch 4, .* Lower learn"
    ):
        trainer.fit(job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run", **small))
    assert len(rows(Run(tmp_path / "run"))) == 5


def test_cpu_run_does_not_touch_gpus(
    digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is none, so pinned memory or a network on it would be an error.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    run = trainer.fit(job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run"))
    assert run.predictions.exists()


def test_diverged_epoch_has_no_checkpoint(
    digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    losses = TrainingModule._losses

    def diverging(self: TrainingModule, batch: Batch) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        # In the second epoch, at a batch whose loss is not checked by itself.
        last = self.current_epoch == 1 and calls % int(self.trainer.num_training_batches) == 0
        return {name: loss * (math.nan if last else 1) for name, loss in losses(self, batch).items()}

    monkeypatch.setattr(TrainingModule, "_losses", diverging)
    with pytest.raises(
        TrainingError, match=r"diverged in epoch 2, batch (\d+) of \1: its loss is not finite"
    ):
        trainer.fit(job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run"))
    run = Run(tmp_path / "run")
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    assert checkpoint["epoch"] == 0
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint["state_dict"].values())
    assert len(rows(run)) == 1


def test_batch_too_small_for_batch_norm_is_explained(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    single = {"training_batch_size": 1, "training_crop_size": 32, "validation_crop_size": 32}
    with pytest.raises(TrainingError, match="raise training_batch_size"):
        trainer.fit(job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run", **single))


def test_early_stopping_waits_for_the_delay(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    still = {"learning_rate": 0.0, "early_stopping_patience": 2, "number_of_epochs": 20}
    run = trainer.fit(
        job(
            digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run", early_stopping_delay=3, **still
        )
    )
    # Nothing is learned, so the first evaluation stays the best; patience is epochs 4 and 5.
    assert run.read_result().best_epoch in (1, 2)
    assert run.read_result().epochs == 5


def test_evaluation_frequency_always_includes_last_epoch(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    frequency = {"evaluation_frequency": 2, "checkpoint_frequency": 2, "number_of_epochs": 5}
    run = trainer.fit(job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run", **frequency))
    assert [row["epoch"] for row in rows(run) if row["accuracy"]] == ["2", "4", "5"]
    kept = sorted(path.name for path in run.checkpoints.iterdir())
    assert kept == ["best.ckpt", "epoch-2.ckpt", "epoch-4.ckpt", "last.ckpt", "previous.ckpt"]


def test_frozen_layers_keep_weights_and_statistics(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    run = trainer.fit(
        job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run", layers_to_freeze=2, seed=3)
    )
    torch.manual_seed(0)
    last = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    # Batch norms that were never in training mode counted no batch.
    counted = {name: int(value) for name, value in last.items() if name.endswith("num_batches_tracked")}
    frozen = ("network.conv1.", "network.bn1.", "network.layer1.")
    assert all((count == 0) == name.startswith(frozen) for name, count in counted.items())
    assert torch.equal(last["network.bn1.weight"], torch.ones(32))
    assert not torch.equal(last["network.layer2.0.bn1.weight"], torch.ones(48))


def test_too_many_gpus_are_an_error(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    there = torch.cuda.device_count()
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run")
    with pytest.raises(JobError, match=f"{there + 4}, but this machine has {there or 'none'}"):
        trainer.fit(wanted.model_copy(update={"gpus": there + 4}))


@pytest.mark.slow
def test_two_processes_train_one_model(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    """By the command, as a user starts it; two processes see the same batches as one."""
    results = []
    for processes, batch in ((1, 8), (2, 4)):
        output = tmp_path / str(processes)
        arguments = [
            *("fit", "--task", "image-classification", "--data", str(digits[Task.CLASSIFICATION].train)),
            *("--validation-data", str(digits[Task.CLASSIFICATION].validation), "--output", str(output)),
            *("--model", "timm/test_vit", "--weights", "none", "--seed", "3", "--number-of-epochs", "2"),
            *("--validation-crop-size", "32", "--training-crop-size", "32", "--num-workers", "0"),
            *("--processes", str(processes), "--training-batch-size", str(batch)),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *arguments], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        # One process prints, and one directory is written.
        assert done.stderr == ""
        assert done.stdout.count("epoch 2/2") == 1
        results.append((rows(Run(output)), Run(output).predictions.read_text("utf-8")))
    (one, answers_of_one), (two, answers_of_two) = results
    for name in ("accuracy", "log_loss"):
        expected = [float(row[name]) for row in one]
        assert [float(row[name]) for row in two] == pytest.approx(expected, abs=2e-3)
    assert len(answers_of_one.splitlines()) == len(answers_of_two.splitlines())


@pytest.mark.slow
def test_fewer_validation_images_than_processes_are_scored(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    data = digits[Task.CLASSIFICATION]
    first = json.loads(data.validation.read_text("utf-8").splitlines()[0])
    first["image_url"] = str(data.validation.parent / first["image_url"])
    (tmp_path / "one.jsonl").write_text(json.dumps(first), encoding="utf-8")
    arguments = [
        *(
            "fit",
            "--task",
            "image-classification",
            "--data",
            str(data.train),
            "--output",
            str(tmp_path / "run"),
        ),
        *(
            "--validation-data",
            str(tmp_path / "one.jsonl"),
            "--model",
            "timm/test_resnet",
            "--weights",
            "none",
        ),
        *("--validation-crop-size", "32", "--training-crop-size", "32", "--num-workers", "0"),
        *("--number-of-epochs", "1", "--processes", "2"),
    ]
    command = [sys.executable, "-m", "trainer", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").read_result().value in (0.0, 1.0)
