"""Finds every error in a line that the fast reader rejected, in the terms of the data schema."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from msgspec import UNSET

from trainer.data.reading.habits import take_as_meant
from trainer.data.reading.schema import (
    CLIPPED_FRACTION,
    FORMATS,
    LABEL_KEY,
    OVERSHOOT,
    SHAPE_KEYS,
    Box,
    Details,
    Line,
    Outline,
    show,
    side_length,
)
from trainer.errors import Problem
from trainer.tasks import Task

_LINE_KEYS = ("image_url", "image_details", "label")
_DETAIL_KEYS = ("format", "width", "height")
_OBJECT_KEYS = {task: ("label", *keys, "isCrowd") for task, keys in SHAPE_KEYS.items()}
_SMALLEST_PIXEL = 2
"""Coordinates from this value on may be in pixels."""


class Degenerate(NamedTuple):
    """An object that has too few points, or one of its segments; it is left out.

    Attributes:
        position: the object's index in the line; None if the object keeps other segments.
        problem: a warning with an empty `where`.
    """

    position: int | None
    problem: Problem


@dataclass
class LineReport:
    """What `examine_line` finds in one line.

    Attributes:
        line: what can be used of the line, as the fast reader returns it, with coordinates up to a pixel
            outside [0, 1]; None if nothing can.
        problems: its errors, with an empty `where`.
        wrong_objects: indices of the objects with errors; they are not in `line`.
        degenerate: objects and segments without an area, as far as they are not in `line`.
        lenient: warnings of what is taken as meant although the schema has it otherwise.
        unknown_keys: fields without their indices (`label[].pose`), each once.
        image_url: None unless it is a string.
        size: declared (width, height) in pixels; 0 where undeclared.
        is_json: whether the line is a JSON object.
        lacks_label: whether it lacks the key that the job names as its label's.
    """

    line: Line[Any] | None = None
    problems: list[Problem] = field(default_factory=list)
    wrong_objects: set[int] = field(default_factory=set)
    degenerate: list[Degenerate] = field(default_factory=list)
    lenient: list[Problem] = field(default_factory=list)
    unknown_keys: dict[str, None] = field(default_factory=dict)
    image_url: str | None = None
    size: tuple[int, int] = (0, 0)
    is_json: bool = True
    lacks_label: bool = False

    def add(self, name: str, rule: str, got: str = "", hint: str = "") -> None:
        """Add a problem of the field `name`."""
        self.problems.append(Problem("", name, rule, got, hint))

    def rename_label(self, label_key: str) -> None:
        """Change the fields of an examined line that have the label under `label` to those of its own key."""

        def renamed(name: str) -> str:
            is_label = name == LABEL_KEY or name.startswith(f"{LABEL_KEY}[")
            return label_key + name.removeprefix(LABEL_KEY) if is_label else name

        def with_name(problem: Problem) -> Problem:
            return replace(problem, field=renamed(problem.field))

        self.problems = [with_name(problem) for problem in self.problems]
        self.lenient = [with_name(problem) for problem in self.lenient]
        self.degenerate = [Degenerate(index, with_name(problem)) for index, problem in self.degenerate]
        self.unknown_keys = {renamed(key): None for key in self.unknown_keys}

    def add_value(self, name: str, rule: str, value: object, hint: str = "") -> None:
        """Add a problem whose `got` is a JSON value."""
        self.add(name, rule, show(value), hint)


def examine_line(
    text: bytes,
    task: Task,
    label_key: str = LABEL_KEY,
    is_dropped: Callable[[str], bool] = lambda _: False,
) -> LineReport:
    """Find every error in one line.

    Args:
        label_key: the key of the label.
        is_dropped: whether a key is to be overlooked.
    """
    report = LineReport()
    content = _parse(text, report)
    if report.problems:
        report.is_json = False
        return report
    content = {key: value for key, value in content.items() if not is_dropped(key)}
    if label_key == LABEL_KEY:
        _examine(content, task, report)
    elif label_key in content:
        others = {key: value for key, value in content.items() if key not in (LABEL_KEY, label_key)}
        _examine({**others, LABEL_KEY: content[label_key]}, task, report)
        report.rename_label(label_key)
    else:
        report.lacks_label = True
        report.add(label_key, "is missing", f"the keys {', '.join(map(show, content))}")
    if label_key != LABEL_KEY and LABEL_KEY in content:
        report.unknown_keys[LABEL_KEY] = None
    return report


def _examine(content: dict[str, Any], task: Task, report: LineReport) -> None:
    """Examine a line whose label is under `label`; `content` is changed."""
    report.lenient = take_as_meant(content, task)
    _note_unknown(content, _LINE_KEYS, "", report)
    if _has(content, "image_url", _LINE_KEYS, "", report):
        if isinstance(content["image_url"], str):
            report.image_url = content["image_url"]
        else:
            report.add_value("image_url", "must be a string", content["image_url"])
    details = content.get("image_details")
    if details is not None:
        _check_details(details, report)
    label = None
    if _has(content, "label", _LINE_KEYS, "", report):
        are_valid = not report.problems
        label = _LABEL_READERS[task](content["label"], task, report)
        if are_valid and label is not None:
            details = None if details is None else Details(**_only(details, _DETAIL_KEYS))
            report.line = Line(content["image_url"], label, details)


def keys_of(text: bytes) -> list[str]:
    """The keys of a line; empty if it is not a JSON object."""
    return list(_parse(text, LineReport()))


def _parse(text: bytes, report: LineReport) -> dict[str, Any]:
    try:
        # json.loads accepts NaN and Infinity; they are then reported as errors of their field.
        content = json.loads(text.decode("utf-8"))
        if b"\\u" in text:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{text[error.start]:02x} at column {error.start + 1}"
        report.add("", "must be UTF-8", byte, "save the file as UTF-8")
        return {}
    except UnicodeEncodeError:
        report.add("", "must be valid Unicode", "an unpaired surrogate, such as \\ud800")
        return {}
    except json.JSONDecodeError as error:
        report.add("", "must be one JSON object", f"{error.msg.lower()} at column {error.colno}")
        return {}
    except (ValueError, RecursionError) as error:
        report.add("", "must be one JSON object", str(error))
        return {}
    if not isinstance(content, dict):
        report.add_value("", "must be one JSON object", content)
        return {}
    return content


def _check_details(details: object, report: LineReport) -> None:
    if not isinstance(details, dict):
        report.add_value("image_details", "must be an object {format, width, height}", details)
        return
    _note_unknown(details, _DETAIL_KEYS, "image_details.", report)
    if not isinstance(details.get("format", ""), str):
        report.add_value("image_details.format", f"must be one of {', '.join(FORMATS)}", details["format"])
    width, height = (side_length(details.get(key, UNSET)) for key in ("width", "height"))
    report.size = (width or 0, height or 0)
    for key, pixels in (("width", width), ("height", height)):
        if pixels is None:
            rule = 'must be a positive number of pixels, such as 499 or "499px"'
            report.add_value(f"image_details.{key}", rule, details[key])


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
    if not isinstance(label, list) or (not has_keys and task_of_label(label) is not None):
        _add_wrong_shape("label", label, task, report)
        return None
    objects = []
    for index, entry in enumerate(label):
        before = len(report.problems)
        path = f"label[{index}]"
        shape = None
        if isinstance(entry, dict):
            _note_unknown(entry, known, "label[].", report)
            if _has(entry, "label", known, path, report):
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
            objects.append(_STRUCTS[task](entry["label"], *shape, entry.get("isCrowd", False)))
    return objects if objects or not report.wrong_objects else None


def _read_corners(path: str, box: dict[str, Any], _index: int, report: LineReport) -> list[Any]:
    keys = SHAPE_KEYS[Task.DETECTION]
    for axis, key in enumerate(keys):
        if _has(box, key, _OBJECT_KEYS[Task.DETECTION], path, report):
            _is_coordinate(f"{path}.{key}", box[key], axis % 2, report)
    return [box.get(key) for key in keys]


def _read_polygon(path: str, outline: dict[str, Any], index: int, report: LineReport) -> list[Any] | None:
    """The polygon without segments of under three points; None if no segment is left."""
    if not _has(outline, "polygon", _OBJECT_KEYS[Task.SEGMENTATION], path, report):
        return None
    path, polygon = f"{path}.polygon", outline["polygon"]
    if not isinstance(polygon, list) or not all(isinstance(part, list) for part in polygon):
        is_flat = isinstance(polygon, list) and all(_is_number(value) for value in polygon)
        hint = "wrap it in another list: [[x1, y1, …]]" if is_flat else ""
        report.add_value(path, "must be a list of at least one segment [x1, y1, x2, y2, …]", polygon, hint)
        return None
    if len(polygon) > 2 and all(len(segment) == 2 for segment in polygon):
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


def task_of_label(label: object) -> Task | None:
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
    other = task_of_label(label)
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
    if isinstance(value, float) and not math.isfinite(value):
        report.add_value(path, "must be a finite number in [0, 1]", value)
        return False
    side = report.size[axis]
    tolerance = max(CLIPPED_FRACTION, 1 / side if side else 0.0) + OVERSHOOT
    if -tolerance <= value <= 1 + tolerance:
        return True
    may_be_pixels = _SMALLEST_PIXEL <= value <= (side + 1 if side else math.inf)
    pixels = f" ({side})" if side else ""
    hint = f"is it in pixels? divide it by the image's {('width', 'height')[axis]}{pixels}"
    report.add_value(path, "must be in [0, 1]", value, hint if may_be_pixels else "")
    return False


def _has(entry: Mapping[str, Any], key: str, known: Sequence[str], path: str, report: LineReport) -> bool:
    """Whether an entry has a key; if not, report that it is missing."""
    if key in entry:
        return True
    plain = key.lower().replace("_", "")
    similar = [k for k in entry if k not in known and k.lower().replace("_", "") == plain]
    hint = f"did you mean {similar[0]!r}? keys are case-sensitive" if similar else ""
    others = [k for k in entry if k not in known]
    if not path and key == LABEL_KEY and others and not similar:
        hint = f"if the label is in {' or '.join(map(repr, others))}, name it with --target-column-name"
    report.add(f"{path}.{key}" if path else key, "is missing", "", hint)
    return False


def _note_unknown(entry: Mapping[str, Any], known: Sequence[str], prefix: str, report: LineReport) -> None:
    for key in entry:
        if key not in known:
            report.unknown_keys[prefix + key] = None


def _only(entry: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key in keys}
