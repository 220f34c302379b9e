"""What AutoMode goes by: facts of the data, and what one trial has of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.annotations import FloatArray, IntArray
from trainer.data.images import probe
from trainer.data.reading.records import Records
from trainer.data.reading.urls import local_path
from trainer.data.training_data import Data
from trainer.job.job import Job
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.sweep.execution.slots import Slot

_SAMPLE = 500
"""So many images are opened, as far as their headers, to learn how large images and objects are."""
_PROBES_AT_ONCE = 8


@dataclass(frozen=True)
class Facts:
    """The training data in numbers.

    Attributes:
        images, classes: how many.
        width, height: of the upright images in pixels, medians of a sample.
        imbalance: how many times as frequent as the rarest class the most frequent one is, at least 1.
        most_objects: in one image, crowds left out; 0 for classification.
        object_side: of the sample's objects the median side, √(width · height), as a part of the long side
            of their image, in (0, 1]; 0 where there is none.
        small_object_side: a quarter of them are smaller than this.
    """

    images: int
    classes: int
    width: int
    height: int
    imbalance: float = 1.0
    most_objects: int = 0
    object_side: float = 0.0
    small_object_side: float = 0.0

    @property
    def long_side(self) -> int:
        return max(self.width, self.height)

    @property
    def short_side(self) -> int:
        return min(self.width, self.height)

    def in_words(self, task: Task) -> str:
        """The numbers as a user reads them."""
        classes = "1 class" if self.classes == 1 else f"{self.classes} classes"
        text = f"{self.images:,} training images of {self.width} × {self.height} pixels, {classes}"
        if task.has_boxes and self.object_side:
            text += (
                f"; half of the objects are smaller than {_percent(self.object_side)} of the image's long "
                f"side, a quarter smaller than {_percent(self.small_object_side)}"
            )
        return text


@dataclass(frozen=True)
class Machine:
    """What one trial has to itself.

    Attributes:
        gpus: how many; 0: it trains on the CPU.
        memory: of each GPU, GiB; of different ones the least.
        bandwidth: of that memory, GB/s.
        cores: of the CPU.
    """

    gpus: int
    memory: float
    bandwidth: float
    cores: int

    def in_words(self) -> str:
        """The machine as a user reads it."""
        if not self.gpus:
            return (
                f"trials on the CPU, each on {self.cores} core{'s' if self.cores > 1 else ''}: small models"
            )
        return f"trials on {self.gpus} GPU{'s' if self.gpus > 1 else ''} of {self.memory:.0f} GiB each"


def measure(data: Data) -> Facts:
    """Count the training data, and look at the images of a sample of them.

    Raises:
        ImageError: an image has become unreadable since the data were checked.
    """
    records = data.train
    counts = np.bincount(records.labels, minlength=len(data.classes))
    per_image = _objects_per_image(records)
    # Of images without objects the size would do, but those with some tell two things at once.
    candidates = np.flatnonzero(per_image) if per_image.any() else np.arange(len(records))
    chosen = candidates[np.linspace(0, len(candidates) - 1, min(_SAMPLE, len(candidates))).astype(int)]
    sizes = _sizes(records, chosen)
    width, height = np.median(sizes, axis=0)
    sides = np.concatenate(
        [_sides(records, index, size) for index, size in zip(chosen.tolist(), sizes, strict=True)]
    )
    small, middle = np.quantile(sides, (0.25, 0.5)) if len(sides) else (0.0, 0.0)
    return Facts(
        images=len(records),
        classes=len(data.classes),
        width=round(width),
        height=round(height),
        imbalance=max(1.0, float(counts.max() / max(1, counts.min()))),
        most_objects=int(per_image.max()),
        object_side=float(middle),
        small_object_side=float(small),
    )


def machine(job: Job, slots: Sequence[Slot]) -> Machine:
    """What each of these slots has; of different GPUs the least."""
    slot = slots[0]
    if not slot.gpus:
        return Machine(0, 0.0, 0.0, slot.threads * (job.processes or 1))
    import torch

    count = sum(len(each.gpus) for each in slots)
    found = [torch.cuda.get_device_properties(index) for index in range(count)]
    memory = min(each.total_memory for each in found) / 2**30
    return Machine(len(slot.gpus), memory, min(map(_bandwidth, found)), slot.threads)


def _percent(part: float) -> str:
    return f"{100 * part:.2g} %"


def _bandwidth(device: Any) -> float:
    """GB/s: two transfers a clock, in kHz, on all lines of the bus, in bits."""
    return float(2 * device.memory_clock_rate * 1e3 * device.memory_bus_width / 8 / 1e9)


def _objects_per_image(records: Records) -> IntArray:
    """How many objects that are no crowds each image has, int64 [n]; zeros for classification."""
    if records.crowd is None:
        return np.zeros(len(records), dtype=np.int64)
    image_of = np.repeat(np.arange(len(records)), np.diff(records.starts))
    return np.bincount(image_of[~records.crowd], minlength=len(records))


def _sizes(records: Records, indices: IntArray) -> IntArray:
    """Upright (width, height) of each image, int64 [k, 2]."""
    sources = [records.source(index) for index in indices.tolist()]
    with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
        found = list(pool.map(lambda source: probe(local_path(source)), sources))
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _sides(records: Records, index: int, size: IntArray) -> FloatArray:
    """√(width · height) of an image's objects, as a part of the long side of its (width, height)."""
    if records.boxes is None or records.crowd is None:
        return np.zeros(0, dtype=np.float32)
    begin, end = records.starts[index : index + 2]
    boxes = records.boxes[begin:end][~records.crowd[begin:end]]
    sides: FloatArray = np.sqrt(((boxes[:, 2:] - boxes[:, :2]) * size).prod(axis=1)) / size.max()
    return sides.astype(np.float32)
