"""Checks all labels of a file at once: clipped coordinates, objects without area, mixed class names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, IntArray
from trainer.data.reading.file_report import FileReport
from trainer.data.reading.record_builder import BuiltRecords, MixedClassNames
from trainer.data.reading.records import Polygons, Records, starts_of
from trainer.data.reading.schema import SHAPE_KEYS
from trainer.tasks import Task

Float64Array: TypeAlias = npt.NDArray[np.float64]

_THINNEST = 2.5e-7
"""Segments thinner than this, as a fraction of the image, are lines whose points float32 has rounded."""
_SEGMENTS_PER_BLOCK = 1 << 16
_MANY_INVERTED, _INVERTED_FRACTION = 10, 1 / 3
"""A file with at least this many inverted boxes, and at least this fraction of all, does not hold corners. If
the benchmarks' data sets had width and height in place of the second corner, 67 to 94 % would be inverted."""


def check_labels(built: BuiltRecords, report: FileReport, label_key: str) -> Records:
    """Report what is wrong with the labels of a file and return its records without what has to be left out.

    An object without an area costs only itself: its image stays, even without objects. A class name of the
    wrong type is an error: it costs its object or, in classification and where no object is left, its line.

    Args:
        report: gets the warnings and errors; it knows already which objects the records lack. If many boxes
            are inverted, it gets a single error for the file, since the other boxes are just as wrong.
        label_key: the key of a line that holds the label.
    """
    records, mixed = built.records, built.mixed
    if records.task is Task.DETECTION and _are_misread(records, report):
        return records
    is_thin = np.zeros(0, dtype=np.bool_) if records.polygons is None else _are_thin(records.polygons)
    lacks_area = _lack_area(records, is_thin)
    if lacks_area.any() or is_thin.any() or len(mixed.indices) or len(built.clipped):
        checks = _LabelReporter(records, report, label_key)
        checks.report_clipped(built.clipped, built.clipped_value)
        checks.report_without_area(lacks_area, is_thin)
        checks.report_mixed(mixed)
        left_out = lacks_area
        if not mixed.is_harmless:
            left_out[mixed.indices] = True
        records = _without_thin_segments(records, is_thin).without_objects(left_out)
    return _without_ruled_out(records, report)


def warn_of_backgrounds(records: Records, reports: Sequence[FileReport], label_key: str) -> None:
    """Warn of images all of whose objects are left out for lack of an area.

    Args:
        records: of all files, each image once.
        reports: of each file; get the warnings.
    """
    counts = np.diff(records.starts)
    ends = np.searchsorted(records.file_index, np.arange(len(reports) + 1))
    for report, start, end in zip(reports, ends[:-1], ends[1:], strict=True):
        lines = records.lines[start:end]
        for line, objects in report.left_out():
            record = int(np.searchsorted(lines, line))
            if objects and record < len(lines) and lines[record] == line and counts[start + record] == 0:
                rule = "is left without an object: the image is trained on as background"
                report.add_shared_warning(line, label_key, rule)


