"""Finds every error in a line that the fast reader rejected, in the terms of the data schema."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET

from trainer.data.reading.schema import (
    FORMATS,
    LABEL_KEY,
    LINES,
    OVERSHOOT,
    SMALLEST_SIDE,
    Line,
    show,
    side_length,
)
from trainer.errors import Problem
from trainer.tasks import Task

_LINE_KEYS = ("image_url", "image_details", "label")
_DETAIL_KEYS = ("format", "width", "height")
_SHAPE_KEYS = {Task.DETECTION: ("topX", "topY", "bottomX", "bottomY"), Task.SEGMENTATION: ("polygon",)}
_OBJECT_KEYS = {task: ("label", *keys, "isCrowd") for task, keys in _SHAPE_KEYS.items()}


@dataclass
class LineReport:
    """What `examine_line` finds in one line.

    Attributes:
        line: the parsed line, as the fast reader returns it; None if it has errors.
        problems: its errors, with an empty `where`.
        unknown_keys: fields without their indices (`label[].pose`), each once.
        image_url: None unless it is a string.
        size: declared (width, height) in pixels; 0 where undeclared.
        is_json: whether the line is a JSON object.
        lacks_label: whether it lacks the key that the job names as its label's.
    """

    line: Line[Any] | None = None
    problems: list[Problem] = field(default_factory=list)
    unknown_keys: dict[str, None] = field(default_factory=dict)
    image_url: str | None = None
    size: tuple[int, int] = (0, 0)
    is_json: bool = True
    lacks_label: bool = False

    def add(self, name: str, rule: str, got: str = "", hint: str = "") -> None:
        """Add a problem of the field `name`."""
        self.problems.append(Problem("", name, rule, got, hint))

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
    if label_key != LABEL_KEY:
        return _examine_renamed(content, task, label_key)
    _examine(content, task, report)
    return report


def _examine_renamed(content: dict[str, Any], task: Task, label_key: str) -> LineReport:
    """Examine a line whose label is under another key, as if it were under `label`."""
    report = LineReport()
    ignored = {LABEL_KEY: None} if LABEL_KEY in content else {}
    if label_key in content:
        others = {key: value for key, value in content.items() if key not in (LABEL_KEY, label_key)}
        _examine({**others, LABEL_KEY: content[label_key]}, task, report)
    else:
        report.lacks_label = True
        report.add(label_key, "is missing", f"the keys {', '.join(map(show, content))}")

    def renamed(name: str) -> str:
        is_label = name == LABEL_KEY or name.startswith(f"{LABEL_KEY}[")
        return label_key + name.removeprefix(LABEL_KEY) if is_label else name

    report.problems = [replace(problem, field=renamed(problem.field)) for problem in report.problems]
    report.unknown_keys = ignored | {renamed(key): None for key in report.unknown_keys}
    return report


def _examine(content: dict[str, Any], task: Task, report: LineReport) -> None:
    _note_unknown(content, _LINE_KEYS, "", report)
    if _has(content, "image_url", _LINE_KEYS, "", report):
        if isinstance(content["image_url"], str):
            report.image_url = content["image_url"]
        else:
            report.add_value("image_url", "must be a string", content["image_url"])
    if content.get("image_details") is not None:
        _check_details(content["image_details"], report)
    if _has(content, "label", _LINE_KEYS, "", report):
        _CHECKS[task](content["label"], task, report)
    if not report.problems:
        report.line = msgspec.convert(_without_unknown_keys(content, task), LINES[task])


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


def _check_multiclass(label: object, task: Task, report: LineReport) -> None:
    if isinstance(label, list | dict):
        _add_wrong_shape("label", label, task, report)
    else:
        _check_class_name("label", label, report)


def _check_multilabel(label: object, task: Task, report: LineReport) -> None:
    if not isinstance(label, list) or any(isinstance(entry, dict | list) for entry in label):
        _add_wrong_shape("label", label, task, report)
        return
    for index, name in enumerate(label):
        _check_class_name(f"label[{index}]", name, report)


def _check_boxes(label: object, task: Task, report: LineReport) -> None:
    for path, box in _objects(label, task, report):
        corners: dict[str, float] = {}
        for index, key in enumerate(_SHAPE_KEYS[task]):
            is_there = _has(box, key, _OBJECT_KEYS[task], path, report)
            if is_there and _check_coordinate(f"{path}.{key}", box[key], index % 2, report):
                corners[key] = min(max(box[key], 0.0), 1.0)
        for near, far in (("topX", "bottomX"), ("topY", "bottomY")):
            if near in corners and far in corners and not _is_less(corners[near], corners[far]):
                got = f"{near} {box[near]} and {far} {box[far]}"
                report.add(path, f"{near} must be less than {far}", got)


def _is_less(near: float, far: float) -> bool:
    """Whether near < far in float32, too, the precision in which coordinates are stored."""
    return far - near > SMALLEST_SIDE or bool(np.float32(near) < np.float32(far))


def _check_outlines(label: object, task: Task, report: LineReport) -> None:
    for path, outline in _objects(label, task, report):
        if not _has(outline, "polygon", _OBJECT_KEYS[task], path, report):
            continue
        polygon = outline["polygon"]
        is_list = isinstance(polygon, list) and len(polygon) > 0
        if not is_list or not all(isinstance(part, list) for part in polygon):
            flat = is_list and all(_is_number(value) for value in polygon)
            hint = "wrap it in another list: [[x1, y1, …]]" if flat else ""
            rule = "must be a list of at least one segment [x1, y1, x2, y2, …]"
            report.add_value(f"{path}.polygon", rule, polygon, hint)
            continue
        before = len(report.problems)
        for number, segment in enumerate(polygon):
            _check_segment(f"{path}.polygon[{number}]", segment, report)
        if len(report.problems) == before:
            points = np.array([v for segment in polygon for v in segment], dtype=np.float32).reshape(-1, 2)
            if (np.ptp(points.clip(0, 1), axis=0) <= 0).any():
                report.add(f"{path}.polygon", "must enclose an area", "points on one line")


def _check_segment(path: str, segment: Sequence[Any], report: LineReport) -> None:
    if len(segment) % 2:
        report.add(path, "must hold pairs x, y", f"{len(segment)} numbers")
    elif len(segment) < 6:
        report.add(path, "must have at least 3 points (6 numbers)", f"{len(segment) // 2} points")
    # Report only the first wrong number of a segment: if one is in pixels, all are.
    for index, value in enumerate(segment):
        if not _check_coordinate(f"{path}[{index}]", value, index % 2, report):
            break


def _objects(label: object, task: Task, report: LineReport) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects in a label with their fields, after checking class names and crowd flags."""
    needed, known = _SHAPE_KEYS[task], _OBJECT_KEYS[task]
    # Further keys, of other tasks, are allowed: one file may serve several tasks.
    has_keys = isinstance(label, list) and any(
        isinstance(e, dict) and not e.keys().isdisjoint(needed) for e in label
    )
    if not isinstance(label, list) or (not has_keys and task_of_label(label) is not None):
        _add_wrong_shape("label", label, task, report)
        return []
    objects = []
    for index, entry in enumerate(label):
        path = f"label[{index}]"
        if not isinstance(entry, dict):
            report.add_value(path, f"must be an object {{{', '.join(known)}}}", entry)
            continue
        _note_unknown(entry, known, "label[].", report)
        if _has(entry, "label", known, path, report):
            _check_class_name(f"{path}.label", entry["label"], report)
        crowd = entry.get("isCrowd", 0)
        if not isinstance(crowd, bool | int) or crowd not in (0, 1):
            report.add_value(f"{path}.isCrowd", "must be 0, 1, true or false", crowd)
        objects.append((path, entry))
    return objects


