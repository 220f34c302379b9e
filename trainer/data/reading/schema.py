"""The data schema of one line, and a fast typed reader that accepts only well-formed lines.

`line_errors.examine_line` finds out what is wrong with a line that it rejects.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeAlias, TypeVar, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from trainer.tasks import Task

LABEL_KEY = "label"
"""The key of the label in a line, unless the job's target_column_name names another."""

FORMATS = ("jpg", "jpeg", "png", "jpe", "jfif", "bmp", "tif", "tiff")

OVERSHOOT = 1e-6
"""Coordinates up to this far outside [0, 1] come from rounding of floating-point numbers."""

CLIPPED_FRACTION = 0.005
"""Coordinates up to this far outside [0, 1], or by a pixel, are clipped; those further outside are errors."""

ClassName: TypeAlias = Annotated[str, Meta(min_length=1)] | int
Coordinate: TypeAlias = Annotated[float, Meta(ge=-OVERSHOOT, le=1 + OVERSHOOT)]
Flag: TypeAlias = bool | Annotated[int, Meta(ge=0, le=1)]


class Details(Struct, forbid_unknown_fields=True, gc=False, frozen=True, cache_hash=True):
    format: str | UnsetType = UNSET
    width: int | str | UnsetType = UNSET
    height: int | str | UnsetType = UNSET


class Box(Struct, forbid_unknown_fields=True, gc=False):
    label: ClassName
    topX: Coordinate  # noqa: N815 (the schema's name, as below)
    topY: Coordinate  # noqa: N815
    bottomX: Coordinate  # noqa: N815
    bottomY: Coordinate  # noqa: N815
    isCrowd: Flag | UnsetType = UNSET  # noqa: N815


class Outline(Struct, forbid_unknown_fields=True, gc=False):
    label: ClassName
    polygon: Annotated[list[Annotated[list[Coordinate], Meta(min_length=6)]], Meta(min_length=1)]
    isCrowd: Flag | UnsetType = UNSET  # noqa: N815


Label = TypeVar("Label")


class Line(Struct, Generic[Label], forbid_unknown_fields=True, gc=False):
    image_url: str
    label: Label
    image_details: Details | UnsetType | None = UNSET


LINES: dict[Task, Any] = {
    Task.CLASSIFICATION: Line[ClassName],
    Task.MULTILABEL: Line[list[ClassName]],
    Task.DETECTION: Line[list[Box]],
    Task.SEGMENTATION: Line[list[Outline]],
}

SHAPE_KEYS = {Task.DETECTION: ("topX", "topY", "bottomX", "bottomY"), Task.SEGMENTATION: ("polygon",)}
"""The keys of an object that give its shape."""

FAST_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What the fast reader raises for a line that it rejects."""


def fast_reader(task: Task, label_key: str = LABEL_KEY) -> Callable[[bytes], Any]:
    """The function that parses one line of a task's data into its type in `LINES`, or one with its fields.

    Args:
        label_key: the key of a line that holds the label.
    """
    line = LINES[task]
    if label_key != LABEL_KEY:
        (label,) = get_args(line)
        line = msgspec.defstruct(
            "Line",
            [("image_url", str), (LABEL_KEY, label), ("image_details", Details | UnsetType | None, UNSET)],
            rename={LABEL_KEY: label_key},
            forbid_unknown_fields=True,
            gc=False,
        )
    return msgspec.json.Decoder(line).decode


def show(value: object) -> str:
    """A JSON value for a message, at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "…"


def side_length(text: object) -> int | None:
    """Pixels of a declared width or height: 499, "499" or "499px"; 0 if UNSET; None if it is invalid."""
    if text is UNSET:
        return 0
    if isinstance(text, str):
        digits = text.strip().lower().removesuffix("px").strip()
        if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
            return None
        text = int(digits)
    return text if isinstance(text, int) and not isinstance(text, bool) and 0 < text < 2**31 else None
