"""Image records as NumPy columns: a million images with boxes take about 100 MB."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, FloatArray, IntArray, Objects, Target
from trainer.tasks import Task

Int32Array = npt.NDArray[np.int32]


class Folder(NamedTuple):
    """The part up to the last slash that many image_urls share.

    Attributes:
        written: as the data file has it.
        resolved: the local path or URL it stands for.
        is_quoted: whether the rest of the image_url is percent-encoded, as in file:// URLs.
    """

    written: str
    resolved: str
    is_quoted: bool = False

    def source(self, name: str) -> str:
        """The absolute local path or URL of an image, given the rest of its image_url."""
        return self.resolved + (unquote(name) if self.is_quoted else name)


@dataclass(frozen=True, slots=True)
class Polygons:
    """The segments of m objects; object j has segments object_starts[j] to object_starts[j + 1] (exclusive).

    Attributes:
        object_starts: int64 [m + 1].
        segment_starts: int64 [s + 1], start of each of the s segments in `points`.
        points: float32 [p, 2] of (x, y), normalised.
    """

    object_starts: IntArray
    segment_starts: IntArray
    points: FloatArray

    def bounds(self) -> FloatArray:
        """Boxes around the objects, float32 [m, 4] xyxy; each object must have a point."""
        if len(self.object_starts) == 1:
            return np.zeros((0, 4), dtype=np.float32)
        first_points = self.segment_starts[self.object_starts[:-1]]
        low = np.minimum.reduceat(self.points, first_points, axis=0)
        high = np.maximum.reduceat(self.points, first_points, axis=0)
        return np.concatenate([low, high], axis=1)

    def without_segments(self, is_left_out: BoolArray) -> Polygons:
        """The same objects without some of their segments.

        Args:
            is_left_out: [s].
        """
        lengths = np.diff(self.segment_starts)
        return Polygons(
            starts_of(~is_left_out)[self.object_starts],
            starts_of(lengths[~is_left_out]),
            self.points[np.repeat(~is_left_out, lengths)],
        )


@dataclass(frozen=True, slots=True)
class Scans:
    """Sizes and hashes of n images, found by decoding them; zeros where an image was not decoded.

    Attributes:
        sizes: int32 [n, 2], upright (width, height) in pixels.
        hashes: uint64 [n, 2], perceptual hashes; see trainer.data.image_scan.
    """

    sizes: Int32Array
    hashes: npt.NDArray[np.uint64]

    @classmethod
    def empty(cls, count: int) -> Scans:
        """Scans of `count` images of which none was decoded."""
        return cls(np.zeros((count, 2), np.int32), np.zeros((count, 2), np.uint64))

    def subset(self, indices: IntArray) -> Scans:
        return Scans(self.sizes[indices], self.hashes[indices])


@dataclass(frozen=True, slots=True)
class Records:
    """n images with their m labels; immutable, cheap to pickle.

    Record i is line `lines[i]` of `files[file_index[i]]`; its labels are `labels[starts[i]:starts[i + 1]]`;
    its image_url is `folders[folder_index[i]]` and `names[name_starts[i]:name_starts[i + 1]]`.

    Attributes:
        classes: sorted class names; labels are indices into them.
        files: names of the data files in messages.
        file_index: int32 [n].
        lines: int32 [n], line numbers counted from 1.
        folders: see Folder.
        folder_index: int32 [n].
        names: the rest of each image_url, UTF-8, concatenated.
        name_starts: int64 [n + 1].
        sizes: int32 [n, 2], (width, height) declared in image_details; 0 where undeclared.
        starts: int64 [n + 1].
        labels: int32 [m].
        boxes: float32 [m, 4], normalised xyxy, in segmentation those around the polygons; None for
            classification.
        crowd: bool [m]; None for classification.
        polygons: segmentation only.
        scans: of the images; None before they are decoded.
    """

    task: Task
    classes: tuple[str, ...]
    files: tuple[str, ...]
    file_index: Int32Array
    lines: Int32Array
    folders: tuple[Folder, ...]
    folder_index: Int32Array
    names: bytes
    name_starts: IntArray
    sizes: Int32Array
    starts: IntArray
    labels: Int32Array
    boxes: FloatArray | None = None
    crowd: BoolArray | None = None
    polygons: Polygons | None = None
    scans: Scans | None = None

    def __len__(self) -> int:
        return len(self.lines)

    def location(self, index: int) -> str:
        """File and line of the record, as in messages: `train.jsonl:17`."""
        return f"{self.files[self.file_index[index]]}:{self.lines[index]}"

    def image_url(self, index: int) -> str:
        """The image_url as the data file has it."""
        folder: Folder = self.folders[self.folder_index[index]]
        return folder.written + self._name(index)

    @property
    def image_urls(self) -> list[str]:
        """Every image_url as the data files have it."""
        return [self.image_url(index) for index in range(len(self))]

    def source(self, index: int) -> str:
        """The absolute local path or URL of the image; see fetching.local_path."""
        folder: Folder = self.folders[self.folder_index[index]]
        return folder.source(self._name(index))

    def is_target(self) -> BoolArray:
        """Which labels are learned and measured, bool [m]: all but those of crowds."""
        return np.ones(len(self.labels), dtype=np.bool_) if self.crowd is None else ~self.crowd

    def has_targets(self) -> BoolArray:
        """Which images have a label that is learned and measured, bool [n]."""
        return np.diff(starts_of(self.is_target())[self.starts]) > 0

    def target(self, index: int, classes: tuple[str, ...] | None = None) -> Target:
        """The target of an image.

        Args:
            classes: names that its labels are to index; the records' own if None.

        Raises:
            KeyError: `classes` lacks one of the records' own.
        """
        start, end = self.starts[index], self.starts[index + 1]
        labels = self.labels[start:end].astype(np.int64)
        if classes is None or classes is self.classes:
            classes = self.classes
        else:
            labels = _relabelling(self.classes, classes)[labels]
        if self.task is Task.CLASSIFICATION:
            return int(labels[0])
        if self.task is Task.MULTILABEL:
            present = np.zeros(len(classes), dtype=np.bool_)
            present[labels] = True
            return present
        assert self.boxes is not None, "tasks with boxes have them"
        assert self.crowd is not None, "tasks with boxes have them"
        polygons = None
        if self.polygons is not None:
            polygons = tuple(_segments(self.polygons, index) for index in range(start, end))
        return Objects(self.boxes[start:end].copy(), labels, self.crowd[start:end].copy(), polygons)

    def relabelled(self, classes: tuple[str, ...]) -> Records:
        """The same records with labels that index `classes`, which must include all of their own."""
        labels = _relabelling(self.classes, classes)[self.labels].astype(np.int32)
        return dataclasses.replace(self, classes=classes, labels=labels)

    def without_unused_classes(self) -> Records:
        """The same records without the classes that none of them has."""
        used = np.bincount(self.labels, minlength=len(self.classes)) > 0
        classes = tuple(name for name, is_used in zip(self.classes, used, strict=True) if is_used)
        labels = (np.cumsum(used) - 1)[self.labels].astype(np.int32)
        return dataclasses.replace(self, classes=classes, labels=labels)

    def with_only(self, classes: Sequence[str]) -> Records:
        """The same images without the labels of classes other than the given ones."""
        is_other = ~np.isin(np.array(self.classes), classes)[self.labels]
        return self.without_objects(is_other).without_unused_classes()

    def without_objects(self, is_left_out: BoolArray) -> Records:
        """The same images without some of their labels.

        Args:
            is_left_out: [m].
        """
        starts = starts_of(~is_left_out)[self.starts]
        return dataclasses.replace(self, starts=starts, **self._objects(np.flatnonzero(~is_left_out)))

    def image_of_objects(self) -> IntArray:
        """The index of each label's image, int64 [m]."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def gathered(self, owners: IntArray) -> Records:
        """The same images, each with the labels of all that it owns, in their order.

        Args:
            owners: [n], for each image the one that gets its labels: itself or an earlier one.
        """
        owner_of_objects = owners[self.image_of_objects()]
        starts = starts_of(np.bincount(owner_of_objects, minlength=len(self)))
        order = np.argsort(owner_of_objects, kind="stable")
        return dataclasses.replace(self, starts=starts, **self._objects(order))

    def subset(self, indices: Sequence[int] | IntArray) -> Records:
        """The records at `indices`, in that order, with the same classes."""
        index = np.asarray(indices, dtype=np.int64)
        bounds = zip(self.name_starts[index].tolist(), self.name_starts[index + 1].tolist(), strict=True)
        starts, objects = _take(self.starts, index)
        return dataclasses.replace(
            self,
            file_index=self.file_index[index],
            lines=self.lines[index],
            folder_index=self.folder_index[index],
            names=b"".join([self.names[start:end] for start, end in bounds]),
            name_starts=starts_of(np.diff(self.name_starts)[index]),
            sizes=self.sizes[index],
            starts=starts,
            scans=None if self.scans is None else self.scans.subset(index),
            **self._objects(objects),
        )

    def source_hashes(self) -> IntArray:
        """Hashes of the images' sources, int64 [n]; comparable within this process only."""
        starts, names = self.name_starts.tolist(), self.names
        # A million names pass here, so no Python code runs for each of them.
        slices = map(slice, starts[:-1], starts[1:])
        hashes = np.fromiter(map(hash, map(names.__getitem__, slices)), dtype=np.int64, count=len(self))
        is_quoted = np.array([folder.is_quoted for folder in self.folders], dtype=np.bool_)
        if is_quoted.any():
            for index in np.flatnonzero(is_quoted[self.folder_index]).tolist():
                hashes[index] = hash(unquote(names[starts[index] : starts[index + 1]]).encode())
        folders = np.array([hash(folder.resolved) for folder in self.folders], dtype=np.int64)
        return hashes * 1_000_003 ^ folders[self.folder_index] if len(self) else hashes

    def _objects(self, indices: IntArray) -> dict[str, Any]:
        """The columns of some objects."""
        return {
            "labels": self.labels[indices],
            "boxes": None if self.boxes is None else self.boxes[indices],
            "crowd": None if self.crowd is None else self.crowd[indices],
            "polygons": None if self.polygons is None else _polygon_subset(self.polygons, indices),
        }

    def _name(self, index: int) -> str:
        return self.names[self.name_starts[index] : self.name_starts[index + 1]].decode()


