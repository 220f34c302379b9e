"""The page that a report is: sections, styles and script within, and nothing outside."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from trainer.report.charts.chart import Chart, stylesheet
from trainer.report.markup import Html, Table, element, escape, folded, joined

# The browser itself sees to it that the page fetches nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Folded:
    """A table that a reader opens when wanted."""

    summary: str
    table: Table


class Page:
    """A report being written.

    Attributes:
        charts, tables: those on the page so far, which are files of their own as well.
    """

    def __init__(self, title: str, subtitle: object = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self.charts: list[Chart] = []
        self.tables: list[Table] = []
        self._sections: list[tuple[str, str, Html]] = []

    def add(self, title: str, *blocks: object) -> None:
        """Add a section; charts that follow each other stand beside each other where there is room.

        Raises:
            ValueError: a chart or table has the name of another: they are files and anchors.
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
                content.append(folded(block.summary, block.table.html()))
            elif block is not None:
                content.append(escape(block))
        content += _grid(row)
        of_charts = {id(chart.table) for chart in self.charts}  # these have their chart's name
        names = [chart.name for chart in self.charts]
        names += [table.name for table in self.tables if id(table) not in of_charts]
        if len(set(names)) < len(names):
            raise ValueError(f"names must differ: {sorted(names)}")
        if content:
            self._sections.append((_slug(title), title, joined(content)))

    def render(self) -> str:
        """The HTML document."""
        links = [element("a", title, href=f"#{slug}") for slug, title, _ in self._sections]
        sections = [
            element("section", element("h2", title), content, id=slug, aria_label=title)
            for slug, title, content in self._sections
        ]
        head = joined(
            [
                Html('<meta charset="utf-8">'),
                Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
                Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
                Html('<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'),
                element("title", self.title),
                Html(f"<style>{_resource('page.css')}{stylesheet()}</style>"),
            ]
        )
        header = element("header", element("h1", self.title), element("p", self.subtitle))
        body = joined(
            [
                header,
                element("nav", *links, aria_label="Sections"),
                element("main", *sections),
                Html(f"<script>{_resource('page.js')}</script>"),
            ]
        )
        return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_text(self.render(), encoding="utf-8")
        partial.replace(path)

    def write_parts(self, directory: Path) -> None:
        """Write each chart as NAME.svg and each table as NAME.csv, in place of those from before."""
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


def listed(items: Iterable[object]) -> Html:
    """A list with points."""
    return element("ul", *(element("li", item) for item in items))
