"""Colours, lines and sizes of drawn predictions; the service's page uses the same values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Color: TypeAlias = tuple[int, int, int]
"""Red, green and blue, each 0 to 255."""

# Okabe and Ito, "Color Universal Design" (2008), without black: distinct for any colour vision.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


@dataclass(frozen=True, slots=True)
class Style:
    """How predictions look, in drawings and on the page of `trainer serve`.

    Attributes:
        palette: colours by class index; reused, each time with other dashes, if there are more classes.
        dashes: lengths of dashes and gaps in line widths, a pattern for each use of the palette; () is solid.
        image_by_text: the image's longer side divided by the height of its text.
        smallest_text: minimum height of text, in pixels.
        text_by_line: height of text divided by the width of lines.
        fill_opacity: opacity of a polygon's fill.
        edge_opacity: opacity of the black edge that makes lines visible on bright backgrounds.
        dark_ink_above: luminance, 0 to 255, above which text on a colour is black instead of white.
        crowd: number of objects above which labels larger than their objects are left out.
        label_share: maximum width of a label, as a fraction of the image, if its object is narrower.
        smallest_side: images whose longer side has fewer pixels are enlarged to this size.
    """

    palette: tuple[Color, ...] = PALETTE
    dashes: tuple[tuple[float, ...], ...] = ((), (4, 2), (1, 1.5))
    image_by_text: float = 45
    smallest_text: int = 12
    text_by_line: float = 7
    fill_opacity: float = 0.35
    edge_opacity: float = 0.4
    dark_ink_above: float = 110
    crowd: int = 12
    label_share: float = 0.5
    smallest_side: int = 640


STYLE = Style()


def class_color(index: int) -> Color:
    """Return the colour of a class by its index, which is the same in all images of a model."""
    return PALETTE[index % len(PALETTE)]


def class_dash(index: int) -> tuple[float, ...]:
    """Return the dash pattern of a class by its index, in line widths; see `Style.dashes`."""
    return STYLE.dashes[index // len(PALETTE) % len(STYLE.dashes)]


def ink_on(color: Color) -> Color:
    """Return black or white, whichever is easier to read on a colour (luminance after ITU-R BT.709)."""
    red, green, blue = color
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return (0, 0, 0) if luminance > STYLE.dark_ink_above else (255, 255, 255)