def concatenate(parts: Sequence[Records]) -> Records:
    """Join records of one task, at least one part, in order; their classes become the sorted union."""
    if len(parts) == 1:
        return parts[0]
    classes = tuple(sorted({name for part in parts for name in part.classes}))
    parts = [part.relabelled(classes) for part in parts]
    lengths = [len(part) for part in parts]
    file_offsets = np.cumsum([0, *(len(part.files) for part in parts[:-1])])
    folder_offsets = np.cumsum([0, *(len(part.folders) for part in parts[:-1])])

    def joined(column: str) -> Any:
        return np.concatenate([getattr(part, column) for part in parts])

    has_boxes = parts[0].task.has_boxes
    return Records(
        task=parts[0].task,
        classes=classes,
        files=tuple(file for part in parts for file in part.files),
        file_index=(joined("file_index") + np.repeat(file_offsets, lengths)).astype(np.int32),
        lines=joined("lines"),
        folders=tuple(folder for part in parts for folder in part.folders),
        folder_index=(joined("folder_index") + np.repeat(folder_offsets, lengths)).astype(np.int32),
        names=b"".join([part.names for part in parts]),
        name_starts=join_starts([part.name_starts for part in parts]),
        sizes=joined("sizes"),
        starts=join_starts([part.starts for part in parts]),
        labels=joined("labels"),
        boxes=joined("boxes") if has_boxes else None,
        crowd=joined("crowd") if has_boxes else None,
        polygons=join_polygons([part.polygons for part in parts if part.polygons is not None]),
    )


