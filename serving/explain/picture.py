"""An explanation as one picture: the image, a heat map, both blended, and the most relevant part."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

from trainer.annotations import FloatArray, Image
from trainer.report.fonts import readable

_SIDE = 300
_GAP = 12
_TITLE = 22
_CAPTION = 17
_SHOWN_PART = 0.3
_INK = (24, 24, 24)
_PAPER = (255, 255, 255)
# From least to most relevant; evenly spaced stops, dark to bright, so that they are told apart without hue.
_STOPS = np.array(
    [(12, 8, 38), (74, 12, 107), (151, 38, 102), (219, 80, 59), (251, 154, 6), (252, 255, 164)], np.float32
)


def four_panels(image: Image, relevance: FloatArray, title: str, method: str) -> PILImage.Image:
    """A row of four: input, heat map, blend, and the most relevant 30 % of the pixels.

    Args:
        image: uint8 [h, w, 3].
        relevance: float32 [3, h, w] or [h, w], over the whole image.
        title: what is explained, such as a class and its probability; any script.
        method: its name, shown beside the title.
    """
    heat = _heat(relevance)
    colours = _colours(heat)
    photo = image.astype(np.float32)
    threshold = np.quantile(heat, 1 - _SHOWN_PART)
    grey = 235 + 0.08 * (photo.mean(axis=2, keepdims=True) - 128)
    panels = {
        "input": photo,
        "heat map": colours,
        "blend": 0.5 * photo + 0.5 * colours,
        f"most relevant {_SHOWN_PART:.0%}".replace("%", " %"): np.where(
            (heat >= threshold)[..., None], photo, grey
        ),
    }
    return _laid_out(panels, title, method)


def png(picture: PILImage.Image) -> bytes:
    """The picture as a PNG file's content."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=6)
    return file.getvalue()


def _heat(relevance: FloatArray) -> FloatArray:
    """[3, h, w] or [h, w] → [h, w] in [0, 1]; the highest hundredth is cut, since single pixels stand out."""
    flat = relevance.sum(axis=0) if relevance.ndim == 3 else relevance
    low, high = float(flat.min()), float(np.quantile(flat, 0.99))
    if high <= low:
        return np.zeros_like(flat)
    return ((flat - low) / (high - low)).clip(0, 1).astype(np.float32)


def _colours(heat: FloatArray) -> FloatArray:
    place = heat * (len(_STOPS) - 1)
    below = place.astype(np.int64).clip(0, len(_STOPS) - 2)
    part = (place - below)[..., None]
    colours: FloatArray = _STOPS[below] * (1 - part) + _STOPS[below + 1] * part
    return colours


def _laid_out(panels: dict[str, FloatArray], title: str, method: str) -> PILImage.Image:
    height, width = next(iter(panels.values())).shape[:2]
    factor = _SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    top = _GAP + round(_TITLE * 1.6)
    canvas_size = (4 * size[0] + 5 * _GAP, top + size[1] + round(_CAPTION * 1.4) + _GAP)
    canvas = PILImage.new("RGB", canvas_size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    for place, (caption, values) in enumerate(panels.items()):
        left = _GAP + place * (size[0] + _GAP)
        panel = PILImage.fromarray(values.round().clip(0, 255).astype(np.uint8))
        canvas.paste(panel.resize(size, PILImage.Resampling.BICUBIC), (left, top))
        text, font = readable(caption, _CAPTION)
        draw.text((left, top + size[1] + 4), text, font=font, fill=_INK)
    text, font = readable(title, _TITLE)
    draw.text((_GAP, _GAP), text, font=font, fill=_INK)
    beside, small = readable(method, _CAPTION)
    length = draw.textlength(beside, font=small)
    draw.text((canvas_size[0] - _GAP - length, _GAP + 3), beside, font=small, fill=_INK)
    return canvas
