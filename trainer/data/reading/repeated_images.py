"""Images that several lines name: joined for boxes and polygons, an error for classification."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, IntArray
from trainer.data.reading.file_report import FileReport
from trainer.data.reading.records import Records
from trainer.data.reading.schema import show
from trainer.tasks import Task

Place: TypeAlias = tuple[int, int]
"""Index of a data file, and a line in it, counted from 1."""


def join_repeated(
    records: Records, reports: Sequence[FileReport], label_key: str
) -> tuple[Records, dict[Place, list[Place]]]:
    """Make each image one record.

    For boxes and polygons, the first line of an image gets the objects of all its lines, but those equal to
    one of an earlier line. For classification, further lines are errors.

    Args:
        reports: of each file; they get the warnings and errors.
        label_key: the key of a line that holds the label.

    Returns:
        The records, and for each joined image its further lines by its first.
    """
    originals = _first_records(records)
    repeated = np.flatnonzero(originals != np.arange(len(records)))
    if not len(repeated):
        return records, {}
    further_lines: dict[Place, list[Place]] = defaultdict(list)
    for index in repeated.tolist():
        original = int(originals[index])
        file, line = int(records.file_index[index]), int(records.lines[index])
        url, where = show(records.image_url(index)), records.location(original)
        if records.task.has_boxes:
            rule = "names the image of an earlier line, which gets the objects of both"
            reports[file].add_shared_warning(line, "image_url", rule, f"{url} as at {where}")
            place = int(records.file_index[original]), int(records.lines[original])
            further_lines[place].append((file, line))
            continue
        hint = f"the image is already at {where}"
        if records.task is not Task.CLASSIFICATION:
            hint += "; put all labels of an image on one line"
        reports[file].add_error(line, "image_url", "must be unique", url, hint)
    if records.task.has_boxes:
        is_equal = _equal_objects(records, originals, repeated)
        for index in records.image_of_objects()[is_equal].tolist():
            report, line = reports[records.file_index[index]], int(records.lines[index])
            rule = "objects equal to those of an earlier line of the image are left out"
            report.add_shared_warning(line, label_key, rule, what="such objects")
        sizes = _known_sizes(records, originals, repeated)
        records = dataclasses.replace(records.without_objects(is_equal), sizes=sizes).gathered(originals)
    return records.subset(np.setdiff1d(np.arange(len(records)), repeated)), dict(further_lines)


def _first_records(records: Records) -> IntArray:
    """The first record of each record's image, int64 [n]."""
    hashes = records.source_hashes()
    order = np.argsort(hashes, kind="stable")
    repeated = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
    originals = np.arange(len(records))
    first: dict[str, int] = {}
    for position in repeated.tolist():
        index, previous = int(order[position]), int(order[position - 1])
        first.setdefault(records.source(previous), previous)
        originals[index] = first.setdefault(records.source(index), index)  # hashes may collide
    return originals


def _equal_objects(records: Records, originals: IntArray, repeated: IntArray) -> BoolArray:
    """Whether each object equals one of an earlier line of its image, [m]."""
    is_equal = np.zeros(len(records.labels), dtype=np.bool_)
    earlier: dict[int, set[bytes]] = {}
    for index in repeated.tolist():
        original = int(originals[index])
        if original not in earlier:
            earlier[original] = {_content(records, number) for number in _objects_of(records, original)}
        contents = {number: _content(records, number) for number in _objects_of(records, index)}
        for number, content in contents.items():
            is_equal[number] = content in earlier[original]
        earlier[original] |= set(contents.values())
    return is_equal


def _objects_of(records: Records, index: int) -> range:
    return range(records.starts[index], records.starts[index + 1])


def _content(records: Records, number: int) -> bytes:
    """Class, shape and crowd flag of an object."""
    assert records.boxes is not None, "only tasks with boxes have objects"
    assert records.crowd is not None, "only tasks with boxes have objects"
    parts = [records.labels[number], records.crowd[number], records.boxes[number]]
    if (polygons := records.polygons) is not None:
        segments = polygons.segment_starts[
            polygons.object_starts[number] : polygons.object_starts[number + 1] + 1
        ]
        parts += [np.diff(segments), polygons.points[segments[0] : segments[-1]]]
    return b"".join(part.tobytes() for part in parts)


def _known_sizes(records: Records, originals: IntArray, repeated: IntArray) -> npt.NDArray[np.int32]:
    """The declared sizes, those of an image's first line from a further one if it declares none."""
    sizes = records.sizes.copy()
    for index in repeated.tolist():
        if not sizes[originals[index]].all():
            sizes[originals[index]] = sizes[index]
    return sizes
