"""Training on several ranks, and what happens to the others when one fails."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

import trainer
from tests.training.processes import VIT, children, job, metrics_of, start
from trainer.data.samples import SampleData
from trainer.errors import TrainingError
from trainer.tasks import Task
from trainer.training import ranks
from trainer.training.fit import fit


@pytest.mark.slow
def test_two_ranks_of_a_detector_take_the_same_step_as_one(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    """With copies of one image, each rank has the batch norms and loss divisors of the whole batch.

    What can still differ is how the ranks' gradients are summed.
    """
    source = digits[Task.DETECTION]
    line = json.loads(source.train.read_text("utf-8").splitlines()[0])
    # Large enough for an untrained network to match it, so that all losses count.
    box = {"label": "one", "topX": 0.02, "topY": 0.02, "bottomX": 0.98, "bottomY": 0.98}
    lines = [{"label": [box], "image_url": f"{number}.png"} for number in range(8)]
    for copied in lines:
        shutil.copyfile(source.train.parent / line["image_url"], tmp_path / copied["image_url"])
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    still = {"apply_mosaic_for_yolo": False, "apply_automl_train_augmentations": False}
    settings = {"image_size": 96, "advanced_settings": still, "gradient_clip_value": 1e9}
    settings |= {"warmup_cosine_lr_warmup_epochs": 0, "number_of_epochs": 1}
    weights, losses = [], []
    # No step, one step, one step of two ranks.
    for number, (processes, rate) in enumerate(((1, 0.0), (1, 1e-4), (2, 1e-4))):
        sizes = {"training_batch_size": 8 // processes, "learning_rate": rate}
        wanted = job(
            source, tmp_path / str(number), "yolo11n", processes=processes,
            training_data=str(tmp_path / "train.jsonl"), settings={**settings, **sizes},
        )  # fmt: skip
        run = trainer.fit(wanted)
        losses.append(metrics_of(run)[0]["train_loss"])
        state = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
        learned = [state[name] for name in state if name.endswith((".weight", ".bias"))]
        weights.append(torch.cat([tensor.flatten() for tensor in learned]))
    # A CPU's batch norms round a little differently for batches of other sizes.
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)
    step = torch.linalg.vector_norm(weights[1] - weights[0])
    assert torch.linalg.vector_norm(weights[2] - weights[1]) < 0.05 * step


@pytest.mark.slow
def test_packaged_model_scores_as_evaluated_on_two_ranks(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    """Ranks have their own batch-norm statistics; all score with those of rank 0, which are saved."""
    data = digits[Task.CLASSIFICATION]
    settings = {"training_crop_size": 48, "validation_crop_size": 48, "training_batch_size": 4}
    wanted = job(
        data, tmp_path / "run", "timm/test_resnet", processes=2,
        settings={**settings, "number_of_epochs": 1, "learning_rate": 0.1},
    )  # fmt: skip
    run = trainer.fit(wanted)
    answers = [json.loads(line) for line in run.predictions.read_text("utf-8").splitlines()]
    labels = [json.loads(line)["label"] for line in data.validation.read_text("utf-8").splitlines()]
    losses = [
        -math.log(a["probs"][a["labels"].index(label)]) for a, label in zip(answers, labels, strict=True)
    ]
    assert run.read_result().metrics["log_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


@pytest.mark.slow
def test_ranks_may_have_different_numbers_of_validation_batches(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    """transformers' own loss would wait for a batch that the other rank does not have."""
    source = digits[Task.DETECTION]
    for name, file, count in (("train", source.train, 4), ("validation", source.validation, 3)):
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()[:count]]
        for line in lines:
            line["image_url"] = str(file.parent / line["image_url"])
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    settings = {"image_size": 96, "training_batch_size": 2, "validation_batch_size": 1, "number_of_epochs": 1}
    settings["nms_iou_threshold"] = 0.3
    wanted = job(
        source, tmp_path / "run", "rfdetr-nano", processes=2, settings=settings,
        training_data=str(tmp_path / "train.jsonl"), validation_data=str(tmp_path / "validation.jsonl"),
    )  # fmt: skip
    run = trainer.fit(wanted)
    assert math.isfinite(run.read_result().metrics["log_loss"])
    warning = "nms_iou_threshold: 0.3 has no effect: rfdetr-nano has no NMS"
    assert run.log.read_text("utf-8").count(warning) == 1


