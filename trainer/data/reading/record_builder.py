"""Builds Records from the lines of one data file."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.annotations import IntArray
from trainer.data.reading.records import Folder, Polygons, Records, starts_of
from trainer.data.reading.schema import Outline
from trainer.tasks import Task


class MixedClassNames(NamedTuple):
    """The labels whose class names are of the rarer type in their file.

    Attributes:
        indices: indices of these labels.
        kind: that type's name in messages.
        is_harmless: whether the strings are integers, such as "1", so that both name the same classes.
    """

    indices: IntArray
    kind: str = ""
    is_harmless: bool = True


class BuiltRecords(NamedTuple):
    """The records of a file, and what is to be said of their labels.

    Attributes:
        records: all lines that were added.
        mixed: class names of two types.
        clipped: indices of the objects of each coordinate that was outside [0, 1].
        clipped_value: the first such coordinate.
    """

    records: Records
    mixed: MixedClassNames
    clipped: IntArray
    clipped_value: float = 0.0


class FlatLabels(NamedTuple):
    """The labels of many lines in one list.

    Attributes:
        objects: the structs of all objects, or the classes.
        names: the classes of the objects.
        crowd: `isCrowd` of each object; empty for classes.
    """

    objects: Sequence[Any]
    names: Sequence[str | int]
    crowd: Sequence[Any]


class Columns(NamedTuple):
    """The values of lines, as a RecordBuilder collects them.

    Attributes:
        arrays: by name; labels index `classes`.
        names: the rest of each image_url, UTF-8, concatenated.
        classes: class names in the order of their first occurrence.
    """

    arrays: dict[str, npt.NDArray[Any]]
    names: bytes
    classes: list[str | int]


class RecordBuilder:
    """Collects one file's records in Python lists, which `pack` moves into compact arrays."""

    def __init__(self, task: Task, file_name: str) -> None:
        self._task = task
        self._file_name = file_name
        self._classes = _ClassIndices()  # keeps 1 and "1" apart until `finish`
        self._names: list[bytes] = []
        self._packed: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _DTYPES}
        self._pending: dict[str, list[Any]] = {name: [] for name in _DTYPES}
        self._pending_names: list[str] = []

    def add(
        self,
        first_line: int,
        folders: Sequence[int],
        names: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        labels: Sequence[Any],
        flat: FlatLabels | None = None,
    ) -> bool:
        """Add consecutive lines.

        Args:
            first_line: the number of the first one, counted from 1.
            folders: indices of their folders in the resolver's `folders`.
            names: the rest of each image_url.
            sizes: declared (width, height); 0 where undeclared.
            labels: `label` of the task's struct in `schema`; coordinates outside [0, 1] are clipped.
            flat: the same as `flat_labels` returns it, if the caller has it.

        Returns:
            False, without adding the lines, if the careful reader must examine one of them first.
        """
        if not self._add_labels(labels, flat or flat_labels(labels, self._task)):
            return False
        pending = self._pending
        pending["lines"].extend(range(first_line, first_line + len(labels)))
        pending["folder_index"].extend(folders)
        pending["sizes"].extend(itertools.chain.from_iterable(sizes))
        self._pending_names.extend(names)
        if len(pending["lines"]) >= _LINES_TO_PACK:
            self._pack()
        return True

    def _pack(self) -> None:
        """Move the lines added since the last call into arrays."""
        for name, values in self._pending.items():
            self._packed[name].append(np.fromiter(values, dtype=_DTYPES[name], count=len(values)))
            values.clear()
        joined = "".join(self._pending_names)
        names = self._pending_names if joined.isascii() else [name.encode() for name in self._pending_names]
        self._packed["name_lengths"][-1] = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
        self._names.append(joined.encode())
        self._pending_names.clear()

    def columns(self) -> Columns:
        """The values of all lines, which the builder then no longer has."""
        self._pack()
        arrays = {name: np.concatenate(parts) for name, parts in self._packed.items()}
        names = b"".join(self._names)
        self._packed, self._names = {name: [] for name in _DTYPES}, []
        return Columns(arrays, names, list(self._classes))

    def merge(self, columns: Columns, first_line: int, folders: Sequence[int]) -> None:
        """Add the lines of another builder, whose first line was number 1.

        Args:
            first_line: the number of the first one in this file.
            folders: the index of each of the other's folders among this builder's.
        """
        self._pack()
        arrays, classes = columns.arrays, list(map(self._classes.__getitem__, columns.classes))
        arrays["lines"] += first_line - 1
        arrays["folder_index"] = np.array(folders, dtype=np.int32)[arrays["folder_index"]]
        if classes:
            arrays["labels"] = np.array(classes, dtype=np.int32)[arrays["labels"]]
        for name, values in arrays.items():
            self._packed[name].append(values)
        self._names.append(columns.names)

    def finish(self, folders: Sequence[Folder]) -> BuiltRecords:
        """Return the records of all lines.

        Class names in a file must be all strings or all integers; where both occur, the rarer type is wrong.
        """
        columns, names, _ = self.columns()
        starts = starts_of(columns["label_counts"])
        mixed = self._mixed_class_names(columns["labels"])
        classes = tuple(sorted({str(name) for name in self._classes}))
        position = {name: index for index, name in enumerate(classes)}
        final_index = np.array([position[str(name)] for name in self._classes], dtype=np.int32)
        coordinates = columns["coordinates"]
        outside = np.flatnonzero((coordinates < 0) | (coordinates > 1))
        clipped_value = float(coordinates[outside[0]]) if len(outside) else 0.0
        coordinates.clip(0, 1, out=coordinates)
        boxes, polygons, clipped = None, None, outside
        if self._task is Task.DETECTION:
            boxes, clipped = coordinates.reshape(-1, 4), outside // 4
        elif self._task is Task.SEGMENTATION:
            segment_starts = starts_of(columns["segment_lengths"])
            polygons = Polygons(
                starts_of(columns["segment_counts"]), segment_starts, coordinates.reshape(-1, 2)
            )
            boxes = polygons.bounds()
            object_ends = segment_starts[polygons.object_starts[1:]]
            clipped = np.searchsorted(object_ends, outside // 2, side="right")
        records = Records(
            task=self._task,
            classes=classes,
            files=(self._file_name,),
            file_index=np.zeros(len(columns["lines"]), dtype=np.int32),
            lines=columns["lines"],
            folders=tuple(folders),
            folder_index=columns["folder_index"],
            names=names,
            name_starts=starts_of(columns["name_lengths"]),
            sizes=columns["sizes"].reshape(-1, 2),
            starts=starts,
            labels=final_index[columns["labels"]] if len(final_index) else columns["labels"],
            boxes=boxes,
            crowd=columns["crowd"] if self._task.has_boxes else None,
            polygons=polygons,
        )
        return BuiltRecords(records, mixed, clipped, clipped_value)

    def _add_labels(self, labels: Sequence[Any], flat: FlatLabels) -> bool:
        """Add the labels of lines, or none of them and return False."""
        objects = flat.objects
        if self._task is Task.SEGMENTATION and not _have_whole_points(objects):
            return False
        try:
            indices = list(map(self._classes.__getitem__, flat.names))
        except _BlankName:
            return False
        pending = self._pending
        pending["labels"].extend(indices)
        is_single = self._task is Task.CLASSIFICATION
        pending["label_counts"].extend([1] * len(labels) if is_single else map(len, labels))
        if self._task.has_boxes:
            pending["crowd"].extend(flat.crowd)
        if self._task is Task.DETECTION:
            pending["coordinates"].extend(itertools.chain.from_iterable(map(_CORNERS, objects)))
        elif self._task is Task.SEGMENTATION:
            segments = [segment for outline in objects for segment in outline.polygon]
            pending["segment_counts"].extend([len(outline.polygon) for outline in objects])
            pending["segment_lengths"].extend([len(segment) // 2 for segment in segments])
            pending["coordinates"].extend(itertools.chain.from_iterable(segments))
        return True

    def _mixed_class_names(self, labels: npt.NDArray[np.int32]) -> MixedClassNames:
        is_number = np.array([isinstance(name, int) for name in self._classes], dtype=np.bool_)
        if is_number.all() or not is_number.any():
            return MixedClassNames(np.zeros(0, dtype=np.int64))
        are_numbers = is_number[labels]
        is_word = np.array([not _is_integer(str(name)) for name in self._classes], dtype=np.bool_)
        is_harmless = not is_word.any()
        if np.count_nonzero(are_numbers) <= np.count_nonzero(~are_numbers):
            return MixedClassNames(np.flatnonzero(are_numbers), "integers", is_harmless)
        are_words = ~are_numbers if is_harmless else is_word[labels]
        return MixedClassNames(np.flatnonzero(are_words), "strings", is_harmless)


def flat_labels(labels: Sequence[Any], task: Task) -> FlatLabels:
    """The objects or classes of all lines, one by one.

    Args:
        labels: `label` of the task's struct in `schema`.
    """
    objects = labels if task is Task.CLASSIFICATION else list(itertools.chain.from_iterable(labels))
    if not task.has_boxes:
        return FlatLabels(objects, objects, ())
    return FlatLabels(objects, [each.label for each in objects], [each.isCrowd for each in objects])


_LINES_TO_PACK = 128  # so that few Python numbers exist at a time, which is faster
_CORNERS = operator.attrgetter("topX", "topY", "bottomX", "bottomY")


class _BlankName(Exception):  # noqa: N818 (the line is not wrong yet)
    """A class name consists of spaces."""


class _ClassIndices(dict[str | int, int]):
    """The temporary index of each class while a file is read."""

    def __missing__(self, name: str | int) -> int:
        if isinstance(name, str) and not name.strip():
            raise _BlankName
        index = self[name] = len(self)
        return index


def _have_whole_points(outlines: Sequence[Outline]) -> bool:
    return not any(len(segment) % 2 for outline in outlines for segment in outline.polygon)


_DTYPES: dict[str, type[np.generic]] = {
    "lines": np.int32,
    "folder_index": np.int32,
    "name_lengths": np.int64,
    "sizes": np.int32,
    "label_counts": np.int64,
    "labels": np.int32,
    "crowd": np.bool_,
    "coordinates": np.float32,
    "segment_counts": np.int64,
    "segment_lengths": np.int64,
}


def _is_integer(text: str) -> bool:
    """Whether a class name is written as the integer would be: "1", but not "01"."""
    try:
        return str(int(text)) == text
    except ValueError:
        return False
