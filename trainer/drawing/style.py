"""How answers look, wherever they are drawn: colours, lines, sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

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


@dataclass(frozen=True, slots=True)
class Style:
    """How answers are drawn, here and on the page that `trainer serve` shows.

    Attributes:
        palette: colours by class index; it goes round, each time with other dashes.
        dashes: lengths drawn and left out, by turns, in multiples of the line's width; none: a solid line.
        picture_by_text: a picture's longer side by the height of the text in it.
        smallest_text: in pixels.
        text_by_line: the height of the text by the width of lines.
        fill_opacity: of a polygon's inside.
        edge_opacity: of the black edge that shows lines on bright grounds.
        dark_ink_above: text on a colour of more luminance (of 255) is black, on others white.
        crowd: with more objects than that, labels larger than their objects are left out.
        label_share: a label may be as wide as its object, or this share of the picture; longer ones are cut.
        smallest_side: pictures whose longer side has fewer pixels are enlarged to it.
    """

    palette: tuple[Color, ...] = PALETTE
    dashes: tuple[tuple[float, ...], ...] = ((), (4, 2), (1, 1.5))
    picture_by_text: float = 45
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
    """The colour of a class by its index: fixed, so that pictures of one model agree."""
    return PALETTE[index % len(PALETTE)]


def class_dash(index: int) -> tuple[float, ...]:
    """The dashes of a class's lines, see `Style.dashes`: the palette goes round with others each time."""
    return STYLE.dashes[index // len(PALETTE) % len(STYLE.dashes)]


def ink_on(color: Color) -> Color:
    """Black or white, whichever reads better on a colour (relative luminance by ITU-R BT.709)."""
    red, green, blue = color
    return (
        (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > STYLE.dark_ink_above else (255, 255, 255)
    )
