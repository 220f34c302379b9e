"""The HTML page of a report: one file with sections, styles and script, which loads nothing else."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from trainer.files import write_atomically
from trainer.report.charts.chart import Chart, stylesheet
from trainer.report.markup import Html, details, element, joined
from trainer.report.tables import Folded, Table

# Browsers enforce that the page loads nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Page:
    """A report to which sections are added.

    Attributes:
        charts: the charts on the page, each written as a file of its own, too.
        tables: the tables on the page, those behind charts included; likewise.
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
        row: list[Html] = []
        for block in blocks:
            if isinstance(block, Chart):
                self.charts.append(block)
                if block.table is not None:
                    self.tables.append(block.table)
                row.append(block.html())
                continue
            content += _grid(row)
            row = []
            if isinstance(block, Table):
                self.tables.append(block)
                content.append(block.html())
            elif isinstance(block, Folded):
                self.tables.append(block.table)
                content.append(details(block.summary, block.table.html()))
            elif block is not None:
                content.append(Html.escape(block))
        content += _grid(row)
        self._check_names()
        if content:
            self._sections.append((_slug(title), title, joined(content)))

    def _check_names(self) -> None:
        chart_tables = {id(chart.table) for chart in self.charts}  # share the names of their charts
        names = [chart.name for chart in self.charts]
        names += [table.name for table in self.tables if id(table) not in chart_tables]
        if len(set(names)) < len(names):
            raise ValueError(f"names of charts and tables must differ: {sorted(names)}")

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
        for table in self.tables:
            (directory / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8", newline="")


def _grid(figures: list[Html]) -> list[Html]:
    return [element("div", *figures, class_="grid")] if figures else []


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