class _LabelReporter:
    """Reports labels of a file by their places in it."""

    def __init__(self, records: Records, report: FileReport, label_key: str) -> None:
        self._records = records
        self._report = report
        self._key = label_key
        self._images = records.image_of_objects()
        self._indices = _indices_in_lines(records, report)

    def report_clipped(self, objects: IntArray, first_value: float) -> None:
        """Warn of coordinates that were clipped.

        Args:
            objects: the object of each of them.
            first_value: the first of them.
        """
        if not len(objects):
            return
        line, field = self._place(int(objects[0]))
        rule = "coordinates should be in [0, 1]; those outside by at most a pixel or 0.5 % are clipped"
        self._report.add_shared_warning(
            line, field, rule, f"{first_value:.7g}", what="such values", count=len(objects)
        )

    def report_without_area(self, lacks_area: BoolArray, is_thin: BoolArray) -> None:
        """Warn of objects without an area, and of such segments of other objects.

        Args:
            lacks_area: [m].
            is_thin: [s]; empty except for segmentation.
        """
        polygons = self._records.polygons
        for index in np.flatnonzero(lacks_area).tolist():
            line, field = self._place(index)
            rule, got, hint = "must enclose an area", "points on one line", "the object is left out"
            if polygons is None:
                rule, got, reason = _flat_box(self._records, index)
                hint = f"{hint}; {reason}" if reason else hint
            else:
                field += ".polygon"
            self._report.add_degenerate(line, field, rule, got, hint, int(self._indices[index]))
        if polygons is None:
            return
        for segment in np.flatnonzero(is_thin).tolist():
            index = int(np.searchsorted(polygons.object_starts, segment, side="right")) - 1
            if not lacks_area[index]:
                line, field = self._place(index)
                field += f".polygon[{segment - polygons.object_starts[index]}]"
                hint = "the segment is left out"
                self._report.add_degenerate(line, field, "must enclose an area", "points on one line", hint)

    def report_mixed(self, mixed: MixedClassNames) -> None:
        """Report labels whose class names are of the rarer type, once for each line."""
        if not len(mixed.indices):
            return
        images, starts = np.unique(self._images[mixed.indices], return_index=True)
        for image, labels in zip(images.tolist(), np.split(mixed.indices, starts[1:]), strict=True):
            names = [self._records.classes[label] for label in self._records.labels[labels[:3]]]
            line, got = int(self._records.lines[image]), f"{mixed.kind}, {', '.join(names)}"
            if mixed.is_harmless:
                rule = 'class names in a file should be all strings or all integers; 1 and "1" are one class'
                self._report.add_shared_warning(line, self._key, rule, got)
                continue
            rule = "class names in a file must be all strings or all integers"
            objects = set(self._indices[labels].tolist()) if self._records.task.has_boxes else None
            self._report.add_shared_error(line, self._key, rule, got, objects=objects)

    def _place(self, index: int) -> tuple[int, str]:
        """The line of an object, and its field there."""
        return int(self._records.lines[self._images[index]]), f"{self._key}[{self._indices[index]}]"


def _indices_in_lines(records: Records, report: FileReport) -> IntArray:
    """The index of each label in its original line, int64 [m]: some objects may be left out already."""
    indices = np.arange(len(records.labels)) - np.repeat(records.starts[:-1], np.diff(records.starts))
    for line, left_out in report.left_out():
        record = int(np.searchsorted(records.lines, line))
        if left_out and record < len(records) and records.lines[record] == line:
            start, end = records.starts[record], records.starts[record + 1]
            original = np.arange(end - start + len(left_out))
            indices[start:end] = np.setdiff1d(original, list(left_out))
    return indices


def _are_misread(records: Records, report: FileReport) -> bool:
    """Whether a file's boxes are probably not given by their corners; if so, report it."""
    assert records.boxes is not None, "the file has boxes"
    is_inverted = records.boxes[:, 2:] < records.boxes[:, :2]
    inverted = np.flatnonzero(is_inverted.any(axis=1))
    if len(inverted) < max(_MANY_INVERTED, _INVERTED_FRACTION * len(is_inverted)):
        return False
    _, got, _ = _flat_box(records, int(inverted[0]))
    hint = "are these width and height? write topX + width as bottomX and topY + height as bottomY"
    if is_inverted[inverted].all():
        hint = "are the two corners swapped?"
    elif is_inverted[:, 1].all() and not is_inverted[:, 0].any():
        hint = "is y counted from the bottom of the image? it starts at the top"
    image = int(records.image_of_objects()[inverted[0]])
    rule = "boxes must have topX less than bottomX and topY less than bottomY"
    got = f"{len(inverted):,} of {len(is_inverted):,} that do not, the first with {got}"
    report.set_unreadable(int(records.lines[image]), rule, got, hint)
    return True


