"""Settings that act on a whole training: what changes in the run when one is set."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

import trainer
from tests.training.conftest import job, rows
from trainer.cores import available_cores
from trainer.data.samples import SampleData
from trainer.runs import Run
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
def test_a_compiled_network_learns_the_same(
    digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both passes are traced and run as graphs; writing them out as C++ would take another minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
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


class Watch(Callback):
    """Notes what the network is given and what the optimizer gets."""

    def __init__(self) -> None:
        self.training: list[int] = []
        self.scored: list[int] = []
        self.largest: list[float] = []
        self.norms: list[float] = []
        self.workers: list[int] = []

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        def before(network: Any, inputs: Any) -> None:
            (self.training if network.training else self.scored).append(len(inputs[0]))

        module.network.register_forward_pre_hook(before)

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.workers.append(trainer.train_dataloader.num_workers)

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        gradients = [p.grad for p in module.network.parameters() if p.grad is not None]
        self.largest.append(max(float(gradient.abs().max()) for gradient in gradients))
        self.norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))


def watched(digits: dict[Task, SampleData], output: Path, **settings: Any) -> tuple[Watch, Run]:
    watch = Watch()
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", output, **settings)
    return watch, trainer.fit(wanted, callbacks=[watch])


def test_batches_hold_as_many_images_as_asked_for(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    watch, _ = watched(
        digits, tmp_path / "run", training_batch_size=5, validation_batch_size=3, number_of_epochs=1
    )
    assert watch.training == [5, 5, 5]  # of 16: a single image is no batch for batch norms
    assert watch.scored[:2] == [3, 1]


def test_gradients_are_clipped_by_value_or_by_norm(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    free, _ = watched(digits, tmp_path / "free", gradient_clip_value=1e9)
    value, _ = watched(digits, tmp_path / "value", gradient_clip_value=0.01)
    norm, _ = watched(digits, tmp_path / "norm", gradient_clip_norm=0.02)
    assert max(free.largest) > 0.01
    assert max(value.largest) <= 0.01 + 1e-7
    assert max(value.norms) > 0.02
    assert max(norm.norms) <= 0.02 * 1.001


def test_gradients_of_several_batches_make_a_step(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    watch, _ = watched(digits, tmp_path / "run", training_batch_size=4, gradient_accumulation_step=3)
    assert len(watch.training) == 2 * 4
    assert len(watch.norms) == 2 * 2  # steps: after three batches, and at the epoch's end


def test_workers_are_as_many_as_asked_for_and_as_there_are_cores(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    none, _ = watched(digits, tmp_path / "none", number_of_workers=0, number_of_epochs=1)
    many, _ = watched(digits, tmp_path / "many", number_of_workers=64, number_of_epochs=1)
    assert none.workers == [0]
    assert many.workers == [available_cores()]


def test_without_early_stopping_all_epochs_are_trained(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    still = {"learning_rate": 0.0, "early_stopping_patience": 1, "early_stopping_delay": 0}
    _, stopped = watched(digits, tmp_path / "stopped", number_of_epochs=4, **still)
    _, whole = watched(digits, tmp_path / "whole", number_of_epochs=4, early_stopping=False, **still)
    assert stopped.read_result().epochs < 4
    assert whole.read_result().epochs == 4


def test_the_average_of_the_weights_is_what_is_packaged(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    _, run = watched(
        digits, tmp_path / "run", average_weights=True, learning_rate=0.5, warmup_cosine_lr_warmup_epochs=0
    )
    kept = torch.load(run.best_checkpoint, weights_only=True)["state_dict"]
    packaged = torch.load(run.model / "artifacts" / "weights.pt", weights_only=True)
    assert all(torch.equal(value, kept[f"average.network.{name}"]) for name, value in packaged.items())
    assert not all(torch.equal(value, kept[f"network.{name}"]) for name, value in packaged.items())


def test_another_seed_is_another_training(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    losses = [
        rows(watched(digits, tmp_path / str(number), seed=seed)[1])[-1]["train_loss"]
        for number, seed in enumerate((1, 2, 1))
    ]
    assert losses[0] == losses[2] != losses[1]


def test_balanced_sampling_draws_by_the_classes(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    lines = [json.loads(line) for line in digits[Task.CLASSIFICATION].train.read_text("utf-8").splitlines()]
    root = digits[Task.CLASSIFICATION].train.parent
    records = [
        {"image_url": str(root / line["image_url"]), "label": "rare" if index < 2 else "common"}
        for index, line in enumerate(lines)
    ]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")

    class Count(Callback):
        def __init__(self) -> None:
            self.labels: list[int] = []

        def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
            self.labels += batch["targets"].tolist()

    shares = []
    for balanced in (False, True):
        count = Count()
        wanted = job(
            digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / str(balanced),
            balanced_sampling=balanced, number_of_epochs=6, early_stopping=False,
        )  # fmt: skip
        update = {"training_data": (str(data),), "validation_data": (str(data),)}
        trainer.fit(wanted.model_copy(update=update), callbacks=[count])
        shares.append(sum(count.labels) / len(count.labels))  # of "rare", the second class
    assert shares[0] == pytest.approx(2 / 16)
    assert 0.35 < shares[1] < 0.65


def test_what_an_evaluation_computes(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    def columns(name: str, **settings: Any) -> dict[str, str]:
        run = trainer.fit(
            job(digits, Task.DETECTION, "yolo11n", tmp_path / name, number_of_epochs=1, **settings)
        )
        return rows(run)[-1]

    voc = columns("voc")
    assert {"mean_average_precision", "log_loss", "log_loss_train"} <= voc.keys()
    assert not any(name.startswith("coco") or "50" in name for name in voc)
    coco = columns("coco", validation_metric_type="coco_voc", log_validation_loss="Disable")
    assert len(coco.keys() - voc.keys()) >= 12
    assert "log_loss" not in coco