_CHECKS: dict[Task, Callable[[object, Task, LineReport], None]] = {
    Task.CLASSIFICATION: _check_multiclass,
    Task.MULTILABEL: _check_multilabel,
    Task.DETECTION: _check_boxes,
    Task.SEGMENTATION: _check_outlines,
}


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
        if any(key in entry for entry in label for key in _SHAPE_KEYS[Task.DETECTION]):
            return Task.DETECTION
    return None


def _add_wrong_shape(path: str, label: object, task: Task, report: LineReport) -> None:
    other = task_of_label(label)
    hint = f"this looks like {other.value} data" if other is not None and other is not task else ""
    report.add_value(path, f"must be {task.label_shape} for {task.value}", label, hint)


def _check_class_name(path: str, name: object, report: LineReport) -> None:
    if isinstance(name, bool) or not isinstance(name, str | int):
        report.add_value(path, "must be a class name (a string)", name)
    elif isinstance(name, str) and not name.strip():
        report.add(path, "must be a class name", "an empty string" if not name else show(name))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_coordinate(path: str, value: Any, axis: int, report: LineReport) -> bool:
    """Whether a value is a valid coordinate; if not, report it. `axis` is 0 for x, 1 for y."""
    if not _is_number(value):
        report.add_value(path, "must be a number in [0, 1]", value)
        return False
    if isinstance(value, float) and not math.isfinite(value):
        report.add_value(path, "must be a finite number in [0, 1]", value)
        return False
    if not -OVERSHOOT <= value <= 1 + OVERSHOOT:
        side = ("width", "height")[axis]
        pixels = f" ({report.size[axis]})" if report.size[axis] else ""
        hint = f"is it in pixels? divide it by the image's {side}{pixels}" if value > 1 else ""
        report.add_value(path, "must be in [0, 1]", value, hint)
        return False
    return True


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


def _without_unknown_keys(content: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """A valid line without its unknown keys."""
    known = _only(content, _LINE_KEYS)
    if known.get("image_details") is not None:
        known["image_details"] = _only(known["image_details"], _DETAIL_KEYS)
    if task.has_boxes:
        known["label"] = [_only(entry, _OBJECT_KEYS[task]) for entry in known["label"]]
    return known


def _only(entry: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key in keys}