def _flat_box(records: Records, index: int) -> tuple[str, str, str]:
    """Rule, value and likely cause of a box without an area."""
    assert records.boxes is not None, "boxes were checked"
    box = dict(zip(SHAPE_KEYS[Task.DETECTION], records.boxes[index].tolist(), strict=True))
    near, far = ("topX", "bottomX") if box["bottomX"] <= box["topX"] else ("topY", "bottomY")
    got = f"{near} {box[near]:.7g} and {far} {box[far]:.7g}"
    hint = "are these corners, or width and height?" if box[far] < box[near] else ""
    return f"{near} must be less than {far}", got, hint


def _without_thin_segments(records: Records, is_thin: BoolArray) -> Records:
    """The same objects without thin segments, as far as they keep another."""
    if records.polygons is None or not is_thin.any():
        return records
    lacks_area = np.repeat(_lack_area(records, is_thin), np.diff(records.polygons.object_starts))
    polygons = records.polygons.without_segments(is_thin & ~lacks_area)
    return dataclasses.replace(records, polygons=polygons, boxes=polygons.bounds())


def _without_ruled_out(records: Records, report: FileReport) -> Records:
    """Leave out the lines that are ruled out as a whole, and those that lost their last object to an error.

    To train on the latter as background would teach that there is no object.
    """
    is_kept = np.ones(len(records), dtype=np.bool_)
    counts = np.diff(records.starts)
    for line, objects in report.left_out():
        record = int(np.searchsorted(records.lines, line))
        if record == len(records) or records.lines[record] != line:
            continue
        if objects is None:
            is_kept[record] = False
        elif objects and counts[record] == 0 and report.is_wrong(line):
            report.leave_out_whole(line)
            is_kept[record] = False
    return records if is_kept.all() else records.subset(np.flatnonzero(is_kept))


def _lack_area(records: Records, is_thin: BoolArray) -> BoolArray:
    """Whether each object has no area, [m]; `is_thin` as in report_without_area."""
    if records.polygons is not None:
        thin = starts_of(is_thin)[records.polygons.object_starts]
        return np.asarray(np.diff(thin) == np.diff(records.polygons.object_starts))
    if records.boxes is None:
        return np.zeros(len(records.labels), dtype=np.bool_)
    return np.asarray((records.boxes[:, 2:] <= records.boxes[:, :2]).any(axis=1))


def _are_thin(polygons: Polygons) -> BoolArray:
    """Whether the points of each segment lie on one line, [s]. A segment must have three points."""
    starts = polygons.segment_starts
    is_thin = np.zeros(len(starts) - 1, dtype=np.bool_)
    for first in range(0, len(is_thin), _SEGMENTS_PER_BLOCK):
        last = min(first + _SEGMENTS_PER_BLOCK, len(is_thin))
        points = polygons.points[starts[first] : starts[last]].astype(np.float64)
        begins = starts[first:last] - starts[first]
        following = np.roll(np.arange(len(points)), -1)
        following[np.append(begins[1:], len(points)) - 1] = begins
        points -= np.repeat(points[begins], np.diff(starts[first : last + 1]), axis=0)
        areas = np.add.reduceat(_cross(points, points[following]), begins) / 2
        spans = np.maximum.reduceat(points, begins, axis=0) - np.minimum.reduceat(points, begins, axis=0)
        # A self-intersecting polygon, such as a bow tie, may have a total of 0, too.
        suspects = np.abs(areas) <= _THINNEST * np.hypot(spans[:, 0], spans[:, 1])
        for index in np.flatnonzero(suspects).tolist():
            end = begins[index + 1] if index + 1 < len(begins) else len(points)
            is_thin[first + index] = _thickness(points[begins[index] : end]) <= _THINNEST
    return is_thin


def _thickness(points: Float64Array) -> float:
    """Width of a segment [p, 2] across the line from its first point, at the origin, to the farthest one."""
    distances = np.hypot(points[:, 0], points[:, 1])
    farthest = int(distances.argmax())
    if distances[farthest] <= _THINNEST:
        return 0.0
    return float(np.ptp(_cross(points, points[farthest]))) / float(distances[farthest])


def _cross(first: Float64Array, second: Float64Array) -> Float64Array:
    return np.asarray(first[:, 0] * second[..., 1] - first[:, 1] * second[..., 0])
