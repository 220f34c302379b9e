"""Builds Records from the lines of one data file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.annotations import IntArray
from trainer.data.reading.records import Folder, Polygons, Records, starts_of
from trainer.data.reading.schema import Box, Outline
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
        adders: dict[Task, Callable[[Any], bool]] = {
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

    def add(self, line: int, folder: int, name: str, size: tuple[int, int], label: Any) -> bool:
        """Add a line.

        Args:
            line: its number, counted from 1.
            folder: index of the folder in the resolver's `folders`.
            name: the rest of the image_url.
            size: declared (width, height); 0 where undeclared.
            label: `label` of the task's struct in `schema`; coordinates outside [0, 1] are clipped.

        Returns:
            False, without adding the line, if the careful reader must examine it first.
        """
        if not self._add_label(label):
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

    def finish(self, folders: Sequence[Folder]) -> BuiltRecords:
        """Return the records of all lines.

        Class names in a file must be all strings or all integers; where both occur, the rarer type is wrong.
        """
        self.pack()
        columns = {name: np.concatenate(parts) for name, parts in self._packed.items()}
        self._packed.clear()
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
            names=b"".join(self._names),
            name_starts=starts_of(columns["name_lengths"]),
            sizes=columns["sizes"].reshape(-1, 2),
            starts=starts,
            labels=final_index[columns["labels"]] if len(final_index) else columns["labels"],
            boxes=boxes,
            crowd=columns["crowd"] if self._task.has_boxes else None,
            polygons=polygons,
        )
        return BuiltRecords(records, mixed, clipped, clipped_value)

    def _class_index(self, name: str | int) -> int:
        """A class's temporary index while the file is read; -1 for a name of spaces."""
        index = self._classes.get(name)
        if index is None:
            if isinstance(name, str) and not name.strip():
                return -1
            index = self._classes[name] = len(self._classes)
        return index

    def _add_class_name(self, label: str | int) -> bool:
        index = self._class_index(label)
        if index < 0:
            return False
        self._labels.append(index)
        self._label_counts.append(1)
        return True

    def _add_class_names(self, label: list[str | int]) -> bool:
        indices = [self._class_index(name) for name in label]
        if -1 in indices:
            return False
        self._labels.extend(indices)
        self._label_counts.append(len(indices))
        return True

    def _add_boxes(self, label: list[Box]) -> bool:
        count = len(self._labels)
        for box in label:
            index = self._classes.get(box.label, -1)
            if index < 0:
                index = self._class_index(box.label)
                if index < 0:
                    del self._labels[count:], self._crowd[count:], self._coordinates[4 * count :]
                    return False
            self._labels.append(index)
            self._crowd.append(box.isCrowd)
            self._coordinates += (box.topX, box.topY, box.bottomX, box.bottomY)
        self._label_counts.append(len(label))
        return True

    def _add_outlines(self, label: list[Outline]) -> bool:
        indices = [self._class_index(outline.label) for outline in label]
        if -1 in indices or any(len(segment) % 2 for outline in label for segment in outline.polygon):
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
