"""Finds every error in a line that the fast reader rejected, in the terms of the data schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from msgspec import UNSET

from trainer.data.reading.habits import take_as_meant
from trainer.data.reading.label_errors import read_label
from trainer.data.reading.line_report import LineReport, has_key, note_unknown
from trainer.data.reading.repeated_keys import parse
from trainer.data.reading.schema import FORMATS, LABEL_KEY, Details, Line, show, side_length
from trainer.errors import Problem
from trainer.tasks import Task

_LINE_KEYS = ("image_url", "image_details", "label")
_DETAIL_KEYS = ("format", "width", "height")


def examine_line(
    text: bytes,
    task: Task,
    label_key: str = LABEL_KEY,
    is_dropped: Callable[[str], bool] = lambda _: False,
    measure: Callable[[str], tuple[int, int]] = lambda _: (0, 0),
) -> LineReport:
    """Find every error in one line.

    Args:
        label_key: the key of the label.
        is_dropped: whether a key is to be overlooked.
        measure: see LineReport.
    """
    report = LineReport(measure=measure)
    content, repeated = _parse(text, report)
    if report.problems:
        report.is_json = False
        return report
    report.problems += repeated
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
        report.unknown_keys[LABEL_KEY] = ""
    return report


def _examine(content: dict[str, Any], task: Task, report: LineReport) -> None:
    """Examine a line whose label is under `label`; `content` is changed."""
    notes = take_as_meant(content, task)
    report.lenient = [note for note in notes if note.warning]
    report.problems += [note for note in notes if not note.warning]
    note_unknown(content, _LINE_KEYS, "", report)
    if has_key(content, "image_url", _LINE_KEYS, "", report):
        if isinstance(content["image_url"], str):
            report.image_url = content["image_url"]
        else:
            report.add_value("image_url", "must be a string", content["image_url"])
    details = content.get("image_details")
    if details is not None:
        _check_details(details, report)
    label = None
    if has_key(content, "label", _LINE_KEYS, "", report):
        are_valid = not report.problems
        label = read_label(content["label"], task, report)
        if are_valid and label is not None:
            details = (
                None
                if details is None
                else Details(**{key: details[key] for key in _DETAIL_KEYS if key in details})
            )
            report.line = Line(content["image_url"], label, details)


def keys_of(text: bytes) -> list[str]:
    """The keys of a line; empty if it is not a JSON object."""
    return list(_parse(text, LineReport())[0])


def _parse(text: bytes, report: LineReport) -> tuple[dict[str, Any], list[Problem]]:
    """The content of a line, empty if it is not a JSON object, and the errors of its repeated keys."""
    try:
        # NaN and Infinity are reported as errors of their field.
        content, repeated = parse(text.decode("utf-8"))
        if b"\\u" in text:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{text[error.start]:02x} at column {error.start + 1}"
        report.add("", "must be UTF-8", byte, "save the file as UTF-8")
    except UnicodeEncodeError:
        report.add("", "must be valid Unicode", "an unpaired surrogate, such as \\ud800")
    except json.JSONDecodeError as error:
        ends_in_comma = error.msg == "Extra data" and error.doc[error.pos :].strip() == ","
        hint = "remove the comma at the end of each line" if ends_in_comma else ""
        report.add("", "must be one JSON object", f"{error.msg.lower()} at column {error.colno}", hint)
    except (ValueError, RecursionError) as error:
        report.add("", "must be one JSON object", str(error))
    else:
        if isinstance(content, dict):
            return content, repeated
        report.add_value("", "must be one JSON object", content)
    return {}, []


def _check_details(details: object, report: LineReport) -> None:
    if not isinstance(details, dict):
        report.add_value("image_details", "must be an object {format, width, height}", details)
        return
    note_unknown(details, _DETAIL_KEYS, "image_details.", report)
    if not isinstance(details.get("format", ""), str):
        report.add_value("image_details.format", f"must be one of {', '.join(FORMATS)}", details["format"])
    width, height = (side_length(details.get(key, UNSET)) for key in ("width", "height"))
    report.size = (width or 0, height or 0)
    for key, pixels in (("width", width), ("height", height)):
        if pixels is None:
            rule = 'must be a positive number of pixels, such as 499 or "499px"'
            report.add_value(f"image_details.{key}", rule, details[key])