def join_polygons(parts: Sequence[Polygons]) -> Polygons | None:
    """The polygons of all parts in order; None if there is no part."""
    if not parts:
        return None
    return Polygons(
        object_starts=join_starts([part.object_starts for part in parts]),
        segment_starts=join_starts([part.segment_starts for part in parts]),
        points=np.concatenate([part.points for part in parts]),
    )


def join_starts(parts: Sequence[IntArray]) -> IntArray:
    """Join the row starts [n_k + 1] of several ragged arrays into those of the concatenated array."""
    return starts_of(np.concatenate([np.diff(part) for part in parts]))


def starts_of(lengths: npt.NDArray[np.number | np.bool_]) -> IntArray:
    """The row starts [n + 1] of a ragged array with rows of the given lengths [n]."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def _take(starts: IntArray, index: IntArray) -> tuple[IntArray, IntArray]:
    """Take rows of a ragged array: their new row starts, and the old indices of their elements."""
    lengths = starts[index + 1] - starts[index]
    taken = starts_of(lengths)
    return taken, np.arange(taken[-1]) + np.repeat(starts[index] - taken[:-1], lengths)


def _polygon_subset(polygons: Polygons, objects: IntArray) -> Polygons:
    object_starts, segments = _take(polygons.object_starts, objects)
    segment_starts, points = _take(polygons.segment_starts, segments)
    return Polygons(object_starts, segment_starts, polygons.points[points])


def _segments(polygons: Polygons, index: int) -> tuple[FloatArray, ...]:
    start, end = polygons.object_starts[index], polygons.object_starts[index + 1]
    starts = polygons.segment_starts[start : end + 1]
    return tuple(polygons.points[a:b].copy() for a, b in itertools.pairwise(starts))


@functools.lru_cache(maxsize=8)
def _relabelling(own: tuple[str, ...], classes: tuple[str, ...]) -> IntArray:
    """The index in `classes` of each own class, int64 [len(own)]."""
    index = {name: position for position, name in enumerate(classes)}
    return np.array([index[name] for name in own], dtype=np.int64)
