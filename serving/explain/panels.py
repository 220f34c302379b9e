"""Draws an explanation: the image, a heat map, a blend of both, and the most relevant part, side by side."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

from trainer.annotations import BoolArray, FloatArray, Image
from trainer.drawing.fonts import fit_text, text_and_font

_SIDE = 300
_MIN_STEP = 190
_GAP = 12
_TITLE = 22
_CAPTION = 17
_RELEVANT_FRACTION = 0.3
_INK = (24, 24, 24)
_PAPER = (255, 255, 255)
# From least to most relevant: evenly spaced, and ever brighter, so that the order shows without hue.
_STOPS = np.array(
    [(12, 8, 38), (74, 12, 107), (151, 38, 102), (219, 80, 59), (251, 154, 6), (252, 255, 164)], np.float32
)


def four_panels(
    image: Image, relevance: FloatArray, title: str, method: str, box: FloatArray | None = None
) -> PILImage.Image:
    """Draw a row of four panels: input, heat map, blend, and the most relevant 30 % of the pixels.

    Args:
        image: uint8 [h, w, 3].
        relevance: float32 [r, c], a grid of any size over the whole image.
        title: what is explained, such as a class and its probability, in any script.
        method: name of the method, shown opposite the title.
        box: normalised xyxy [4], drawn on the panels.
    """
    size = _panel_size(image)
    photo = np.asarray(PILImage.fromarray(image).resize(size, PILImage.Resampling.BICUBIC), np.float32)
    fine = np.asarray(PILImage.fromarray(relevance).resize(size, PILImage.Resampling.BILINEAR))
    colours = _colours(_heat(fine))
    grey = 235 + 0.08 * (photo.mean(axis=2, keepdims=True) - 128)
    values_of = {
        "input": photo,
        "heat map": colours,
        "blend": 0.5 * photo + 0.5 * colours,
        f"most relevant {100 * _RELEVANT_FRACTION:.0f} %": np.where(
            _most_relevant(fine)[..., None], photo, grey
        ),
    }
    panels = {
        caption: PILImage.fromarray(values.round().clip(0, 255).astype(np.uint8))
        for caption, values in values_of.items()
    }
    if box is not None:
        for panel in panels.values():
            _draw_box(panel, box)
    return _laid_out(panels, title, method)


def png(image: PILImage.Image) -> bytes:
    """The content of a PNG file of the image."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=6)
    return file.getvalue()


def _panel_size(image: Image) -> tuple[int, int]:
    """(width, height) of a panel."""
    height, width = image.shape[:2]
    factor = _SIDE / max(height, width)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _heat(relevance: FloatArray) -> FloatArray:
    """Scale relevance [h, w] to [0, 1]: 0 is no relevance, or the minimum if all pixels have some.

    The top 1 % is clipped, because single pixels would otherwise set the scale.
    """
    low, high = float(relevance.min()), float(np.quantile(relevance, 0.99))
    if low < 0 < high:
        low = 0.0  # evidence against the class is not shown: it would pale the evidence for it
    if high <= low:
        return np.zeros_like(relevance)
    return ((relevance - low) / (high - low)).clip(0, 1).astype(np.float32)


def _most_relevant(relevance: FloatArray) -> BoolArray:
    """Mask of the most relevant 30 %, bool [h, w]; of fewer pixels if the rest has equal relevance."""
    threshold = np.quantile(relevance, 1 - _RELEVANT_FRACTION)
    if threshold > relevance.min():
        return np.asarray(relevance >= threshold)
    return np.asarray(relevance > threshold)


def _colours(heat: FloatArray) -> FloatArray:
    position = heat * (len(_STOPS) - 1)
    below = position.astype(np.int64).clip(0, len(_STOPS) - 2)
    fraction = (position - below)[..., None]
    colours: FloatArray = _STOPS[below] * (1 - fraction) + _STOPS[below + 1] * fraction
    return colours


def _draw_box(panel: PILImage.Image, box: FloatArray) -> None:
    """Draw white on black, which is visible on any background."""
    scale = np.array([panel.width - 1, panel.height - 1] * 2)
    corners = tuple(float(side) for side in box * scale)
    draw = ImageDraw.Draw(panel)
    draw.rectangle(corners, outline=_INK, width=4)
    draw.rectangle(corners, outline=_PAPER, width=2)


def _laid_out(panels: dict[str, PILImage.Image], title: str, method: str) -> PILImage.Image:
    width, height = next(iter(panels.values())).size
    step = max(width, _MIN_STEP) + _GAP
    top = _GAP + round(_TITLE * 1.6)
    canvas_size = (len(panels) * step + _GAP, top + height + round(_CAPTION * 1.4) + _GAP)
    canvas = PILImage.new("RGB", canvas_size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (caption, panel) in enumerate(panels.items()):
        left = _GAP + index * step
        canvas.paste(panel, (left, top))
        text, font = text_and_font(caption, _CAPTION)
        draw.text((left, top + height + 4), text, font=font, fill=_INK)
    method_text, small = text_and_font(method, _CAPTION)
    length = draw.textlength(method_text, font=small)
    draw.text((canvas_size[0] - _GAP - length, _GAP + 3), method_text, font=small, fill=_INK)
    text, font = fit_text(title, _TITLE, canvas_size[0] - 4 * _GAP - length, cut_middle=True)
    draw.text((_GAP, _GAP), text, font=font, fill=_INK)
    return canvas
