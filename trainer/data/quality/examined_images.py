"""The images of training and validation data as one row, and the form in which what is odd is told."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trainer.annotations import FloatArray, IntArray
from trainer.data.quality.image_checks import take_looks
from trainer.data.reading.records import Looks, Records

LOOKED_AT = 20_000
"""Images that are decoded for their hashes and sizes where nothing has decoded them before."""


@dataclass(frozen=True, slots=True)
class Place:
    """An image that a finding is about.

    Attributes:
        index: in training and validation data, one after the other.
        where: `train.jsonl:17`.
        detail: what is odd here.
        other: the image that this one is like, by its index.
        number: of the object, from 0, in its image; None if the finding is about the whole image.
    """

    index: int
    where: str
    detail: str
    other: int | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Attributes:
    kind: a short name, such as "leakage".
    title: what was found, in a few words.
    why: why it matters and what to do.
    places: where, in the data's order; none if it is about the data as a whole.
    serious: it likely spoils the training or its figures; else it may be meant so.
    """

    kind: str
    title: str
    why: str
    places: list[Place]
    serious: bool = False


@dataclass(frozen=True, slots=True)
class Images:
    """Training and validation images as one row, training first.

    Attributes:
        sizes: int64 [n, 2] (width, height) in pixels, as decoded, else as declared, else 0.
        looked_at: how many images the hashes and decoded sizes are of.
    """

    train: Records
    validation: Records | None
    looks: Looks
    sizes: IntArray
    looked_at: int

    @property
    def parts(self) -> list[Records]:
        return [self.train] if self.validation is None else [self.train, self.validation]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def at(self, index: int) -> tuple[Records, int]:
        """The records that an image is in, and its index there."""
        if index < len(self.train):
            return self.train, index
        assert self.validation is not None, "there are no others"
        return self.validation, index - len(self.train)

    def where(self, index: int) -> str:
        records, own = self.at(index)
        return records.location(own)

    def in_validation(self, index: int) -> bool:
        return index >= len(self.train)


def look_at(train: Records, validation: Records | None, *, limit: int = LOOKED_AT) -> Images:
    """Gather what is known of the images; those that nothing has decoded yet are, but at most `limit`.

    Of more than `limit` a part is drawn, the same one each time.
    """
    parts = [train] if validation is None else [train, validation]
    total = sum(len(part) for part in parts if part.looks is None)
    looks = [part.looks or take_looks(part, _drawn(len(part), limit, total)) for part in parts]
    joined = Looks(
        np.concatenate([each.sizes for each in looks]), np.concatenate([each.hashes for each in looks])
    )
    declared = np.concatenate([part.sizes for part in parts]).astype(np.int64)
    seen = np.asarray((joined.sizes > 0).all(axis=1))
    sizes = np.where(seen[:, None], joined.sizes, declared).astype(np.int64)
    return Images(train, validation, joined, sizes, int(seen.sum()))


def with_offsets(images: Images) -> Iterable[tuple[Records, int]]:
    """Each part with the index of its first image."""
    lengths = [len(part) for part in images.parts]
    return zip(images.parts, itertools.accumulate([0, *lengths[:-1]]), strict=True)


def object_sizes(records: Records, sizes: IntArray) -> tuple[FloatArray, FloatArray]:
    """For each box its sides as shares of the image, float32 [m, 2], and in pixels, NaN where unknown."""
    assert records.boxes is not None, "tasks with boxes have them"
    shares = (records.boxes[:, 2:] - records.boxes[:, :2]).astype(np.float32)
    per_object = np.repeat(sizes, np.diff(records.starts), axis=0).astype(np.float32)
    pixels = np.where(per_object > 0, shares * per_object, np.nan).astype(np.float32)
    return shares, pixels


def _drawn(count: int, limit: int, total: int) -> IntArray:
    """The images of a part that are decoded: all, or its share of the limit, evenly over the part."""
    if total <= limit:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, max(1, limit * count // total)).astype(np.int64))


def counted(count: int, one: str, several: str | None = None) -> str:
    """`1 image`, `3 images`."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
