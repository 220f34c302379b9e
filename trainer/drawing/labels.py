"""The labels of objects in a picture: where they find room, and how they are written in any script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import ImageDraw

from trainer.drawing.fonts import Font, readable
from trainer.drawing.style import STYLE, Color, ink_on


@dataclass(frozen=True, slots=True)
class _Chip:
    """A label and where it stands, in pixels."""

    texts: tuple[tuple[str, Font, float], ...]  # with their widths, from left to right
    color: Color
    x: float
    y: float
    width: float
    height: float

    def covers(self, x: float, y: float, width: float, height: float) -> bool:
        """Whether a rectangle and this label have a point in common."""
        return (
            x < self.x + self.width
            and self.x < x + width
            and y < self.y + self.height
            and self.y < y + height
        )


def draw_labels(
    canvas: ImageDraw.ImageDraw,
    objects: Sequence[Mapping[str, Any]],
    colors: Sequence[Color],
    size: int,
    picture_size: tuple[int, int],
) -> None:
    """Draw a label for each object, with its score.

    Args:
        canvas: of the picture.
        objects: of a documented answer, by falling score.
        colors: of the objects' classes.
        size: of the text, in pixels.
        picture_size: (width, height) in pixels.
    """
    padding = max(2, size // 5)
    chips: list[_Chip] = []
    # The surest find their places first, and are drawn last.
    for found, color in zip(objects, colors, strict=True):
        chip = _place_label(canvas, found, color, size, padding, picture_size, chips)
        sides = found["box"]
        area = (sides["bottomX"] - sides["topX"]) * (sides["bottomY"] - sides["topY"])
        # In a crowd, labels larger than their objects would hide what they name.
        if len(objects) <= STYLE.crowd or chip.width * chip.height <= area * math.prod(picture_size):
            chips.append(chip)
    for chip in reversed(chips):
        canvas.rectangle((chip.x, chip.y, chip.x + chip.width, chip.y + chip.height), fill=chip.color)
        x = chip.x + padding
        for text, font, width in chip.texts:
            canvas.text((x, chip.y + chip.height / 2), text, font=font, fill=ink_on(chip.color), anchor="lm")
            x += width


def _place_label(
    canvas: ImageDraw.ImageDraw,
    found: Mapping[str, Any],
    color: Color,
    size: int,
    padding: int,
    picture_size: tuple[int, int],
    taken: Sequence[_Chip],
) -> _Chip:
    """The label above its box, else inside at its top, else below it.

    The first of these is taken that lies in the picture and on no other label.
    """
    across, down = picture_size
    box = found["box"]
    left, right = box["topX"] * (across - 1), box["bottomX"] * (across - 1)
    top, bottom = box["topY"] * (down - 1), box["bottomY"] * (down - 1)
    # The score is a text of its own: names that run from right to left would take it to their other side.
    score, score_font = readable(f" {found['score']:.2f}", size)
    score_width = canvas.textlength(score, font=score_font)
    room = min(across, max(right - left, across * STYLE.label_share)) - score_width - 2 * padding
    name, font = _fitted(canvas, found["label"], size, room)
    name_width = canvas.textlength(name, font=font)
    width, height = name_width + score_width + 2 * padding, round(size * 1.2) + 2 * padding
    x = max(0.0, min(left, across - width))
    places = [y for y in (top - height, top, bottom) if 0 <= y <= down - height]
    free = [y for y in places if not any(chip.covers(x, y, width, height) for chip in taken)]
    y = [*free, *places, max(0.0, down - height)][0]
    return _Chip(((name, font, name_width), (score, score_font, score_width)), color, x, y, width, height)


def _fitted(canvas: ImageDraw.ImageDraw, text: str, size: int, room: float) -> tuple[str, Font]:
    """The text in a font that has it, shortened to the room there is, in pixels."""
    told, font = readable(text, size)
    length = len(text)
    while length > 1 and canvas.textlength(told, font=font) > room:
        length = min(length - 1, int(length * max(room, 0) / canvas.textlength(told, font=font)))
        told, font = readable(text[: max(length, 1)] + "…", size)
    return told, font
