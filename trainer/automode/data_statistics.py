"""Statistics of the training data, on which AutoMode bases its choices."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from trainer.annotations import FloatArray, IntArray
from trainer.data.image_sources import read_image
from trainer.data.images import probe
from trainer.data.reading.records import Records
from trainer.data.training_data import Data
from trainer.tasks import Task

_SAMPLE_SIZE = 500
"""How many images are opened, only their headers, to measure images and objects."""
_PARALLEL_PROBES = 8


@dataclass(frozen=True)
class DataStatistics:
    """The training data in numbers.

    Attributes:
        images: number of images.
        classes: number of classes.
        width: median width of the upright images of a sample, in pixels.
        height: their median height.
        imbalance: frequency of the most frequent class divided by that of the rarest, at least 1.
        most_objects: most objects in one image, without crowds; 0 for classification.
        object_side: median side, √(width · height), of the sample's objects as a fraction of the long side
            of their image, in (0, 1]; 0 if there are no objects.
        small_object_side: the first quartile of the same.
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
        """A sentence for the log."""
        classes = "1 class" if self.classes == 1 else f"{self.classes} classes"
        text = f"{self.images:,} training images of {self.width} × {self.height} pixels, {classes}"
        if task.has_boxes and self.object_side:
            text += (
                f"; half of the objects are smaller than {_percent(self.object_side)} of the image's long "
                f"side, a quarter smaller than {_percent(self.small_object_side)}"
            )
        return text


def measure_data(data: Data) -> DataStatistics:
    """Count the training data, and measure a sample of its images and objects.

    Raises:
        ImageError: an image has become unreadable since the data were checked.
    """
    records = data.train
    class_counts = np.bincount(records.labels, minlength=len(data.classes))
    objects = _objects_per_image(records)
    # An image without objects would show the image size, but one with objects shows the objects' as well.
    candidates = np.flatnonzero(objects) if objects.any() else np.arange(len(records))
    positions = np.linspace(0, len(candidates) - 1, min(_SAMPLE_SIZE, len(candidates)))
    sample = candidates[positions.astype(int)]
    sizes = _image_sizes(records, sample)
    width, height = np.median(sizes, axis=0)
    sides = np.concatenate(
        [_object_sides(records, index, size) for index, size in zip(sample.tolist(), sizes, strict=True)]
    )
    small, median = np.quantile(sides, (0.25, 0.5)) if len(sides) else (0.0, 0.0)
    return DataStatistics(
        images=len(records),
        classes=len(data.classes),
        width=round(width),
        height=round(height),
        imbalance=max(1.0, float(class_counts.max() / max(1, class_counts.min()))),
        most_objects=int(objects.max()),
        object_side=float(median),
        small_object_side=float(small),
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %"


def _objects_per_image(records: Records) -> IntArray:
    """The number of objects in each image, without crowds, int64 [n]; zeros for classification."""
    if records.crowd is None:
        return np.zeros(len(records), dtype=np.int64)
    image_of = np.repeat(np.arange(len(records)), np.diff(records.starts))
    return np.bincount(image_of[~records.crowd], minlength=len(records))


def _image_sizes(records: Records, indices: IntArray) -> IntArray:
    """The upright (width, height) of each image in pixels, int64 [k, 2]."""
    sources = [records.source(index) for index in indices.tolist()]
    with ThreadPoolExecutor(_PARALLEL_PROBES) as pool:
        sizes = list(pool.map(lambda source: read_image(source, probe), sources))
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def _object_sides(records: Records, index: int, size: IntArray) -> FloatArray:
    """√(width · height) of an image's objects as a fraction of the image's long side, float32 [objects]."""
    if records.boxes is None or records.crowd is None:
        return np.zeros(0, dtype=np.float32)
    start, end = records.starts[index : index + 2]
    boxes = records.boxes[start:end][~records.crowd[start:end]]
    sides: FloatArray = np.sqrt(((boxes[:, 2:] - boxes[:, :2]) * size).prod(axis=1)) / size.max()
    return sides.astype(np.float32)
