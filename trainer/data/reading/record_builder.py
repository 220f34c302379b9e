"""Builds Records from the lines of one data file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.annotations import FloatArray, IntArray
from trainer.data.reading.records import Folder, Polygons, Records, starts_of
from trainer.data.reading.schema import SMALLEST_SIDE, Box, Outline
from trainer.tasks import Task


class MixedClassNames(NamedTuple):
    """The records whose class names are of the rarer type in their file, and that type's name in messages."""

    indices: IntArray
    kind: str


class RecordBuilder:
    """Collects one file's records in Python lists, which `pack` moves into compact arrays."""

    def __init__(self, task: Task, file_name: str) -> None:
        self._task = task
        self._file_name = file_name
        self._classes: dict[str | int, int] = {}  # keeps 1 and "1" apart until `finish`
        self._names: list[bytes] = []
        self._packed: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _DTYPES}
        self._pending: dict[str, list[Any]] = {name: [] for name in _DTYPES}
        self._pending_names: list[bytes] = []
        adders: dict[Task, Callable[[Any, bool], bool]] = {
            Task.CLASSIFICATION: self._add_class_name,
            Task.MULTILABEL: self._add_class_names,
            Task.DETECTION: self._add_boxes,
            Task.SEGMENTATION: self._add_outlines,
        }
        self._add_label = adders[task]
        self._label_counts = self._pending["label_counts"]
        self._labels = self._pending["labels"]
        self._crowd = self._pending["crowd"]
        self._coordinates = self._pending["coordinates"]

    def add(
        self, line: int, folder: int, name: str, size: tuple[int, int], label: Any, *, checked: bool
    ) -> bool:
        """Add a line.

        Args:
            line: its number, counted from 1.
            folder: index of the folder in the resolver's `folders`.
            name: the rest of the image_url.
            size: declared (width, height); 0 where undeclared.
            label: `label` of the task's struct in `schema`.
            checked: the careful reader has found the line valid.

        Returns:
            False, without adding the line, if the careful reader must examine it first.
        """
        if not self._add_label(label, checked):
            return False
        pending = self._pending
        pending["lines"].append(line)
        pending["folder_index"].append(folder)
        pending["sizes"] += size
        self._pending_names.append(name.encode())
        return True

    def pack(self) -> None:
        """Move the lines added since the last call into arrays."""
        for name, values in self._pending.items():
            self._packed[name].append(np.array(values, dtype=_DTYPES[name]))
            values.clear()
        self._packed["name_lengths"][-1] = np.array([len(n) for n in self._pending_names], dtype=np.int64)
        self._names.append(b"".join(self._pending_names))
        self._pending_names.clear()

    def finish(self, folders: Sequence[Folder]) -> tuple[Records, MixedClassNames]:
        """Return all records, and which of them have class names of the wrong type.

        Class names in a file must be all strings or all integers; where both occur, the rarer type is wrong.
        """
        self.pack()
        columns = {name: np.concatenate(parts) for name, parts in self._packed.items()}
        self._packed.clear()
        starts = starts_of(columns["label_counts"])
        mixed = self._mixed_class_names(columns["labels"], starts)
        classes = tuple(sorted({str(name) for name in self._classes}))
        position = {name: index for index, name in enumerate(classes)}
        final_index = np.array([position[str(name)] for name in self._classes], dtype=np.int32)
        coordinates = columns["coordinates"].clip(0, 1)
        boxes, polygons = None, None
        if self._task is Task.DETECTION:
            boxes = coordinates.reshape(-1, 4)
        elif self._task is Task.SEGMENTATION:
            segment_starts = starts_of(columns["segment_lengths"])
            polygons = Polygons(
                starts_of(columns["segment_counts"]), segment_starts, coordinates.reshape(-1, 2)
            )
            boxes = _bounds(polygons)
        records = Records(
            task=self._task,
            classes=classes,
            files=(self._file_name,),
            file_index=np.zeros(len(columns["lines"]), dtype=np.int32),
            lines=columns["lines"],
            folders=tuple(folders),
            folder_index=columns["folder_index"],
            names=b"".join(self._names),
            name_starts=starts_of(columns["name_lengths"]),
            sizes=columns["sizes"].reshape(-1, 2),
            starts=starts,
            labels=final_index[columns["labels"]] if len(final_index) else columns["labels"],
            boxes=boxes,
            crowd=columns["crowd"] if self._task.has_boxes else None,
            polygons=polygons,
        )
        return records, mixed

    def _class_index(self, name: str | int) -> int:
        """A class's temporary index while the file is read; -1 for a name of spaces."""
        index = self._classes.get(name)
        if index is None:
            if isinstance(name, str) and not name.strip():
                return -1
            index = self._classes[name] = len(self._classes)
        return index

    def _add_class_name(self, label: str | int, _checked: bool) -> bool:
        index = self._class_index(label)
        if index < 0:
            return False
        self._labels.append(index)
        self._label_counts.append(1)
        return True

    def _add_class_names(self, label: list[str | int], _checked: bool) -> bool:
        indices = [self._class_index(name) for name in label]
        if -1 in indices:
            return False
        self._labels.extend(indices)
        self._label_counts.append(len(indices))
        return True

    def _add_boxes(self, label: list[Box], checked: bool) -> bool:
        count = len(self._labels)
        for box in label:
            left, top, right, bottom = box.topX, box.topY, box.bottomX, box.bottomY
            index = self._classes.get(box.label, -1)
            if index < 0:
                index = self._class_index(box.label)
            narrow = right - left < SMALLEST_SIDE or bottom - top < SMALLEST_SIDE
            if index < 0 or (narrow and not checked):
                del self._labels[count:], self._crowd[count:], self._coordinates[4 * count :]
                return False
            self._labels.append(index)
            self._crowd.append(box.isCrowd)
            self._coordinates += (left, top, right, bottom)
        self._label_counts.append(len(label))
        return True

    def _add_outlines(self, label: list[Outline], checked: bool) -> bool:
        indices = [self._class_index(outline.label) for outline in label]
        if -1 in indices or not (checked or all(_is_well_formed(outline) for outline in label)):
            return False
        self._labels.extend(indices)
        for outline in label:
            self._crowd.append(outline.isCrowd)
            self._pending["segment_counts"].append(len(outline.polygon))
            for segment in outline.polygon:
                self._pending["segment_lengths"].append(len(segment) // 2)
                self._coordinates += segment
        self._label_counts.append(len(label))
        return True

    def _mixed_class_names(self, labels: npt.NDArray[np.int32], starts: IntArray) -> MixedClassNames:
        is_number = np.array([isinstance(name, int) for name in self._classes], dtype=np.bool_)
        if is_number.all() or not is_number.any():
            return MixedClassNames(np.zeros(0, dtype=np.int64), "")
        numbers = np.diff(np.concatenate([[0], np.cumsum(is_number[labels])])[starts])
        texts = np.diff(starts) - numbers
        if numbers.sum() <= texts.sum():
            return MixedClassNames(np.flatnonzero(numbers), "integers")
        return MixedClassNames(np.flatnonzero(texts), "strings")


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


def _is_well_formed(outline: Outline) -> bool:
    """Whether the segments hold whole points and certainly span an area."""
    polygon = outline.polygon
    if any(len(segment) % 2 for segment in polygon):
        return False
    width = max(max(s[::2]) for s in polygon) - min(min(s[::2]) for s in polygon)
    height = max(max(s[1::2]) for s in polygon) - min(min(s[1::2]) for s in polygon)
    return width >= SMALLEST_SIDE and height >= SMALLEST_SIDE


def _bounds(polygons: Polygons) -> FloatArray:
    """Boxes around objects, float32 [m, 4] xyxy; each object has a segment of at least three points."""
    if len(polygons.object_starts) == 1:
        return np.zeros((0, 4), dtype=np.float32)
    first_points = polygons.segment_starts[polygons.object_starts[:-1]]
    low = np.minimum.reduceat(polygons.points, first_points, axis=0)
    high = np.maximum.reduceat(polygons.points, first_points, axis=0)
    return np.concatenate([low, high], axis=1)
