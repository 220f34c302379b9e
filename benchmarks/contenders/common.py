"""Options, clock and metric that all contenders share."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks import data
from benchmarks.measuring import Absent, Measurements
from trainer import metrics
from trainer.annotations import Prediction
from trainer.tasks import Task


@dataclass
class Options:
    """Options of all contenders. R-CNNs resize the shorter side to image_size pixels."""

    task: str
    model: str
    train: str
    validation: str
    folder: str
    epochs: int = 3
    weights: str = "none"
    """Folder of published weights to start from; "none": random weights."""
    backbone: str = ""
    """timm/NAME: the backbone of an R-CNN instead of its ResNet."""
    regions: int | None = None
    """Regions of an image that an R-CNN's second stage sees; None for torchvision's numbers."""
    counted: int | None = None
    """Number of epochs to time, after the first; None for all."""
    batch: int | None = 16
    """Images per batch; None for our recipe's own."""
    image_size: int = 224
    workers: int = 2
    threads: int = 2
    device: str = "cpu"
    seed: int = 0
    score: bool = False
    last: bool = False
    """With `score`: measure the last epoch alone instead of the best of all."""
    optimizer: str = "sgd"
    """The optimizer of timm's loop."""
    weight_decay: float = 1e-4
    """The weight decay of timm's loop."""
    settings: dict[str, Any] = field(default_factory=dict)
    """More settings of ours."""
    recipe: str = "reference"
    learning_rate: float | None = None
    compile: bool = False
    """Only for ours."""

    @property
    def of_task(self) -> Task:
        return Task.parse(self.task)

    @property
    def classes(self) -> tuple[str, ...]:
        return data.all_classes(self.of_task, Path(self.train), Path(self.validation))


def main(train: Callable[[Options], Measurements]) -> None:
    """Run a contender with the options on the command line."""
    given = json.loads(sys.argv[1])
    options = Options(**{each.name: given[each.name] for each in fields(Options) if each.name in given})
    torch.set_num_threads(options.threads)
    try:
        print("\n" + json.dumps(train(options)))
    except (Absent, ModuleNotFoundError) as error:
        print("\n" + json.dumps({"absent": str(error)}))


class Clock:
    """Times training epochs from the first request for data to the end of the last step; no evaluation."""

    def __init__(self, device: str, counted: int | None = None) -> None:
        self.device = device
        self.counted = counted
        self.epochs: list[tuple[int, float]] = []
        self.first_step: float | None = None
        self._images, self._began = 0, 0.0

    def start(self) -> None:
        self._synchronise()
        self._images, self._began = 0, time.perf_counter()

    def step(self, images: int) -> None:
        self._images += images
        if self.first_step is None:
            self._synchronise()
            self.first_step = time.time() - psutil.Process(os.getpid()).create_time()

    def stop(self) -> None:
        self._synchronise()
        self.epochs.append((self._images, time.perf_counter() - self._began))

    def measurements(self) -> Measurements:
        counted = self.epochs[1:][: self.counted] or self.epochs
        return {
            "images_per_second": statistics.median(images / seconds for images, seconds in counted),
            "epoch_seconds": statistics.median(seconds for _, seconds in counted),
            "first_step_seconds": self.first_step or 0.0,
            **self._gpu(),
        }

    def _gpu(self) -> Measurements:
        return {"gpu_peak_mb": torch.cuda.max_memory_allocated() / 1e6} if self.device == "cuda" else {}

    def _synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def score(options: Options, predictions: Iterable[Prediction]) -> float:
    """Compute the primary metric of predictions for the validation images, in the order of the data."""
    task = options.of_task
    evaluator = metrics.create(task, options.classes)
    found = data.records(Path(options.validation), task, options.classes)
    for index, prediction in enumerate(predictions):
        evaluator.update(prediction, found.target(index))
    return evaluator.compute()[task.primary_metric]


def limit_regions(network: Any, options: Options) -> None:
    """Show an R-CNN's second stage fewer regions, since its layers take most of the time on a CPU."""
    if options.regions is not None:
        network.roi_heads.fg_bg_sampler.batch_size_per_image = options.regions
        limits = {"training": 2 * options.regions, "testing": options.regions}
        network.rpn._pre_nms_top_n = network.rpn._post_nms_top_n = limits


def autocast(options: Options) -> Any:
    """Use bfloat16 on a GPU, as ours does, and float32 on a CPU."""
    return torch.autocast(options.device, dtype=torch.bfloat16, enabled=options.device == "cuda")