class FailOn(Callback):
    """Fails on one rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        if trainer.global_rank == self.rank:
            raise TrainingError("cuda:1 ran out of memory")


@pytest.mark.slow
def test_error_of_another_rank_is_raised(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    wanted = job(digits[Task.CLASSIFICATION], tmp_path / "run", processes=2, settings=VIT)
    with pytest.raises(TrainingError, match=r"^rank 1: cuda:1 ran out of memory$"):
        trainer.fit(wanted, callbacks=[FailOn(1)])
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_failed_nccl_group_blocks_only_later_distributed_runs(
    digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a failure on GPUs: an NCCL group cannot be left while one of its ranks is dead."""
    monkeypatch.setattr(ranks, "_ends_alone", lambda: False)
    monkeypatch.setattr(ranks.OtherRanks, "_left", False)
    data = digits[Task.CLASSIFICATION]
    try:
        with pytest.raises(TrainingError, match=r"^rank 1: cuda:1 ran out of memory$"):
            trainer.fit(job(data, tmp_path / "1", processes=2, settings=VIT), callbacks=[FailOn(1)])
        assert torch.distributed.is_initialized()
        with pytest.raises(TrainingError, match=r"cannot train on 2 processes.*; do it in a new process"):
            trainer.fit(job(data, tmp_path / "2", processes=2, settings=VIT))
        run = fit(job(data, tmp_path / "3", processes=1, settings=VIT), packages=False)
        assert run.read_result().best_epoch
    finally:
        torch.distributed.destroy_process_group()


def test_unpicklable_callback_is_an_error(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    class Local(Callback):
        pass

    wanted = job(digits[Task.CLASSIFICATION], tmp_path / "run", processes=2, settings=VIT)
    with pytest.raises(TrainingError, match=r"callbacks cannot be sent .*Local"):
        trainer.fit(wanted, callbacks=[Local()])


WAITING = """
import os, sys, time
from pathlib import Path
from trainer.training import ranks
from trainer.training.devices import Devices

def follow(devices, ready, seconds):
    ready()
    time.sleep(seconds)
    sys.exit(7)

if __name__ == "__main__":
    import waiting
    ranks._SECONDS_TO_NOTICE = 1.0
    with ranks.OtherRanks(Devices("", False, 1, 0, 2, 0), Path("runs/mine")) as others:
        others.start(waiting.follow, int(sys.argv[1]))
        print("waits", flush=True)
        time.sleep(300)
"""
"""Hangs as in an NCCL exchange, which cannot be interrupted."""


@pytest.mark.slow
def test_dead_rank_ends_a_process_stuck_in_an_exchange(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    process = start([sys.executable, "waiting.py", "1"], tmp_path)
    said, errors = process.communicate(timeout=100)
    assert (process.returncode, said) == (1, "waits\n")
    assert errors.startswith("error: rank 1 ended (exit status 7)")
    assert "trainer fit --resume runs/mine" in errors


@pytest.mark.slow
def test_other_ranks_end_when_rank_zero_is_killed(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    process = start([sys.executable, "waiting.py", "300"], tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    (rank,) = children(process)
    process.kill()
    process.communicate(timeout=60)
    until = time.monotonic() + 20
    while Path(f"/proc/{rank}").exists() and "zombie" not in Path(f"/proc/{rank}/status").read_text():
        assert time.monotonic() < until
        time.sleep(0.1)


class OutOfMemoryOnce(Callback):
    """On rank 1, the first batch of more than 2 images runs out of memory, forward or backward."""

    def __init__(self, where: str) -> None:
        self.where, self.failed = where, False

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if trainer.global_rank == 1 and self.where != "nowhere":
            module.network.register_forward_hook(self.fail)

    def fail(self, _network: Any, inputs: Any, output: Any) -> None:
        if len(inputs[0]) <= 2 or self.failed or not output.requires_grad:
            return
        self.failed = True
        if self.where == "forward":
            self.run_out()
        output.register_hook(self.run_out)

    def run_out(self, *_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_rank_that_runs_out_of_memory_splits_its_batch_alone(
    where: str, digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    data = digits[Task.CLASSIFICATION]
    settings = {**VIT, "number_of_epochs": 1, "training_batch_size": 4}
    runs = [
        fit(
            job(data, tmp_path / name, processes=2, settings=settings),
            packages=False,
            callbacks=[OutOfMemoryOnce(name)],
        )
        for name in ("nowhere", where)
    ]
    whole, split = (metrics_of(run)[0] for run in runs)
    for name in ("train_loss", "log_loss"):
        assert split[name] == pytest.approx(whole[name], abs=2e-4)
