"""Draws a model's answer onto its image: boxes, polygons and labels, or a classifier's best classes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageOps

from trainer.annotations import Image
from trainer.drawing.fonts import text_and_font
from trainer.drawing.labels import draw_labels, pixel_corners
from trainer.drawing.style import STYLE, Color, class_color, class_dash
from trainer.polygons import Points, Region, regions

Point: TypeAlias = tuple[float, float]

_EDGE = (0, 0, 0, round(255 * STYLE.edge_opacity))
_MAX_CLASSES = 5


def draw_answer(image: Image, answer: Mapping[str, Any], classes: Sequence[str]) -> PILImage.Image:
    """Draw an answer onto a copy of its image; small images are enlarged so that the text is legible.

    Args:
        image: uint8 [H, W, 3].
        answer: an answer in the documented format, with `boxes` or with `probs` and `labels`.
        classes: the model's class names; their order determines the colours.
    """
    drawing = PILImage.fromarray(image)
    factor = max(1.0, STYLE.smallest_side / max(drawing.size))
    drawing = ImageOps.scale(drawing, factor, PILImage.Resampling.BICUBIC)
    if "boxes" in answer:
        _draw_objects(drawing, answer["boxes"], classes)
        return drawing
    return _with_probabilities(drawing, answer["probs"], answer["labels"], classes)


def _draw_objects(
    drawing: PILImage.Image, objects: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> None:
    text_size = max(STYLE.smallest_text, round(max(drawing.size) / STYLE.image_by_text))
    line_width = max(2, int(text_size / STYLE.text_by_line))
    canvas = ImageDraw.Draw(drawing, "RGBA")
    index_of = {name: index for index, name in enumerate(classes)}
    indices = [index_of[found["label"]] for found in objects]
    # Draw the highest scores last, on top.
    for found, index in reversed(list(zip(objects, indices, strict=True))):
        color, dash = class_color(index), class_dash(index)
        segments = [np.reshape(segment, (-1, 2)) for segment in found.get("polygon", ())]
        for region in regions(segments) if segments else ():
            _fill(canvas, region, drawing.size, color)
        for segment in segments:
            _draw_outline(canvas, _pixels(segment, drawing.size), color, line_width, dash)
        # Polygons already show the object, so their box gets a thinner line.
        box_line_width = max(1, line_width // 2) if segments else line_width
        _draw_box(canvas, pixel_corners(found["box"], drawing.size), color, box_line_width, dash)
    draw_labels(canvas, objects, [class_color(index) for index in indices], text_size, drawing.size)


def _fill(canvas: ImageDraw.ImageDraw, region: Region, size: tuple[int, int], color: Color) -> None:
    """Tint a region of an image of `size`, but not its holes."""
    opacity = round(255 * STYLE.fill_opacity)
    if not region.holes:
        canvas.polygon(_pixels(region.outline, size), fill=(*color, opacity))
        return
    left, top = np.floor(np.min(_pixels(region.outline, size), axis=0)).astype(int).tolist()
    right, bottom = np.ceil(np.max(_pixels(region.outline, size), axis=0)).astype(int).tolist()
    tint = PILImage.new("L", (right - left + 1, bottom - top + 1))
    for points, fill in [(region.outline, opacity), *((hole, 0) for hole in region.holes)]:
        ImageDraw.Draw(tint).polygon([(x - left, y - top) for x, y in _pixels(points, size)], fill=fill)
    canvas.bitmap((left, top), tint, fill=color)


def _pixels(points: Points, size: tuple[int, int]) -> list[Point]:
    """Normalised points [n, 2] → (x, y) in pixels of an image of (width, height)."""
    return [(x * size[0], y * size[1]) for x, y in points.tolist()]


def _draw_box(
    canvas: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    color: Color,
    line_width: int,
    dash: Sequence[float],
) -> None:
    """Draw the sides of a box on whole pixels, inside its edges, with a dark edge around them."""
    left, top, right, bottom = (round(side) for side in box)
    canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_EDGE, width=line_width + 2)
    if not dash:
        canvas.rectangle((left, top, right, bottom), outline=color, width=line_width)
        return
    inset = line_width // 2
    left, top = min(left + inset, right), min(top + inset, bottom)
    right, bottom = max(left, right - inset), max(top, bottom - inset)
    corners: list[Point] = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    for piece in _dashes(corners, [part * line_width for part in dash]):
        canvas.line(piece, fill=color, width=line_width)


def _draw_outline(
    canvas: ImageDraw.ImageDraw, points: list[Point], color: Color, line_width: int, dash: Sequence[float]
) -> None:
    """Draw a closed line through points, with a dark edge that makes it visible on bright backgrounds."""
    closed = [*points, points[0], points[1]]  # the second point again, so that the last corner is joined, too
    canvas.line(closed[:-1], fill=_EDGE, width=line_width + 2, joint="curve")
    if not dash:
        canvas.line(closed, fill=color, width=line_width, joint="curve")
        return
    for piece in _dashes(closed[:-1], [part * line_width for part in dash]):
        canvas.line(piece, fill=color, width=line_width)


def _dashes(points: Sequence[Point], lengths: Sequence[float]) -> Iterator[tuple[Point, Point]]:
    """Yield the dashes of a line through points; `lengths` are those of a dash and of a gap."""
    pattern = itertools.cycle(zip(lengths, (True, False), strict=True))
    remaining, is_dash = next(pattern)
    for (x, y), (end_x, end_y) in itertools.pairwise(points):
        length = math.hypot(end_x - x, end_y - y)
        done = 0.0
        while done < length:
            step = min(remaining, length - done)
            if is_dash:
                start, stop = done / length, (done + step) / length
                yield (
                    (x + start * (end_x - x), y + start * (end_y - y)),
                    (x + stop * (end_x - x), y + stop * (end_y - y)),
                )
            done += step
            remaining -= step
            if remaining <= 1e-9:
                remaining, is_dash = next(pattern)


def _with_probabilities(
    drawing: PILImage.Image, probs: Sequence[float], labels: Sequence[str], classes: Sequence[str]
) -> PILImage.Image:
    """Return the image above a bar for each of the five most probable classes."""
    best = sorted(zip(probs, labels, strict=True), key=lambda pair: -pair[0])[:_MAX_CLASSES]
    width = max(drawing.width, STYLE.smallest_side)
    text_size = max(12, round(width / 32))
    row_height = round(text_size * 1.7)
    height = drawing.height + row_height * len(best) + text_size // 2
    result = PILImage.new("RGB", (width, height), (255, 255, 255))
    result.paste(drawing, ((width - drawing.width) // 2, 0))
    canvas = ImageDraw.Draw(result)
    for row, (prob, label) in enumerate(best):
        top = drawing.height + text_size // 4 + row_height * row
        bottom = top + row_height - 2
        color = class_color(classes.index(label))
        canvas.rectangle((0, top + 2, round(prob * (width - 1)), bottom), fill=_pale(color))
        canvas.rectangle((0, top + 2, max(2, text_size // 3), bottom), fill=color)
        text, font = text_and_font(f"{prob:.3f}  {label}", text_size)
        canvas.text((text_size, top + row_height * 0.12), text, font=font, fill=(0, 0, 0))
    return result


def _pale(color: Color) -> Color:
    red, green, blue = (round(255 - (255 - channel) * 0.45) for channel in color)
    return red, green, blue
