"""Draws a model's answer onto its image: boxes, polygons and labels, or a classifier's best classes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from PIL import Image as PILImage
from PIL import ImageDraw

from trainer.annotations import Image
from trainer.drawing.fonts import readable
from trainer.drawing.labels import draw_labels
from trainer.drawing.style import STYLE, Color, class_color, class_dash

Point: TypeAlias = tuple[float, float]

_EDGE = (0, 0, 0, round(255 * STYLE.edge_opacity))
_SHOWN_CLASSES = 5


def draw(image: Image, answer: Mapping[str, Any], classes: Sequence[str]) -> PILImage.Image:
    """The image with its answer drawn on it; small images are enlarged so that the text can be read.

    Args:
        image: uint8 [H, W, 3].
        answer: a documented answer, with `boxes` or with `probs` and `labels`.
        classes: the model's class names, which decide the colours.
    """
    picture = _enlarged(PILImage.fromarray(image))
    if "boxes" in answer:
        _draw_objects(picture, answer["boxes"], classes)
        return picture
    return _with_caption(picture, answer["probs"], answer["labels"], classes)


def _enlarged(picture: PILImage.Image) -> PILImage.Image:
    factor = STYLE.smallest_side / max(picture.size)
    if factor <= 1:
        return picture
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, PILImage.Resampling.BICUBIC)


def _draw_objects(
    picture: PILImage.Image, objects: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> None:
    size = max(STYLE.smallest_text, round(max(picture.size) / STYLE.picture_by_text))
    line = max(2, int(size / STYLE.text_by_line))
    canvas = ImageDraw.Draw(picture, "RGBA")
    index_of = {name: index for index, name in enumerate(classes)}
    # The surest last, so that it lies on top.
    for found in reversed(objects):
        index = index_of[found["label"]]
        color, dash = class_color(index), class_dash(index)
        segments = found.get("polygon", ())
        for segment in segments:
            points = [
                (x * picture.width, y * picture.height)
                for x, y in zip(segment[::2], segment[1::2], strict=True)
            ]
            canvas.polygon(points, fill=(*color, round(255 * STYLE.fill_opacity)))
            _stroke(canvas, points, color, line, dash)
        # Where there are polygons the box only frames them.
        _outline(canvas, _pixels(found["box"], picture), color, max(1, line // 2) if segments else line, dash)
    draw_labels(
        canvas, objects, [class_color(index_of[found["label"]]) for found in objects], size, picture.size
    )


def _outline(
    canvas: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    color: Color,
    width: int,
    dash: Sequence[float],
) -> None:
    """A box's line, inside its edges; as `_stroke`, but crisp."""
    left, top, right, bottom = (round(side) for side in box)
    canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_EDGE, width=width + 2)
    if not dash:
        canvas.rectangle((left, top, right, bottom), outline=color, width=width)
        return
    inset = width // 2
    left, top = min(left + inset, right), min(top + inset, bottom)
    right, bottom = max(left, right - inset), max(top, bottom - inset)
    corners: list[Point] = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    for piece in _dashes(corners, [part * width for part in dash]):
        canvas.line(piece, fill=color, width=width)


def _stroke(
    canvas: ImageDraw.ImageDraw, points: list[Point], color: Color, width: int, dash: Sequence[float]
) -> None:
    """A closed line through points, with a dark edge that shows it on bright grounds."""
    closed = [*points, points[0], points[1]]  # one more, so that the last corner is joined, too
    canvas.line(closed[:-1], fill=_EDGE, width=width + 2, joint="curve")
    if not dash:
        canvas.line(closed, fill=color, width=width, joint="curve")
        return
    for piece in _dashes(closed[:-1], [part * width for part in dash]):
        canvas.line(piece, fill=color, width=width)


def _dashes(points: Sequence[Point], lengths: Sequence[float]) -> Iterator[tuple[Point, Point]]:
    """The pieces of a line that a pattern of lengths, drawn and left out by turns, draws."""
    part, left, drawn = 0, lengths[0], True
    for (x, y), (end_x, end_y) in itertools.pairwise(points):
        length = math.hypot(end_x - x, end_y - y)
        done = 0.0
        while done < length:
            step = min(left, length - done)
            if drawn:
                start, stop = done / length, (done + step) / length
                yield (
                    (x + start * (end_x - x), y + start * (end_y - y)),
                    (x + stop * (end_x - x), y + stop * (end_y - y)),
                )
            done += step
            left -= step
            if left <= 1e-9:
                part = (part + 1) % len(lengths)
                left, drawn = lengths[part], not drawn


def _pixels(box: Mapping[str, float], picture: PILImage.Image) -> tuple[float, float, float, float]:
    width, height = picture.width - 1, picture.height - 1
    return box["topX"] * width, box["topY"] * height, box["bottomX"] * width, box["bottomY"] * height


def _with_caption(
    picture: PILImage.Image, probs: Sequence[float], labels: Sequence[str], classes: Sequence[str]
) -> PILImage.Image:
    """The image above a bar for each of the classes with the highest probabilities."""
    best = sorted(zip(probs, labels, strict=True), key=lambda pair: -pair[0])[:_SHOWN_CLASSES]
    width = max(picture.width, STYLE.smallest_side)
    size = max(12, round(width / 32))
    row = round(size * 1.7)
    result = PILImage.new("RGB", (width, picture.height + row * len(best) + size // 2), (255, 255, 255))
    result.paste(picture, ((width - picture.width) // 2, 0))
    canvas = ImageDraw.Draw(result)
    for place, (prob, label) in enumerate(best):
        top = picture.height + size // 4 + row * place
        color = class_color(classes.index(label))
        canvas.rectangle((0, top + 2, round(prob * (width - 1)), top + row - 2), fill=_pale(color))
        canvas.rectangle((0, top + 2, max(2, size // 3), top + row - 2), fill=color)
        text, font = readable(f"{prob:.3f}  {label}", size)
        canvas.text((size, top + row * 0.12), text, font=font, fill=(0, 0, 0))
    return result


def _pale(color: Color) -> Color:
    red, green, blue = (round(255 - (255 - channel) * 0.45) for channel in color)
    return red, green, blue
