"""A contact sheet: images in rows and columns, each under its title."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image as PILImage
from PIL import ImageDraw, ImageOps

from trainer.drawing.fonts import fit_text

_CELL = 420
_GAP = 12
_TITLE = 18
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def contact_sheet(
    rows: Sequence[Sequence[PILImage.Image]], titles: Sequence[Sequence[str]]
) -> PILImage.Image:
    """Arrange images on a sheet; each is scaled down to its cell.

    Args:
        rows: the images; all rows have the same number.
        titles: as many texts, which are shortened to their cell.
    """
    scaled = [[ImageOps.contain(image, (_CELL, _CELL)) for image in row] for row in rows]
    heights = [max(image.height for image in row) + round(1.6 * _TITLE) for row in scaled]
    width = len(rows[0]) * (_CELL + _GAP) + _GAP
    sheet = PILImage.new("RGB", (width, sum(heights) + _GAP * (len(rows) + 1)), _PAPER)
    canvas = ImageDraw.Draw(sheet)
    top = _GAP
    for images, names, height in zip(scaled, titles, heights, strict=True):
        left = _GAP
        for image, name in zip(images, names, strict=True):
            text, font = fit_text(name, _TITLE, _CELL, cut_middle=True)
            canvas.text((left, top), text, font=font, fill=_INK)
            sheet.paste(image, (left + (_CELL - image.width) // 2, top + round(1.6 * _TITLE)))
            left += _CELL + _GAP
        top += height + _GAP
    return sheet
