"""Finds every error in the label of a line, and what can be used of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from msgspec import UNSET

from trainer.data.reading.line_report import Degenerate, LineReport, has_key, note_unknown
from trainer.data.reading.schema import CLIPPED_FRACTION, OVERSHOOT, SHAPE_KEYS, Box, Outline, show
from trainer.errors import Problem
from trainer.tasks import Task

_OBJECT_KEYS = {task: ("label", *keys, "isCrowd") for task, keys in SHAPE_KEYS.items()}
_SMALLEST_PIXEL = 2
"""Coordinates from this value on may be in pixels."""
_LARGEST_NUMBER = 10**15
"""Integers beyond it may be too large for a float."""
_LARGEST_PIXEL = 1_000_000
"""Coordinates above this value are not in pixels."""


def read_label(label: Any, task: Task, report: LineReport) -> Any:
    """Return what can be used of a label, as the fast reader does; None if nothing can.

    Objects with errors, and those with too few points, are left out.

    Args:
        label: the value under `label`, of any type.
        report: gets the errors; it must have the line's declared size.
    """
    return _LABEL_READERS[task](label, task, report)


def _read_class_name(label: Any, task: Task, report: LineReport) -> Any:
    """The label if it is valid; otherwise None, as in the functions below."""
    if isinstance(label, list | dict):
        _add_wrong_shape("label", label, task, report)
    elif _is_class_name("label", label, report):
        return label
    return None


def _read_class_names(label: Any, task: Task, report: LineReport) -> Any:
    if not isinstance(label, list) or any(isinstance(entry, dict | list) for entry in label):
        _add_wrong_shape("label", label, task, report)
        return None
    are_valid = [_is_class_name(f"label[{index}]", name, report) for index, name in enumerate(label)]
    return label if all(are_valid) else None


def _read_objects(label: Any, task: Task, report: LineReport) -> Any:
    """The valid objects of a line; None if it is no list of objects, or all have errors."""
    needed, known = SHAPE_KEYS[task], _OBJECT_KEYS[task]
    # Further keys, of other tasks, are allowed: one file may serve several tasks.
    has_keys = isinstance(label, list) and any(
        isinstance(e, dict) and not e.keys().isdisjoint(needed) for e in label
    )
    if not isinstance(label, list) or (not has_keys and _task_of_label(label) is not None):
        _add_wrong_shape("label", label, task, report)
        return None
    objects = []
    for index, entry in enumerate(label):
        before = len(report.problems)
        path = f"label[{index}]"
        shape = None
        if isinstance(entry, dict):
            note_unknown(entry, known, "label[].", report)
            if has_key(entry, "label", known, path, report):
                _is_class_name(f"{path}.label", entry["label"], report)
            crowd = entry.get("isCrowd", 0)
            if not isinstance(crowd, bool | int) or crowd not in (0, 1):
                report.add_value(f"{path}.isCrowd", "must be 0, 1, true or false", crowd)
            shape = _SHAPE_READERS[task](path, entry, index, report)
        else:
            report.add_value(path, f"must be an object {{{', '.join(known)}}}", entry)
        if len(report.problems) > before:
            report.wrong_objects.add(index)
        elif shape is not None:
            objects.append(_STRUCTS[task](entry["label"], *shape, entry.get("isCrowd", UNSET)))
    return objects if objects or not report.wrong_objects else None


def _read_corners(path: str, box: dict[str, Any], _index: int, report: LineReport) -> list[Any]:
    keys = SHAPE_KEYS[Task.DETECTION]
    for axis, key in enumerate(keys):
        if has_key(box, key, _OBJECT_KEYS[Task.DETECTION], path, report):
            _is_coordinate(f"{path}.{key}", box[key], axis % 2, report)
    return [box.get(key) for key in keys]


def _read_polygon(path: str, outline: dict[str, Any], index: int, report: LineReport) -> list[Any] | None:
    """The polygon without segments of under three points; None if no segment is left."""
    if not has_key(outline, "polygon", _OBJECT_KEYS[Task.SEGMENTATION], path, report):
        return None
    path, polygon = f"{path}.polygon", outline["polygon"]
    if not isinstance(polygon, list) or not all(isinstance(part, list) for part in polygon):
        is_flat = isinstance(polygon, list) and all(_is_number(value) for value in polygon)
        hint = "wrap it in another list: [[x1, y1, …]]" if is_flat else ""
        report.add_value(path, "must be a list of at least one segment [x1, y1, x2, y2, …]", polygon, hint)
        return None
    are_points = len(polygon) > 2 and all(len(segment) == 2 for segment in polygon)
    if are_points or any(isinstance(value, list) for segment in polygon for value in segment):
        hint = "write the points of a segment as one list: [[x1, y1, x2, y2, …]]"
        report.add_value(path, "must be a list of segments, not of points", polygon, hint)
        return None
    are_valid = [_is_segment(f"{path}[{number}]", part, report) for number, part in enumerate(polygon)]
    if not all(are_valid):
        return None
    segments = [segment for segment in polygon if len(segment) >= 6]
    rule = "must have at least 3 points (6 numbers)"
    if not segments:
        got = _points(max(polygon, key=len, default=[]))
        hint = "the object is left out"
        report.degenerate.append(Degenerate(index, Problem("", path, rule, got, hint, warning=True)))
        return None
    for number, segment in enumerate(polygon):
        if len(segment) < 6:
            problem = Problem("", f"{path}[{number}]", rule, _points(segment), warning=True)
            report.degenerate.append(Degenerate(None, replace(problem, hint="the segment is left out")))
    return [segments]


def _is_segment(path: str, segment: Sequence[Any], report: LineReport) -> bool:
    """Whether a segment holds whole points; if not, report it."""
    if len(segment) % 2:
        report.add(path, "must hold pairs x, y", f"{len(segment)} numbers")
    # Report only the first wrong number of a segment: if one is in pixels, all are.
    are_valid = all(
        _is_coordinate(f"{path}[{index}]", value, index % 2, report) for index, value in enumerate(segment)
    )
    return are_valid and len(segment) % 2 == 0


def _points(segment: Sequence[Any]) -> str:
    count = len(segment) // 2
    return f"{count} point{'s' * (count != 1)}"


_LABEL_READERS: dict[Task, Callable[[Any, Task, LineReport], Any]] = {
    Task.CLASSIFICATION: _read_class_name,
    Task.MULTILABEL: _read_class_names,
    Task.DETECTION: _read_objects,
    Task.SEGMENTATION: _read_objects,
}
_SHAPE_READERS: dict[Task, Callable[[str, dict[str, Any], int, LineReport], list[Any] | None]] = {
    Task.DETECTION: _read_corners,
    Task.SEGMENTATION: _read_polygon,
}
_STRUCTS: dict[Task, Callable[..., Box | Outline]] = {Task.DETECTION: Box, Task.SEGMENTATION: Outline}


def _task_of_label(label: object) -> Task | None:
    """The task whose label has this shape; None if it is ambiguous, such as an empty list."""
    if isinstance(label, str) or (isinstance(label, int) and not isinstance(label, bool)):
        return Task.CLASSIFICATION
    if not isinstance(label, list) or not label:
        return None
    if all(isinstance(entry, str | int) for entry in label):
        return Task.MULTILABEL
    if all(isinstance(entry, dict) for entry in label):
        if any("polygon" in entry for entry in label):
            return Task.SEGMENTATION
        if any(key in entry for entry in label for key in SHAPE_KEYS[Task.DETECTION]):
            return Task.DETECTION
    return None


def _add_wrong_shape(path: str, label: object, task: Task, report: LineReport) -> None:
    other = _task_of_label(label)
    hint = f"this looks like {other.value} data" if other is not None and other is not task else ""
    if label is None and task is not Task.CLASSIFICATION:
        hint = "write [] for an image without any"
    report.add_value(path, f"must be {task.label_shape} for {task.value}", label, hint)


def _is_class_name(path: str, name: object, report: LineReport) -> bool:
    """Whether a value is a class name; if not, report it."""
    if isinstance(name, bool) or not isinstance(name, str | int):
        report.add_value(path, "must be a class name (a string)", name)
        return False
    if isinstance(name, str) and not name.strip():
        report.add(path, "must be a class name", "an empty string" if not name else show(name))
        return False
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_coordinate(path: str, value: Any, axis: int, report: LineReport) -> bool:
    """Whether a value is a valid coordinate; if not, report it. `axis` is 0 for x, 1 for y."""
    if not _is_number(value):
        report.add_value(path, "must be a number in [0, 1]", value)
        return False
    if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        report.add_value(path, "must be in [0, 1]", value)
        return False
    if isinstance(value, float) and not math.isfinite(value):
        report.add_value(path, "must be a finite number in [0, 1]", value)
        return False
    outside = max(-value, value - 1) - OVERSHOOT
    if outside <= CLIPPED_FRACTION:
        return True
    # The image is opened only for what may be a pixel outside: half of a tiny image.
    side = report.side(axis) if outside <= 0.5 else report.size[axis]
    if side and outside <= 1 / side:
        return True
    may_be_pixels = _SMALLEST_PIXEL <= value <= (side + 1 if side else _LARGEST_PIXEL)
    pixels = f" ({side})" if side else ""
    hint = f"is it in pixels? divide it by the image's {('width', 'height')[axis]}{pixels}"
    report.add_value(path, "must be in [0, 1]", value, hint if may_be_pixels else "")
    return False
