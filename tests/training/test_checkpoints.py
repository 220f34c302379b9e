"""Checkpoints are written once, whole, under all their names; a full disk is reported as such."""

from __future__ import annotations

import errno
import math
import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning import Callback, Trainer

import trainer
from tests.training.conftest import job
from trainer.data.samples import SampleData
from trainer.errors import BrokenOffError, NoMemoryError
from trainer.settings import Settings
from trainer.tasks import Task
from trainer.training.callbacks import StopEarly
from trainer.training.checkpoints import WRITTEN, KeepBest
from trainer.training.module import TrainingModule


class Rising(Callback):
    """Replaces the primary metric by given values, epoch by epoch."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        (best,) = (each for each in trainer.callbacks if isinstance(each, KeepBest))  # type: ignore[attr-defined]
        module.metrics[best.primary_metric] = self.values[trainer.current_epoch]


@pytest.mark.parametrize(
    ("metric", "values", "best_epochs"),
    [
        ("recall", (0.2, 0.5, 0.4, 0.6), [1, 2, 2, 4]),
        ("log_loss", (2.0, 1.0, 1.5, 0.5), [1, 2, 2, 4]),
        ("log_loss", (math.nan, 3.0, math.nan, 4.0), [1, 2, 2, 2]),
        ("norm_macro_recall", (math.nan, math.nan, 0.0, 0.0), [1, 2, 3, 3]),
    ],
)
def test_best_epoch_has_the_highest_metric_or_the_lowest_loss(
    metric: str, values: tuple[float, ...], best_epochs: list[int]
) -> None:
    best, found, waited = KeepBest(metric), [], []
    early = StopEarly(best, Settings(early_stopping_delay=0, early_stopping_patience=9))
    for epoch, value in enumerate(values):
        trainer = Mock(current_epoch=epoch, max_epochs=9)
        module = Mock(spec=TrainingModule, evaluated_epoch=epoch, metrics={metric: value})
        best.on_train_epoch_end(trainer, module)
        early.on_train_epoch_end(trainer, module)
        found.append(best.epoch)
        waited.append(early.waited)
    assert found == best_epochs
    assert [count == 0 for count in waited] == [epoch == best for epoch, best in enumerate(best_epochs, 1)]


@pytest.mark.parametrize("links", [True, False])
def test_checkpoint_is_one_file_with_several_names(
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


def test_leftover_of_a_kill_does_not_overwrite_best_checkpoint(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    """A run that is killed between two names leaves its file as another name of best.ckpt."""
    short = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run", number_of_epochs=1)
    run = trainer.fit(short, callbacks=[Rising(0.3)])
    best = run.best_checkpoint.read_bytes()
    os.link(run.best_checkpoint, run.checkpoints / WRITTEN)
    trainer.resume(run.directory, {"number_of_epochs": 2}, callbacks=[Rising(0.3, 0.1)])
    assert run.best_checkpoint.read_bytes() == best
    assert torch.load(run.last_checkpoint, weights_only=True)["epoch"] == 1
    assert not list(run.checkpoints.glob("*.partial"))


@pytest.mark.parametrize("room", [0, 10_000])
def test_full_disk_is_an_error_with_free_space(
    room: int, digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource", reason="needs a limit to the size of files")
    save = torch.save

    def limited(checkpoint: Any, path: Path) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            save(checkpoint, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(torch, "save", limited)
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run", number_of_epochs=1)
    with pytest.raises(BrokenOffError, match=r"epoch 1's checkpoint cannot be written .* MB are free\)"):
        trainer.fit(wanted)
    assert not list((tmp_path / "run" / "checkpoints").iterdir()), "a partial file would take up space"


def test_failed_link_and_copy_are_an_error(
    digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run", number_of_epochs=1)
    with pytest.raises(BrokenOffError, match=r"cannot be written there \(No space left on device; "):
        trainer.fit(wanted)


def test_lack_of_memory_is_not_reported_as_full_disk(
    digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "save", no_memory)
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run", number_of_epochs=1)
    advice = r"memory ran out: .*\. Lower validation_batch_size \(78\) or validation_crop_size \(48\)"
    with pytest.raises(NoMemoryError, match=advice):
        trainer.fit(wanted)
