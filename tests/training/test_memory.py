"""Running out of memory: the allocator's own errors, met by training in micro-batches."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

import trainer
from tests.conformance.conftest import Case, make_case
from tests.training.conftest import job, rows
from trainer.data.samples import SampleData
from trainer.errors import NoMemoryError, TrainingError
from trainer.job.job import Job
from trainer.models import catalog
from trainer.models.card import ModelEntry
from trainer.models.defaults import takes
from trainer.models.training_items import Draw
from trainer.tasks import Task
from trainer.training.batch_size import FindBatchSize, largest_power_of_two
from trainer.training.evaluation import Evaluation
from trainer.training.loading import Batches
from trainer.training.memory import ran_out_of_memory
from trainer.training.train import settings_to_lower

ROOT = Path(__file__).parents[2]


class SmallMemory(Callback):
    """From a batch on, a forward pass of more than `most` images asks for memory that no machine has."""

    def __init__(self, most: int, from_batch: int = 0) -> None:
        self.most, self.from_batch = most, from_batch
        self.sizes: list[int] = []

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        def before(network: Any, inputs: Any) -> None:
            if network.training:
                self.sizes.append(len(inputs[0]))
                if trainer.global_step >= self.from_batch and len(inputs[0]) > self.most:
                    torch.empty(2**55, dtype=torch.uint8)

        module.network.register_forward_pre_hook(before)


VIT = {"validation_crop_size": 32, "training_crop_size": 32, "training_batch_size": 8, "number_of_epochs": 2}


def test_the_allocators_error_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert ran_out_of_memory(caught.value)
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not ran_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize("accumulated", [1, 2])
def test_micro_batches_train_like_whole_batches(
    digits: dict[Task, SampleData], tmp_path: Path, accumulated: int
) -> None:
    """A ViT has no batch statistics, so the gradients of micro-batches add up to those of the batch."""
    values = {**VIT, "gradient_accumulation_step": accumulated}
    whole = trainer.fit(job(digits, Task.CLASSIFICATION, "timm/test_vit", tmp_path / "whole", **values))
    memory = SmallMemory(most=3, from_batch=1)
    split = trainer.fit(
        job(digits, Task.CLASSIFICATION, "timm/test_vit", tmp_path / "split", **values), callbacks=[memory]
    )
    for one, other in zip(rows(whole), rows(split), strict=True):
        for name in ("train_loss", "log_loss", "learning_rate"):
            assert float(other[name]) == pytest.approx(float(one[name]), abs=2e-4)
    assert 4 in memory.sizes  # tried after 8
    assert set(memory.sizes[-4:]) == {2}
    log = split.log.read_text("utf-8")
    assert "ran out of memory with batches of 8 images" in log
    assert f"micro-batches of 2 and gradients accumulated over {4 * accumulated}" in log


def test_micro_batches_stay_small_after_a_resume(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    first = trainer.fit(
        job(digits, Task.CLASSIFICATION, "timm/test_vit", tmp_path / "run", **VIT),
        callbacks=[SmallMemory(most=4)],
    )
    again = SmallMemory(most=4)
    trainer.resume(first.directory, {"number_of_epochs": 3}, callbacks=[again])
    assert set(again.sizes) == {4}


def test_one_image_too_many_is_an_error_with_advice(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"one image at a time; lower training_crop_size \(32\)"):
        trainer.fit(
            job(digits, Task.CLASSIFICATION, "timm/test_vit", tmp_path / "run", **VIT),
            callbacks=[SmallMemory(most=0)],
        )


@pytest.mark.parametrize("entry", catalog.MODELS.values(), ids=lambda entry: entry.name)
def test_advice_names_only_settings_that_the_model_has(entry: ModelEntry) -> None:
    wanted = Job(task=entry.tasks[0], training_data="a", model=entry.name)
    for batch in (4, 1):
        settings = wanted.changed(settings={"validation_batch_size": batch}).resolve_settings()
        names = re.findall(r"(\w+) \(\d+\)", settings_to_lower(wanted, settings))
        assert len(names) == (2 if batch > 1 else 1)
        assert ("validation_batch_size" in names) is (batch > 1)
        assert all(takes(entry, name) for name in names)


def test_advice_for_validation_names_the_size_of_validation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(Task.MULTILABEL, "resnet18")
    evaluation = Evaluation(case.family, case.examples.targets, case.settings)
    monkeypatch.setattr(evaluation, "_score", lambda network, batch: False)
    with pytest.raises(NoMemoryError, match="one validation image; lower validation_crop_size or take"):
        evaluation.add(torch.nn.Linear(1, 1), {"plain": [{}], "whole": []})


MODELS = [
    (Task.MULTILABEL, "resnet18"),
    (Task.DETECTION, "fasterrcnn_resnet18_fpn"),
    (Task.SEGMENTATION, "yolo11n-seg"),
    (Task.DETECTION, "rtdetr-resnet50"),
]


@pytest.mark.parametrize(("task", "model"), MODELS, ids=[model for _, model in MODELS])
def test_part_of_a_batch_equals_the_batch_of_those_images(task: Task, model: str) -> None:
    case: Case = make_case(task, model)
    dataset = case.family.training_dataset(case.examples, case.settings, seed=0)
    items = [dataset.item(Draw(0, index)) for index in range(4)]
    for start, stop in ((1, 3), (0, 1)):
        part = case.family.part(case.family.collate(items), start, stop)
        expected = case.family.collate([dataset.item(Draw(0, index)) for index in range(start, stop)])
        assert part.keys() == expected.keys()
        for name, value in expected.items():
            _same(part[name], value)


def _same(one: Any, other: Any) -> None:
    if isinstance(other, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(other, dict):
        for name, value in other.items():
            _same(one[name], value)
    elif isinstance(other, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            _same(*pair)
    else:
        assert one == other


def test_the_search_ends_at_the_largest_power_of_two_that_fits() -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= 40

    assert largest_power_of_two(fits, most=1000) == 32
    assert tried == [2, 4, 8, 16, 32, 64]
    assert largest_power_of_two(fits, most=20) == 16
    assert largest_power_of_two(lambda _: False, most=1000) == 1


def test_auto_tries_the_largest_size_of_multi_scale() -> None:
    case = make_case(Task.DETECTION, "yolo11n", multi_scale=True, image_size=64)
    batches = Batches(case.family, case.examples, case.examples, case.settings, 0)
    network = case.build()
    shapes: list[tuple[int, ...]] = []
    network.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    module: Any = SimpleNamespace(network=network, settings=case.settings, on_train_epoch_start=network.train)
    lightning: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )
    FindBatchSize(batches)._step(lightning, module, 2)
    assert shapes == [(2, 3, 96, 96)]


def test_auto_on_a_cpu_is_the_models_default(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    run = trainer.fit(
        job(
            digits,
            Task.DETECTION,
            "yolo11n",
            tmp_path / "run",
            training_batch_size="auto",
            number_of_epochs=1,
        )
    )
    log = run.log.read_text("utf-8")
    assert "training_batch_size auto: 16, the model's default; memory does not limit it on a CPU" in log


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_auto_on_a_gpu_leaves_headroom(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    values = {**VIT, "training_batch_size": "auto", "number_of_epochs": 1}
    torch.cuda.set_per_process_memory_fraction(0.5)
    try:
        run = trainer.fit(
            job(digits, Task.CLASSIFICATION, "timm/test_vit", tmp_path / "run", **values).model_copy(
                update={"gpus": 1}
            )
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "16 images fit" in run.log.read_text("utf-8")


REUSING = """
import ctypes, resource, sys
from contextlib import nullcontext
import numpy as np
from trainer.training.memory import keep_freed_memory

libc = ctypes.CDLL(None)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

with keep_freed_memory() if sys.argv[1] == "reused" else nullcontext():
    for step in range(20):
        if step == 5:
            before = faults()
        blocks = [np.ones(4_000_000) for _ in range(4)]  # 30.5 MiB each
        del blocks
    print(faults() - before)

    # More than the largest number of the allocator's parameters; memory that is not written to costs nothing.
    libc.sbrk.restype = libc.malloc.restype = ctypes.c_void_p
    blocks = [libc.malloc(ctypes.c_size_t(30 * 2**20)) for _ in range(80)]
    high = libc.sbrk(0)
    for block in blocks:
        libc.free(ctypes.c_void_p(block))
    kept = libc.sbrk(0)
if sys.argv[1] == "reused":
    assert kept == high
    assert libc.sbrk(0) < high - 2 * 2**30, "it is given back at the end"
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not GNU's")
def test_freed_memory_is_used_again() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", REUSING, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)

    assert faults("reused") < 0.05 * faults("not")
