"""Elements that all charts are drawn from; classes in chart.css give them their colours."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.report.markup import Html, element, joined

COLORS = 7
"""Number of series colours, the classes s0 to s6; later series repeat them with dashes."""
WIDTH = 440.0
"""Width of a chart that shares a row with others, in viewBox units; a unit is at most 1.4 pixels."""
CHARACTER_WIDTH = 6.0
"""Average width of a character in the charts' 11-pixel font; it differs a little between browsers."""


def shape(name: str, tooltip: str | None = None, content: str = "", **attributes: object) -> Html:
    """Build an SVG element; attributes are written as by `element`, floats with one decimal."""
    title = () if tooltip is None else (element("title", tooltip),)
    written = {
        key: f"{value:.1f}" if isinstance(value, float) else value for key, value in attributes.items()
    }
    return element(name, content, *title, **written)


def line(x1: float, y1: float, x2: float, y2: float, css_class: str) -> Html:
    """Draw a straight line."""
    return shape("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=css_class)


def bar(x: float, y: float, width: float, height: float, css_class: str, tooltip: str) -> Html:
    """Draw a filled rectangle."""
    return shape("rect", tooltip, x=x, y=y, width=width, height=height, class_=f"fill {css_class}")


def text(
    x: float,
    y: float,
    content: object,
    *,
    anchor: str = "start",
    css_class: str | None = None,
    max_width: float | None = None,
) -> Html:
    """Draw text. Text wider than `max_width` is shortened and gets a tooltip with the full text."""
    whole = str(content)
    short = whole if max_width is None else shorten(whole, max_width)
    tooltip = whole if short != whole else None
    return shape("text", tooltip, short, x=float(x), y=float(y), text_anchor=anchor, class_=css_class)


def rotated_text(
    x: float, y: float, degrees: int, content: str, *, tooltip: str | None = None, **attributes: object
) -> Html:
    """Draw text rotated around its anchor."""
    transform = f"translate({x:.1f} {y:.1f}) rotate({degrees})"
    return shape("text", tooltip, content, transform=transform, **attributes)


def text_width(content: str) -> float:
    """Estimate the width of text."""
    return len(content) * CHARACTER_WIDTH


def shorten(content: str, max_width: float) -> str:
    """Cut text to an estimated width, ending it with an ellipsis."""
    most = max(2, int(max_width / CHARACTER_WIDTH))
    return content if len(content) <= most else content[: most - 1] + "…"


def series_class(index: int) -> str:
    """Return the CSS classes of a series by its index."""
    return f"s{index % COLORS}" + (" dashed" if index // COLORS % 2 else "")


def legend(names: Sequence[str], top: float) -> tuple[Html, float]:
    """Draw the names of series next to their colours, in rows below `top`.

    Returns:
        The legend, empty for a single series, and the y of its lower edge.
    """
    if len(names) < 2:
        return Html(), top
    parts = []
    x, y = 12.0, top + 10
    for index, name in enumerate(names):
        short = shorten(name, WIDTH - 50)
        entry_width = text_width(short) + 36
        if x + entry_width > WIDTH and x > 12:
            x, y = 12.0, y + 18
        parts.append(line(x, y, x + 18, y, f"line {series_class(index)} key"))
        parts.append(text(x + 23, y + 4, short))
        x += entry_width
    return joined(parts), y + 14
