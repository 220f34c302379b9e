"""Finds every fault of a line that the fast reader refused, in the fields and words of the data schema."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET

from trainer.data.reading.schema import FORMATS, LINES, OVERSHOOT, SMALLEST_SIDE, Line, show, side_length
from trainer.errors import Problem
from trainer.tasks import Task

_DETAIL_KEYS = ("format", "width", "height")
_OBJECT_KEYS = {Task.DETECTION: ("topX", "topY", "bottomX", "bottomY"), Task.SEGMENTATION: ("polygon",)}


@dataclass
class Findings:
    """What `examine` found in one line.

    Attributes:
        line: the line as the fast reader would give it; None if it has faults.
        problems: its faults, with an empty `where`.
        unknown_keys: as fields without indices (`label[].pose`); a line may hold one several times.
        image_url: if it is a string.
        size: (width, height) as declared, 0 where they are not.
        is_json: whether the line is a JSON object at all.
    """

    line: Line | None = None
    problems: list[Problem] = field(default_factory=list)
    unknown_keys: dict[str, None] = field(default_factory=dict)
    image_url: str | None = None
    size: tuple[int, int] = (0, 0)
    is_json: bool = True

    def add(self, name: str, rule: str, got: str = "", hint: str = "") -> None:
        self.problems.append(Problem("", name, rule, got, hint))

    def add_value(self, name: str, rule: str, value: object, hint: str = "") -> None:
        """The same, where what was found is a JSON value."""
        self.add(name, rule, show(value), hint)


def examine(text: bytes, task: Task) -> Findings:
    """Find every fault of one line."""
    findings = Findings()
    content = _parse(text, findings)
    if findings.problems:
        findings.is_json = False
        return findings
    known = {"image_url", "image_details", "label"}
    _note_unknown(content, known, "", findings)
    _check_image_url(content, findings)
    if content.get("image_details") is not None:
        _check_details(content["image_details"], findings)
        findings.size = _declared_size(content["image_details"])
    if "label" not in content:
        _missing(content, known, "label", "", findings)
    else:
        _CHECKS[task](content["label"], task, findings)
    if not findings.problems:
        findings.line = msgspec.convert(_cleaned(content, task), LINES[task])
    return findings


def _parse(text: bytes, findings: Findings) -> dict[str, Any]:
    try:
        # Python's own reader also takes NaN and Infinity, which then are faults of their field.
        content = json.loads(text.decode("utf-8"))
        if b"\\u" in text:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{text[error.start]:02x} at column {error.start + 1}"
        findings.add("", "must be UTF-8", byte, "save the file as UTF-8")
        return {}
    except UnicodeEncodeError:
        findings.add("", "must be valid Unicode", "half of a surrogate pair, such as \\ud800")
        return {}
    except json.JSONDecodeError as error:
        findings.add("", "must be one JSON object", f"{error.msg.lower()} at column {error.colno}")
        return {}
    except (ValueError, RecursionError) as error:
        findings.add("", "must be one JSON object", str(error))
        return {}
    if not isinstance(content, dict):
        findings.add_value("", "must be one JSON object", content)
        return {}
    return content


def _check_image_url(content: Mapping[str, Any], findings: Findings) -> None:
    if "image_url" not in content:
        _missing(content, {"image_url", "image_details", "label"}, "image_url", "", findings)
    elif not isinstance(content["image_url"], str):
        findings.add_value("image_url", "must be a string", content["image_url"])
    else:
        findings.image_url = content["image_url"]


def _check_details(details: object, findings: Findings) -> None:
    if not isinstance(details, dict):
        findings.add_value("image_details", "must be an object {format, width, height}", details)
        return
    _note_unknown(details, set(_DETAIL_KEYS), "image_details.", findings)
    if not isinstance(details.get("format", ""), str):
        findings.add_value("image_details.format", f"must be one of {', '.join(FORMATS)}", details["format"])
    for key in ("width", "height"):
        value = details.get(key, UNSET)
        if side_length(value) is None:
            rule = 'must be a positive number of pixels, as 499 or "499px"'
            findings.add_value(f"image_details.{key}", rule, value)


def _check_multiclass(label: object, task: Task, findings: Findings) -> None:
    if isinstance(label, list | dict):
        _wrong_shape("label", label, task, findings)
    else:
        _check_class_name("label", label, findings)


def _check_multilabel(label: object, task: Task, findings: Findings) -> None:
    if not isinstance(label, list) or any(isinstance(entry, dict | list) for entry in label):
        _wrong_shape("label", label, task, findings)
        return
    for index, name in enumerate(label):
        _check_class_name(f"label[{index}]", name, findings)


def _check_boxes(label: object, task: Task, findings: Findings) -> None:
    for path, box in _objects(label, task, findings):
        corners: dict[str, float] = {}
        for index, key in enumerate(_OBJECT_KEYS[task]):
            if key not in box:
                _missing(box, {"label", *_OBJECT_KEYS[task], "isCrowd"}, key, path, findings)
            elif _check_coordinate(f"{path}.{key}", box[key], index % 2, findings):
                corners[key] = min(max(box[key], 0.0), 1.0)
        for near, far in (("topX", "bottomX"), ("topY", "bottomY")):
            if near in corners and far in corners and not _is_less(corners[near], corners[far]):
                got = f"{near} {box[near]} and {far} {box[far]}"
                findings.add(path, f"{near} must be less than {far}", got)


def _is_less(near: float, far: float) -> bool:
    """Whether near < far also as float32, the precision in which coordinates are kept."""
    return far - near > SMALLEST_SIDE or bool(np.float32(near) < np.float32(far))


def _check_outlines(label: object, task: Task, findings: Findings) -> None:
    for path, outline in _objects(label, task, findings):
        if "polygon" not in outline:
            _missing(outline, {"label", "polygon", "isCrowd"}, "polygon", path, findings)
            continue
        polygon = outline["polygon"]
        if (
            not isinstance(polygon, list)
            or not polygon
            or not all(isinstance(part, list) for part in polygon)
        ):
            flat = isinstance(polygon, list) and polygon and all(_is_number(value) for value in polygon)
            hint = "put it into a list of its own: [[x1, y1, …]]" if flat else ""
            rule = "must be a list of segments [x1, y1, x2, y2, …], at least one"
            findings.add_value(f"{path}.polygon", rule, polygon, hint)
            continue
        before = len(findings.problems)
        for number, segment in enumerate(polygon):
            _check_segment(f"{path}.polygon[{number}]", segment, findings)
        if len(findings.problems) == before:
            points = np.array([v for segment in polygon for v in segment], dtype=np.float32).reshape(-1, 2)
            if (np.ptp(points.clip(0, 1), axis=0) <= 0).any():
                findings.add(f"{path}.polygon", "must enclose an area", "points on one line")


def _check_segment(path: str, segment: Sequence[Any], findings: Findings) -> None:
    if len(segment) % 2:
        findings.add(path, "must hold pairs x, y", f"{len(segment)} numbers")
    elif len(segment) < 6:
        findings.add(path, "must have at least 3 points (6 numbers)", f"{len(segment) // 2} points")
    # One wrong number of a segment is told: where one is in pixels, hundreds are.
    for index, value in enumerate(segment):
        if not _check_coordinate(f"{path}[{index}]", value, index % 2, findings):
            break


def _objects(label: object, task: Task, findings: Findings) -> list[tuple[str, dict[str, Any]]]:
    """The objects in a label with the field they are in, their class names and crowd flags checked."""
    needed = _OBJECT_KEYS[task]
    # Other tasks' keys beside this one's do no harm: the line then serves both.
    serves = isinstance(label, list) and any(
        isinstance(e, dict) and not e.keys().isdisjoint(needed) for e in label
    )
    if not isinstance(label, list) or (not serves and looks_like(label) is not None):
        _wrong_shape("label", label, task, findings)
        return []
    objects = []
    known = {"label", "isCrowd", *needed}
    for index, entry in enumerate(label):
        path = f"label[{index}]"
        if not isinstance(entry, dict):
            findings.add_value(
                path, f"must be an object {{{', '.join(('label', *needed, 'isCrowd'))}}}", entry
            )
            continue
        _note_unknown(entry, known, "label[].", findings)
        if "label" in entry:
            _check_class_name(f"{path}.label", entry["label"], findings)
        else:
            _missing(entry, known, "label", path, findings)
        crowd = entry.get("isCrowd", 0)
        if not isinstance(crowd, bool | int) or crowd not in (0, 1):
            findings.add_value(f"{path}.isCrowd", "must be 0, 1, true or false", crowd)
        objects.append((path, entry))
    return objects


_CHECKS: dict[Task, Callable[[object, Task, Findings], None]] = {
    Task.CLASSIFICATION: _check_multiclass,
    Task.MULTILABEL: _check_multilabel,
    Task.DETECTION: _check_boxes,
    Task.SEGMENTATION: _check_outlines,
}


def looks_like(label: object) -> Task | None:
    """The task whose label has this shape; None if that cannot be told, as of an empty list."""
    if isinstance(label, str) or (isinstance(label, int) and not isinstance(label, bool)):
        return Task.CLASSIFICATION
    if not isinstance(label, list) or not label:
        return None
    if all(isinstance(entry, str | int) for entry in label):
        return Task.MULTILABEL
    if all(isinstance(entry, dict) for entry in label):
        if any("polygon" in entry for entry in label):
            return Task.SEGMENTATION
        if any(key in entry for entry in label for key in ("topX", "topY", "bottomX", "bottomY")):
            return Task.DETECTION
    return None


def _wrong_shape(path: str, label: object, task: Task, findings: Findings) -> None:
    other = looks_like(label)
    hint = f"this looks like {other.value} data" if other is not None and other is not task else ""
    findings.add_value(path, f"must be {task.label_shape} for {task.value}", label, hint)


def _check_class_name(path: str, name: object, findings: Findings) -> None:
    if isinstance(name, bool) or not isinstance(name, str | int):
        findings.add_value(path, "must be a class name (a string)", name)
    elif isinstance(name, str) and not name.strip():
        findings.add(path, "must be a class name", "an empty string" if not name else show(name))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_coordinate(path: str, value: Any, axis: int, findings: Findings) -> bool:
    """Whether a value can be a coordinate; `axis` is 0 for x, 1 for y."""
    if not _is_number(value):
        findings.add_value(path, "must be a number in [0, 1]", value)
        return False
    if isinstance(value, float) and not math.isfinite(value):
        findings.add_value(path, "must be a finite number in [0, 1]", value)
        return False
    if not -OVERSHOOT <= value <= 1 + OVERSHOOT:
        side = ("width", "height")[axis]
        pixels = f" ({findings.size[axis]})" if findings.size[axis] else ""
        hint = f"is it in pixels? then divide it by the image's {side}{pixels}" if value > 1 else ""
        findings.add_value(path, "must be in [0, 1]", value, hint)
        return False
    return True


def _missing(entry: Mapping[str, Any], known: set[str], key: str, path: str, findings: Findings) -> None:
    plain = key.lower().replace("_", "")
    alike = [k for k in entry if k not in known and k.lower().replace("_", "") == plain]
    hint = f"is {alike[0]!r} meant? keys are case-sensitive" if alike else ""
    findings.add(f"{path}.{key}" if path else key, "is missing", "", hint)


def _note_unknown(entry: Mapping[str, Any], known: set[str], prefix: str, findings: Findings) -> None:
    for key in entry:
        if key not in known:
            findings.unknown_keys[prefix + key] = None


def _declared_size(details: object) -> tuple[int, int]:
    if not isinstance(details, dict):
        return 0, 0
    return side_length(details.get("width", UNSET)) or 0, side_length(details.get("height", UNSET)) or 0


def _cleaned(content: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """A faultless line without its unknown keys."""
    cleaned = {key: content[key] for key in ("image_url", "label", "image_details") if key in content}
    if cleaned.get("image_details") is not None:
        details = cleaned["image_details"]
        cleaned["image_details"] = {key: details[key] for key in _DETAIL_KEYS if key in details}
    if task.has_boxes:
        keys = ("label", *_OBJECT_KEYS[task], "isCrowd")
        cleaned["label"] = [{key: entry[key] for key in keys if key in entry} for entry in cleaned["label"]]
    return cleaned
