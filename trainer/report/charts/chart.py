"""Charts as vector graphics, with text alternatives: what all of them are made of.

They are written by hand: matplotlib's SVG has no text alternatives, turns text to outlines or asks for its
fonts, cannot follow a page's light and dark, and takes a second to import; altair and plotly draw by
megabytes of JavaScript, which a page that opens offline would have to carry. What a report needs of charts is
these few hundred lines. Colours are classes (chart.css), so that page and standalone files share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from trainer.report.markup import Html, Table, element, escape, folded, note

COLORS = 7
"""Classes s0 to s6 in chart.css; series beyond begin again, with dashes."""
WIDTH = 440.0
"""Of charts that stand beside each other, in the unit of a viewBox, at most about a pixel."""
_CHARACTER = 6.0
"""Width of an average character in the charts' font of 11 pixels; browsers' fonts differ a little."""


@dataclass(frozen=True)
class Chart:
    """A vector chart with its alternatives in text.

    Attributes:
        name: of the file, without its ending; unique on a page.
        description: what it shows, for those who do not see it.
        body: SVG elements in a viewBox of `width` x `height`.
        table: the numbers behind it; None where another table on the page has them.
        wide: takes the page's whole width, and scrolls on small screens.
    """

    name: str
    title: str
    description: str
    body: str
    width: float
    height: float
    table: Table | None = None
    wide: bool = False
    remarks: tuple[str, ...] = field(default=())

    def html(self) -> Html:
        """A figure: heading, picture, and the numbers to unfold."""
        content: list[object] = [element("figcaption", self.title), self._boxed()]
        content += [note(remark) for remark in self.remarks]
        if self.table is not None:
            content.append(folded("The numbers", self.table.html()))
        return element("figure", *content, class_="chart wide" if self.wide else "chart", id=self.name)

    def _boxed(self) -> Html:
        if not self.wide:
            return self._svg()
        return element(
            "div", self._svg(), class_="scrolls", tabindex="0", role="region", aria_label=self.title
        )

    def file(self) -> str:
        """The chart as an SVG file of its own."""
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + self._svg(f"<style>{stylesheet()}</style>")

    def _svg(self, before: str = "") -> Html:
        # Type keeps about its size on wide and on narrow pages.
        bound = f"max-width:{1.4 * self.width:.0f}px"
        if self.wide:
            bound += f";min-width:{self.width:.0f}px"
        return Html(
            f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" '
            f'viewBox="0 0 {self.width:g} {self.height:g}" style="{bound}" '
            f'aria-labelledby="{self.name}-title {self.name}-desc">'
            f'<title id="{self.name}-title">{escape(self.title)}</title>'
            f'<desc id="{self.name}-desc">{escape(self.description)}</desc>{before}{self.body}</svg>'
        )


@cache
def stylesheet() -> str:
    """The colours of charts, light and dark."""
    return resources.files(__package__).joinpath("chart.css").read_text("utf-8")


def color(index: int) -> str:
    """The classes of a series."""
    return f"s{index % COLORS}" + (" dashed" if index // COLORS % 2 else "")


def text(
    x: float, y: float, content: object, *, anchor: str = "start", kind: str = "", room: float | None = None
) -> str:
    """A piece of text; of one that is longer than its `room` the rest stands in a tooltip."""
    whole = str(content)
    short = whole if room is None else shortened(whole, room)
    tooltip = f"<title>{escape(whole)}</title>" if short != whole else ""
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}>{escape(short)}{tooltip}</text>'


def shortened(whole: str, room: float) -> str:
    """Text that fits into so many pixels."""
    most = max(2, int(room / _CHARACTER))
    return whole if len(whole) <= most else whole[: most - 1] + "…"


def width_of(content: str) -> float:
    return len(content) * _CHARACTER


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def bar(x: float, y: float, width: float, height: float, kind: str, told: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="fill {kind}">'
        f"<title>{escape(told)}</title></rect>"
    )


def legend(names: Sequence[str], top: float) -> tuple[str, float]:
    """Names beside their colours in rows below a plot, and the height with them."""
    if len(names) < 2:
        return "", top
    drawn = []
    x, y = 12.0, top + 10
    for index, name in enumerate(names):
        said = shortened(name, WIDTH - 50)
        wide = width_of(said) + 36
        if x + wide > WIDTH and x > 12:
            x, y = 12.0, y + 18
        drawn.append(line(x, y, x + 18, y, f"line {color(index)} key"))
        drawn.append(text(x + 23, y + 4, said))
        x += wide
    return "".join(drawn), y + 14
