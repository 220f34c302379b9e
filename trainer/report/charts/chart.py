"""A chart: its SVG, its text alternative, and the numbers behind it.

The SVG is written by hand. matplotlib's has no text alternatives, needs its fonts or turns text into
outlines, cannot follow a page's light and dark modes, and takes a second to import. altair and plotly need
megabytes of JavaScript, which a page that opens offline would have to contain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from trainer.report.markup import Html, details, element, note
from trainer.report.tables import Table, scrolling_box


@dataclass(frozen=True)
class Chart:
    """A vector chart with its alternatives in text.

    Attributes:
        name: file name without its ending; unique on a page.
        title: the heading.
        description: what the chart shows, for readers who cannot see it.
        body: SVG elements in a viewBox of `width` × `height`.
        table: the numbers behind it; None if another table on the page has them.
        wide: whether it takes the page's whole width; on small screens it then scrolls.
        notes: sentences below the chart, in small print.
    """

    name: str
    title: str
    description: str
    body: Html
    width: float
    height: float
    table: Table | None = None
    wide: bool = False
    notes: Sequence[str] = ()

    def html(self) -> Html:
        """Build the figure: heading, chart, notes, and the numbers to unfold."""
        svg = self._svg()
        content: list[object] = [
            element("figcaption", self.title),
            scrolling_box(svg, self.title) if self.wide else svg,
            *map(note, self.notes),
        ]
        if self.table is not None:
            content.append(details("The numbers", self.table.html()))
        return element("figure", *content, class_="chart wide" if self.wide else "chart", id=self.name)

    def file(self) -> str:
        """Return the content of a standalone SVG file."""
        style = element("style", Html(stylesheet()))
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{self._svg(style)}'

    def _svg(self, style: Html | None = None) -> Html:
        # The bounds keep text at about the same size on wide and narrow pages.
        bounds = f"max-width:{1.4 * self.width:.0f}px"
        if self.wide:
            bounds += f";min-width:{self.width:.0f}px"
        return element(
            "svg",
            element("title", self.title, id=f"{self.name}-title"),
            element("desc", self.description, id=f"{self.name}-desc"),
            style or "",
            self.body,
            xmlns="http://www.w3.org/2000/svg",
            class_="plot",
            role="img",
            viewBox=f"0 0 {self.width:g} {self.height:g}",
            style=bounds,
            aria_labelledby=f"{self.name}-title {self.name}-desc",
        )


@cache
def stylesheet() -> str:
    """Return chart.css: colours for light mode, dark mode and print."""
    return resources.files(__package__).joinpath("chart.css").read_text("utf-8")
