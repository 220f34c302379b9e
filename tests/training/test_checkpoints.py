"""Checkpoints: written once, whole, under all their names; a full disk is said to be one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

import trainer
from tests.training.conftest import job
from trainer.data.samples import SampleData
from trainer.errors import RunError
from trainer.tasks import Task
from trainer.training.callbacks import CheckpointFile, KeepBest


class Rising(Callback):
    """The metric as it is told, epoch by epoch."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        (best,) = (each for each in trainer.callbacks if isinstance(each, KeepBest))  # type: ignore[attr-defined]
        module.metrics[best.primary_metric] = self.values[trainer.current_epoch]


@pytest.mark.parametrize("links", [True, False])
def test_an_epochs_checkpoint_is_one_file_with_several_names(
    links: bool, digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError("this file system has no links")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    run = trainer.fit(
        job(
            digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run",
            number_of_epochs=4, checkpoint_frequency=2, early_stopping=False,
        ),
        callbacks=[Rising(0.1, 0.3, 0.2, 0.2)],
    )  # fmt: skip
    names = ["best.ckpt", "epoch-2.ckpt", "epoch-4.ckpt", "last.ckpt"]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == names
    epochs = {name: torch.load(run.checkpoints / name, weights_only=True)["epoch"] + 1 for name in names}
    assert epochs == {"best.ckpt": 2, "epoch-2.ckpt": 2, "epoch-4.ckpt": 4, "last.ckpt": 4}
    for one, other in (("best.ckpt", "epoch-2.ckpt"), ("epoch-4.ckpt", "last.ckpt")):
        assert (run.checkpoints / one).samefile(run.checkpoints / other) == links
        assert (run.checkpoints / one).read_bytes() == (run.checkpoints / other).read_bytes()


def test_a_full_disk_is_said_to_be_one() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(RunError, match=r"/dev/full: the checkpoint cannot be written .* MB are free there"):
        CheckpointFile().save_checkpoint({"weights": torch.zeros(1000)}, full)
