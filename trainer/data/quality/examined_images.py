"""Training and validation images as one sequence, with their sizes and perceptual hashes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trainer.annotations import FloatArray, IntArray
from trainer.data.quality.image_checks import scan_images
from trainer.data.reading.records import Records, Scans

MAX_SCANNED = 20_000
"""At most this many images are decoded for hashes and sizes that are not known yet."""


@dataclass(frozen=True, slots=True)
class ExaminedImages:
    """Training images followed by validation images.

    Attributes:
        train: the training data.
        validation: the validation data, if there are any.
        scans: hashes and decoded sizes; zeros for images that were not decoded.
        sizes: int64 [n, 2], (width, height) in pixels as decoded, else as declared, else 0.
        scanned: number of decoded images.
    """

    train: Records
    validation: Records | None
    scans: Scans
    sizes: IntArray
    scanned: int

    @property
    def parts(self) -> list[Records]:
        """The training data, and the validation data if there are any."""
        return [self.train] if self.validation is None else [self.train, self.validation]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def at(self, index: int) -> tuple[Records, int]:
        """The records that hold an image, and its index in them."""
        if index < len(self.train):
            return self.train, index
        assert self.validation is not None, "further images are validation images"
        return self.validation, index - len(self.train)

    def where(self, index: int) -> str:
        """File and line of an image."""
        records, own_index = self.at(index)
        return records.location(own_index)

    def in_validation(self, index: int) -> bool:
        """Whether an image is a validation image."""
        return index >= len(self.train)


def examine(train: Records, validation: Records | None, *, limit: int = MAX_SCANNED) -> ExaminedImages:
    """Collect sizes and hashes of the images.

    Args:
        limit: if more than this many images were not decoded before, an evenly spaced sample of this size is
            decoded.
    """
    parts = [train] if validation is None else [train, validation]
    total = sum(len(part) for part in parts if part.scans is None)
    scans = [part.scans or scan_images(part, _sample(len(part), limit, total)) for part in parts]
    joined = Scans(
        np.concatenate([each.sizes for each in scans]), np.concatenate([each.hashes for each in scans])
    )
    declared = np.concatenate([part.sizes for part in parts]).astype(np.int64)
    scanned = np.asarray((joined.sizes > 0).all(axis=1))
    sizes = np.where(scanned[:, None], joined.sizes, declared).astype(np.int64)
    return ExaminedImages(train, validation, joined, sizes, int(scanned.sum()))


def with_offsets(images: ExaminedImages) -> Iterable[tuple[Records, int]]:
    """Each part with the index of its first image."""
    lengths = [len(part) for part in images.parts]
    return zip(images.parts, itertools.accumulate([0, *lengths[:-1]]), strict=True)


def object_sizes(records: Records, sizes: IntArray) -> tuple[FloatArray, FloatArray]:
    """Width and height of each box.

    Args:
        sizes: [n, 2], (width, height) of the images in pixels; 0 where unknown.

    Returns:
        float32 [m, 2] as fractions of the image, and float32 [m, 2] in pixels, NaN where unknown.
    """
    assert records.boxes is not None, "tasks with boxes have them"
    fractions = (records.boxes[:, 2:] - records.boxes[:, :2]).astype(np.float32)
    per_object = np.repeat(sizes, np.diff(records.starts), axis=0).astype(np.float32)
    pixels = np.where(per_object > 0, fractions * per_object, np.nan).astype(np.float32)
    return fractions, pixels


def _sample(count: int, limit: int, total: int) -> IntArray:
    """The images of a part to decode: all, or its share of the limit, evenly spaced."""
    if total <= limit:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, max(1, limit * count // total)).astype(np.int64))
