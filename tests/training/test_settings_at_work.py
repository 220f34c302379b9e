"""Settings that act on a whole training: what changes in the run when one is set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import trainer
from tests.training.conftest import job, rows
from trainer.data.samples import SampleData
from trainer.tasks import Task


def test_training_figures_stand_beside_those_of_the_validation(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    plain = trainer.fit(job(digits, Task.DETECTION, "yolo11n", tmp_path / "plain"))
    assert not any(name.startswith("train_mean") for name in rows(plain)[0])
    both = trainer.fit(
        job(digits, Task.DETECTION, "yolo11n", tmp_path / "both", log_training_metrics="Enable")
    )
    for one, other in zip(rows(plain), rows(both), strict=True):
        assert {name: other[name] for name in one if name != "seconds"} == {
            name: value for name, value in one.items() if name != "seconds"
        }
        assert 0 <= float(other["train_mean_average_precision"]) <= 1
        assert float(other["log_loss_train"]) == pytest.approx(float(other["train_loss"]))


def test_training_figures_are_those_of_the_training_images(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    data = digits[Task.DETECTION]
    same = job(digits, Task.DETECTION, "yolo11n", tmp_path / "run", log_training_metrics="Enable").model_copy(
        update={"training_data": (str(data.validation),)}
    )
    for row in rows(trainer.fit(same)):
        for name in ("mean_average_precision", "precision", "recall"):
            assert row[f"train_{name}"] == row[name]


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = trainer.fit(job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "plain"))
    assert not torch._dynamo.utils.counters["stats"]
    compiled = trainer.fit(
        job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "compiled", compile=True)
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for one, other in zip(rows(plain), rows(compiled), strict=True):
        assert float(other["train_loss"]) == pytest.approx(float(one["train_loss"]), rel=1e-2)
    # What is packaged and kept is the network itself, under its own names.
    names = [set(torch.load(run.best_checkpoint)["state_dict"]) for run in (plain, compiled)]
    assert names[0] == names[1]
