"""Turns what Azure's labelling projects and pandas write into what the data schema asks for.

Only lines that the fast reader rejects come here, so well-formed files do not pay for it.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from trainer.data.reading.image_urls import STREAM_INFO
from trainer.data.reading.repeated_keys import parse, parse_literal
from trainer.data.reading.schema import SHAPE_KEYS, show
from trainer.errors import Problem
from trainer.tasks import Task

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", re.IGNORECASE | re.ASCII)
_NOT_GIVEN = ("", "nan", "none", "null")
_FLAGS = {
    **dict.fromkeys(("true", "t", "yes", "y"), True),
    **dict.fromkeys(("false", "f", "no", "n"), False),
}
_LARGEST_WHOLE = 2**53  # above it, floats skip integers

Notes = dict[str, Problem]
"""Field → what was taken leniently there, as a warning; each kind once per line. The errors of keys that
occur twice in a string have their texts as keys."""


def take_as_meant(content: dict[str, Any], task: Task) -> list[Problem]:
    """Change a line's values to those of the schema where it is clear what they mean.

    Args:
        content: the line; changed in place. Its values may be of any type: those that stay wrong are not
            touched.

    Returns:
        What was taken leniently, as warnings without a place, and errors of keys that occur twice.
    """
    notes: Notes = {}
    if "image_url" in content:
        content["image_url"] = _location(content["image_url"], notes)
    if "image_details" in content:
        content["image_details"] = _details(content["image_details"], notes)
    if "label" in content:
        content["label"] = _label(content["label"], task, notes)
    return list(notes.values())


def _note(notes: Notes, field: str, rule: str, value: object) -> None:
    notes.setdefault(field, Problem("", field, rule, show(value), warning=True))


def _location(value: Any, notes: Notes) -> Any:
    """The path or URL in a StreamInfo, written as text or as an object."""
    location = value
    if isinstance(value, str) and (match := STREAM_INFO.fullmatch(value)):
        location = match["location"].strip()
    elif isinstance(value, dict):
        parts = {key.lower().replace("_", ""): part for key, part in value.items()}
        handler, resource = parts.get("handler"), parts.get("resourceidentifier")
        if not isinstance(resource, str):
            return value
        is_datastore = isinstance(handler, str) and handler.lower() == "amldatastore"
        location = f"AmlDatastore://{resource}" if is_datastore and "://" not in resource else resource
    if location is not value:
        _note(notes, "image_url", "should be a path or URL; the one in the StreamInfo is taken", value)
    return location


def _details(details: Any, notes: Notes) -> Any:
    if _is_not_given(details):
        if details is not None:
            _note(notes, "image_details", "should be left out if unknown; ignored", details)
        return None
    details = _parsed(details, "image_details", "an object", "{", notes)
    if not isinstance(details, dict):
        return details
    result = dict(details)
    for key in ("format", "width", "height"):
        value = details.get(key)
        if key in details and _is_not_given(value):
            _note(notes, f"image_details.{key}", "should be left out if unknown; ignored", value)
            del result[key]
        elif key != "format" and (whole := _whole_pixels(value)) is not None:
            rule = 'should be an integer or a string such as "499px"; whole-number floats are accepted'
            _note(notes, f"image_details.{key}", rule, value)
            result[key] = whole
    return result


def _whole_pixels(value: Any) -> int | None:
    """The integer that 16.0, "16.0" or "16.0px" stands for."""
    if isinstance(value, str) and "." in value:
        text = value.strip().lower().removesuffix("px")
        value = float(text) if _NUMBER.fullmatch(text) else value
    return _as_integer(value)


def _label(label: Any, task: Task, notes: Notes) -> Any:
    if task is Task.CLASSIFICATION:
        return _class_name(label, "label", notes)
    label = _parsed(label, "label", "a list", "[{", notes)
    if task is Task.MULTILABEL:
        return [_class_name(name, "label[]", notes) for name in label] if isinstance(label, list) else label
    if isinstance(label, dict):
        _note(notes, "label", "should be a list of objects; a single object is taken as a list of one", label)
        label = [label]
    if not isinstance(label, list):
        return label
    return [_object(_parsed(entry, "label[]", "an object", "{", notes), task, notes) for entry in label]


def _parsed(value: Any, field: str, kind: str, starts: str, notes: Notes) -> Any:
    """The list or object that a string holds as JSON or, as pandas writes to CSV, in Python's notation.

    Args:
        kind: what the schema asks for in the field, for the warning.
        starts: the characters that such a string may begin with.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(tuple(starts)):
        return value
    for read in (parse, parse_literal):
        try:
            parsed, repeated = read(value)
            json.dumps(parsed, ensure_ascii=False).encode()  # fails if it has unpaired surrogates
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        notes |= {str(problem): problem for problem in repeated}
        if not repeated:
            _note(notes, field, f"should be {kind}; the one written in a string is taken", value)
        return parsed
    return value


def _object(entry: Any, task: Task, notes: Notes) -> Any:
    if not isinstance(entry, dict):
        return entry
    result = dict(entry)
    if "label" in entry:
        result["label"] = _class_name(entry["label"], "label[].label", notes)
    if "isCrowd" in entry:
        result["isCrowd"] = _flag(entry["isCrowd"], notes)
    if task is Task.SEGMENTATION and "polygon" in entry:
        result["polygon"] = _polygon(entry["polygon"], notes)
    elif task is Task.DETECTION:
        result |= {key: _coordinate(entry[key], notes) for key in SHAPE_KEYS[task] if key in entry}
    return result


def _polygon(polygon: Any, notes: Notes) -> Any:
    polygon = _parsed(polygon, "label[].polygon", "a list", "[", notes)
    if not isinstance(polygon, list):
        return polygon
    segments = [_parsed(segment, "label[].polygon", "a list of lists", "[", notes) for segment in polygon]
    return [
        [_coordinate(value, notes) for value in segment] if isinstance(segment, list) else segment
        for segment in segments
    ]


def _class_name(name: Any, field: str, notes: Notes) -> Any:
    whole = _as_integer(name)
    if whole is None:
        return name
    _note(notes, field, "should be a string or an integer; whole-number floats are accepted", name)
    return whole


def _flag(value: Any, notes: Notes) -> Any:
    flag: Any = value
    if _is_not_given(value):
        flag = False
    elif isinstance(value, str):
        number = float(value) if _NUMBER.fullmatch(value) else None
        flag = bool(number) if number in (0, 1) else _FLAGS.get(value.strip().lower(), value)
    elif isinstance(value, float) and value in (0.0, 1.0):
        flag = bool(value)
    if flag is not value:
        rule = "should be 0, 1, true or false; equivalent strings and floats are accepted, null means 0"
        _note(notes, "label[].isCrowd", rule, value)
    return flag


def _coordinate(value: Any, notes: Notes) -> Any:
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        return value
    _note(notes, "label[]", "coordinates should be numbers; a number in a string is taken", value)
    return float(value)


def _as_integer(value: Any) -> int | None:
    is_whole = isinstance(value, float) and abs(value) < _LARGEST_WHOLE and value.is_integer()
    return int(value) if is_whole else None


def _is_not_given(value: Any) -> bool:
    """Whether a value is null, or what pandas writes for it."""
    if isinstance(value, str):
        return value.strip().lower() in _NOT_GIVEN
    return value is None or (isinstance(value, float) and math.isnan(value))
