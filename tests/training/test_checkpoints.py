"""Checkpoints are written once and whole; others replace a damaged one; a full disk is reported as such."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning import Callback, Trainer

import trainer
from tests.training.conftest import job, resume, rows
from trainer.data.samples import SampleData
from trainer.errors import BrokenOffError, NoMemoryError, RunError
from trainer.job.job import Job
from trainer.runs import Run
from trainer.settings import Settings
from trainer.tasks import Task
from trainer.training.callbacks import StopEarly
from trainer.training.checkpoints import WRITTEN, KeepBest
from trainer.training.fit import fit
from trainer.training.module import TrainingModule
from trainer.training.resume import read_checkpoint, settle


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
    assert not best.is_undefined
    assert [count == 0 for count in waited] == [epoch == best for epoch, best in enumerate(best_epochs, 1)]


@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_metric_that_no_evaluation_computes_is_undefined(value: float) -> None:
    best = KeepBest("map_small")
    for epoch in range(2):
        module = Mock(spec=TrainingModule, evaluated_epoch=epoch, metrics={"map_small": value})
        best.on_train_epoch_end(Mock(current_epoch=epoch), module)
    assert best.is_undefined


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
    names = ["best.ckpt", "epoch-2.ckpt", "epoch-4.ckpt", "last.ckpt", "previous.ckpt"]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == names
    epochs = {name: torch.load(run.checkpoints / name, weights_only=True)["epoch"] + 1 for name in names}
    assert epochs == dict(zip(names, (2, 2, 4, 4, 3), strict=True))
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


@pytest.fixture(scope="module")
def trained(digits: dict[Task, SampleData], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of three epochs of which the first is the best."""
    output = tmp_path_factory.mktemp("trained") / "run"
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", output, number_of_epochs=3)
    return fit(wanted, callbacks=[Rising(0.3, 0.1, 0.2)], packages=False)


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    shutil.copytree(trained.directory, tmp_path / "run")
    return Run(tmp_path / "run")


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "is missing": remove,
    "cannot be read: is empty": empty,
    "cannot be read: File is not a zip file": tear,
    "has a wrong checksum": flip,
}


@pytest.mark.parametrize(
    ("told", "damage"), DAMAGES.items(), ids=[each.__name__ for each in DAMAGES.values()]
)
def test_damaged_last_checkpoint_is_replaced_by_the_one_before(
    told: str, damage: Callable[[Path], None], run: Run
) -> None:
    damage(run.last_checkpoint)
    checkpoint = read_checkpoint(run)
    assert checkpoint is not None
    assert (checkpoint.file, checkpoint.epoch) == (run.previous_checkpoint, 1)
    assert checkpoint.damage.startswith(f"{run.last_checkpoint}: ")
    assert checkpoint.damage.endswith(told)
    damage(run.previous_checkpoint)
    checkpoint = read_checkpoint(run)
    assert checkpoint is not None
    assert (checkpoint.file, checkpoint.epoch) == (run.best_checkpoint, 0)


def test_resuming_from_the_checkpoint_before_says_so(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    best = run.best_checkpoint.read_bytes()
    tear(run.last_checkpoint)
    with caplog.at_level(logging.INFO, "trainer"):
        resumed = resume(run.directory, {"number_of_epochs": 4}, callbacks=[Rising(0.3, 0.1, 0.2, 0.2)])
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert told == [
        f"{run.last_checkpoint}: cannot be read: File is not a zip file; "
        "resuming from previous.ckpt instead, so the epochs after 2 are trained again"
    ]
    assert [row["epoch"] for row in rows(resumed)] == ["1", "2", "3", "4"]
    assert resumed.read_result().best_epoch == 1
    assert run.best_checkpoint.read_bytes() == best
    epochs = [read_checkpoint_of(file) for file in (run.last_checkpoint, run.previous_checkpoint)]
    assert epochs == [3, 2]


def read_checkpoint_of(file: Path) -> int:
    return int(torch.load(file, weights_only=True)["epoch"])


def test_best_checkpoint_that_was_torn_too_is_found_among_the_others(run: Run) -> None:
    """If every epoch is better than the one before, best.ckpt is the same file as last.ckpt."""
    content = torch.load(run.previous_checkpoint, weights_only=True)
    content["callbacks"]["KeepBest"]["epoch"] = 2
    torch.save(content, run.previous_checkpoint)
    for path in (run.last_checkpoint, run.best_checkpoint):
        tear(path)
    checkpoint = read_checkpoint(run)
    assert checkpoint is not None
    assert settle(checkpoint)
    assert read_checkpoint_of(run.best_checkpoint) == read_checkpoint_of(run.last_checkpoint) == 1


def test_best_epoch_whose_checkpoint_is_lost_is_chosen_anew(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    tear(run.best_checkpoint)
    remove(run.result)
    with pytest.raises(RunError, match=r"is damaged, and no epoch is left .* --number-of-epochs over 3"):
        resume(run.directory, {})
    with caplog.at_level(logging.WARNING, "trainer"):
        resumed = resume(run.directory, {"number_of_epochs": 4}, callbacks=[Rising(0.3, 0.1, 0.2, 0.2)])
    assert "epoch 1, the best so far, is damaged; the best epoch is chosen from those after 3" in caplog.text
    assert resumed.read_result().best_epoch == 4
    assert read_checkpoint_of(run.best_checkpoint) == 3


def test_run_without_a_sound_checkpoint_is_not_resumed(run: Run) -> None:
    for path in run.checkpoints.iterdir():
        tear(path)
    with pytest.raises(
        RunError, match=r"last\.ckpt: cannot be read: .* No other checkpoint .* start a new run"
    ):
        read_checkpoint(run)
    for path in run.checkpoints.iterdir():
        remove(path)
    assert read_checkpoint(run) is None


def test_resuming_with_changed_data_says_what_changed(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    (training,) = Job.read(run.job).training_data
    fewer = run.directory / "fewer.jsonl"
    lines = [json.loads(line) for line in Path(training).read_text("utf-8").splitlines()]
    for line in lines:
        line["image_url"] = str(Path(training).parent / line["image_url"])
    fewer.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]), encoding="utf-8")
    with caplog.at_level(logging.WARNING, "trainer"):
        resume(run.directory, {"number_of_epochs": 4}, training_data=(str(fewer),))
    changed = f"{len(lines) - 1} images instead of {len(lines)}"
    assert f"the data have changed since the run's last epoch: training data: {changed}" in caplog.text
    renamed = lines[0]["label"]
    for line in lines:
        line["label"] = line["label"].replace(renamed, "new")
    fewer.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(RunError, match=r"its checkpoint is of other classes \(new in the data: new"):
        resume(run.directory, {"number_of_epochs": 5}, training_data=(str(fewer),))


def test_checkpoint_of_an_earlier_version_is_resumed_without_a_word(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    content = torch.load(run.last_checkpoint, weights_only=True)
    del content["trainer_data"], content["trainer_divergence"]
    torch.save(content, run.last_checkpoint)
    remove(run.previous_checkpoint)
    with caplog.at_level(logging.WARNING, "trainer"):
        resumed = resume(run.directory, {"number_of_epochs": 4})
    assert [row["epoch"] for row in rows(resumed)] == ["1", "2", "3", "4"]
    assert not caplog.records
