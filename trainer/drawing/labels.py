"""Places and draws the labels of objects, in any script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import ImageDraw

from trainer.drawing.fonts import Font, fit_text, text_and_font
from trainer.drawing.style import STYLE, Color, ink_on


class Rectangle(NamedTuple):
    """An upright rectangle by its upper left corner and its size, in pixels."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: Rectangle) -> bool:
        """Whether the two rectangles overlap; touching edges do not count."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )


def place_label(
    box: Rectangle, size: tuple[float, float], image_size: tuple[float, float], taken: Sequence[Rectangle]
) -> Rectangle:
    """Find room for a label: above its box, else inside the box at its top, else below it.

    The first of these places that is inside the image and free is used; if none is free, the first that is
    inside the image.

    Args:
        box: the object's box.
        size: (width, height) of the label.
        image_size: (width, height) of the image.
        taken: labels that are already placed.
    """
    width, height = size
    x = max(0.0, min(box.x, image_size[0] - width))
    lowest = image_size[1] - height
    places = [
        Rectangle(x, y, width, height)
        for y in (box.y - height, box.y, box.y + box.height)
        if 0 <= y <= lowest
    ]
    free = [place for place in places if not any(place.overlaps(other) for other in taken)]
    return [*free, *places, Rectangle(x, max(0.0, lowest), width, height)][0]


@dataclass(frozen=True, slots=True)
class _Label:
    """A label with its place; `texts` are (text, font, width in pixels) from left to right."""

    texts: tuple[tuple[str, Font, float], ...]
    color: Color
    place: Rectangle


def draw_labels(
    canvas: ImageDraw.ImageDraw,
    objects: Sequence[Mapping[str, Any]],
    colors: Sequence[Color],
    text_size: int,
    image_size: tuple[int, int],
) -> None:
    """Draw a label with its score for each object.

    Args:
        canvas: the image to draw on.
        objects: the `boxes` of an answer in the documented format, highest score first; targets have none.
        colors: the colour of each object's class.
        text_size: height of the text in pixels.
        image_size: (width, height) in pixels.
    """
    padding = max(2, text_size // 5)
    label_height = round(text_size * 1.2) + 2 * padding
    labels: list[_Label] = []
    # Place the labels with the highest scores first, and draw them last, on top.
    for found, color in zip(objects, colors, strict=True):
        left, top, right, bottom = pixel_corners(found["box"], image_size)
        max_width = min(image_size[0], max(right - left, image_size[0] * STYLE.label_share))
        texts = _label_texts(canvas, found, text_size, max_width - 2 * padding)
        size = (sum(width for _, _, width in texts) + 2 * padding, label_height)
        taken = [label.place for label in labels]
        place = place_label(Rectangle(left, top, right - left, bottom - top), size, image_size, taken)
        # In a crowd, labels larger than their objects would hide other objects.
        box = found["box"]
        area = (box["bottomX"] - box["topX"]) * (box["bottomY"] - box["topY"]) * math.prod(image_size)
        if len(objects) <= STYLE.crowd or place.width * place.height <= area:
            labels.append(_Label(texts, color, place))
    for label in reversed(labels):
        x, y, width, height = label.place
        canvas.rectangle((x, y, x + width, y + height), fill=label.color)
        x += padding
        for text, font, text_width in label.texts:
            canvas.text((x, y + height / 2), text, font=font, fill=ink_on(label.color), anchor="lm")
            x += text_width


def pixel_corners(box: Mapping[str, float], image_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of an answer's box, in pixels."""
    width, height = image_size[0] - 1, image_size[1] - 1
    return box["topX"] * width, box["topY"] * height, box["bottomX"] * width, box["bottomY"] * height


def _label_texts(
    canvas: ImageDraw.ImageDraw, found: Mapping[str, Any], text_size: int, max_width: float
) -> tuple[tuple[str, Font, float], ...]:
    """Return the class name, shortened so that both fit, and the score; see `_Label.texts`."""
    # Draw the score as a text of its own: names written from right to left would move it to their other side.
    score, score_font = text_and_font(f" {found['score']:.2f}" if "score" in found else "", text_size)
    score_width = canvas.textlength(score, font=score_font)
    name, name_font = fit_text(found["label"], text_size, max_width - score_width)
    name_width = canvas.textlength(name, font=name_font)
    return (name, name_font, name_width), (score, score_font, score_width)
