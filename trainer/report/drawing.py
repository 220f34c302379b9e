"""Draws a model's answer onto its image: boxes, polygons and labels, or a classifier's best classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from PIL import Image as PILImage
from PIL import ImageDraw

from trainer.annotations import Image
from trainer.report.fonts import readable

Color: TypeAlias = tuple[int, int, int]

# Okabe and Ito, "Color Universal Design" (2008), without black; told apart with any colour vision.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)

_SHOWN_CLASSES = 5
_SMALLEST_SIDE = 480


def class_color(index: int) -> Color:
    """The colour of a class by its index: fixed, so that pictures of one model agree."""
    return PALETTE[index % len(PALETTE)]


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
    factor = _SMALLEST_SIDE / max(picture.size)
    if factor <= 1:
        return picture
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, PILImage.Resampling.BICUBIC)


def _text_size(picture: PILImage.Image) -> int:
    return max(12, round(max(picture.size) / 45))


def _draw_objects(
    picture: PILImage.Image, objects: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> None:
    size = _text_size(picture)
    line = max(2, size // 7)
    canvas = ImageDraw.Draw(picture, "RGBA")
    # The surest last, so that it lies on top.
    for found in reversed(objects):
        color = class_color(classes.index(found["label"]))
        for segment in found.get("polygon", ()):
            points = [
                (x * picture.width, y * picture.height)
                for x, y in zip(segment[::2], segment[1::2], strict=True)
            ]
            canvas.polygon(points, fill=(*color, 90))
            canvas.line([*points, points[0]], fill=color, width=max(1, line // 2), joint="curve")
        canvas.rectangle(_pixels(found["box"], picture), outline=color, width=line)
    for found in reversed(objects):
        left, top, _, bottom = _pixels(found["box"], picture)
        text = f"{found['label']} {found['score']:.2f}"
        color = class_color(classes.index(found["label"]))
        _draw_label(canvas, text, left, top, bottom, color, size, picture.size)


def _pixels(box: Mapping[str, float], picture: PILImage.Image) -> tuple[float, float, float, float]:
    width, height = picture.width - 1, picture.height - 1
    return box["topX"] * width, box["topY"] * height, box["bottomX"] * width, box["bottomY"] * height


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    text: str,
    left: float,
    top: float,
    bottom: float,
    color: Color,
    size: int,
    picture_size: tuple[int, int],
) -> None:
    """A label above its box; inside where the picture ends above, and moved left where it ends beside."""
    text, font = readable(text, size)
    padding = max(2, size // 5)
    width = canvas.textlength(text, font=font) + 2 * padding
    height = round(size * 1.2) + 2 * padding
    above = top - height
    y = above if above >= 0 else min(top, picture_size[1] - height, max(bottom - height, 0))
    x = max(0.0, min(left, picture_size[0] - width))
    canvas.rectangle((x, y, x + width, y + height), fill=color)
    canvas.text((x + padding, y + padding), text, font=font, fill=_ink(color))


def _ink(color: Color) -> Color:
    """Black or white, whichever reads better on a colour (relative luminance by ITU-R BT.709)."""
    red, green, blue = color
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 110 else (255, 255, 255)


def _with_caption(
    picture: PILImage.Image, probs: Sequence[float], labels: Sequence[str], classes: Sequence[str]
) -> PILImage.Image:
    """The image above a bar for each of the classes with the highest probabilities."""
    best = sorted(zip(probs, labels, strict=True), key=lambda pair: -pair[0])[:_SHOWN_CLASSES]
    width = max(picture.width, _SMALLEST_SIDE)
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
