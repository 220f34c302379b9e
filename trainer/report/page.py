"""The HTML page of a report: one file with sections, styles and script, which loads nothing else."""

from __future__ import annotations

import itertools
import re
from importlib import resources
from pathlib import Path

from trainer.files import write_atomically
from trainer.report.charts.chart import Chart, stylesheet
from trainer.report.markup import Html, element, joined
from trainer.report.tables import Table

# Browsers enforce that the page loads nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Page:
    """A report to which sections are added.

    Attributes:
        charts: the charts on the page.
        tables: the tables on the page, without those behind charts.
    """

    def __init__(self, title: str, subtitle: object = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self.charts: list[Chart] = []
        self.tables: list[Table] = []
        self._sections: list[tuple[str, str, Html]] = []

    def add(self, title: str, *blocks: object) -> None:
        """Add a section. Consecutive charts share a row if there is room; blocks that are None are skipped.

        Raises:
            ValueError: two charts or tables have the same name, which is their file name and anchor.
        """
        content: list[Html] = []
        for is_chart, group in itertools.groupby(blocks, key=lambda block: isinstance(block, Chart)):
            parts = [self._html(block) for block in group if block is not None]
            content += [element("div", *parts, class_="grid")] if is_chart else parts
        names = [chart.name for chart in self.charts] + [table.name for table in self.tables]
        if len(set(names)) < len(names):
            raise ValueError(f"names of charts and tables must differ: {sorted(names)}")
        if content:
            self._sections.append((_slug(title), title, joined(content)))

    def _html(self, block: object) -> Html:
        """Build a block, and remember charts and tables, which are written as files, too."""
        if isinstance(block, Chart):
            self.charts.append(block)
        elif isinstance(block, Table):
            self.tables.append(block)
        else:
            return Html.escape(block)
        return block.html()

    def render(self) -> str:
        """Return the HTML document."""
        links = [element("a", title, href=f"#{slug}") for slug, title, _ in self._sections]
        sections = [
            element("section", element("h2", title), content, id=slug, aria_label=title)
            for slug, title, content in self._sections
        ]
        head = element(
            "head",
            Html('<meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
            Html('<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'),
            element("title", self.title),
            element("style", Html(_resource("page.css") + stylesheet())),
        )
        body = element(
            "body",
            element("header", element("h1", self.title), element("p", self.subtitle)),
            element("nav", *links, aria_label="Sections"),
            element("main", *sections),
            element("script", Html(_resource("page.js"))),
        )
        return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"

    def write(self, path: Path) -> None:
        """Write the page to a file."""
        write_atomically(path, self.render())

    def write_parts(self, directory: Path) -> None:
        """Write each chart as NAME.svg and each table as NAME.csv, and delete all earlier ones."""
        directory.mkdir(parents=True, exist_ok=True)
        for old in [*directory.glob("*.svg"), *directory.glob("*.csv")]:
            old.unlink()
        for chart in self.charts:
            (directory / f"{chart.name}.svg").write_text(chart.file(), encoding="utf-8")
        for table in (*self.tables, *(chart.table for chart in self.charts)):
            if table is not None:
                path = directory / f"{table.name}.csv"
                path.write_text(table.csv(), encoding="utf-8", newline="")


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
