"""Tables, shown on a report's page and written as CSV files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report.markup import Html, cell, details, element, note
from trainer.report.number_format import is_number


@dataclass(frozen=True)
class Table:
    """A table on the page and as a file.

    Attributes:
        name: file name without its ending.
        title: the caption.
        columns: the headings.
        rows: cells; numbers are right-aligned and sort as numbers, HTML is kept as it is.
        limit: number of rows on the page; the file holds all rows.
        summary: readers click this to unfold the table; None shows the table as it is.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    limit: int = 200
    summary: str | None = None

    def html(self) -> Html:
        """Build the table in a box that scrolls sideways; with scripts, a click on a heading sorts it."""
        classes = ["number" if self._is_numeric(index) else None for index in range(len(self.columns))]
        headings = map(_heading, self.columns, classes)
        rows = (
            element("tr", *(_cell(*pair) for pair in zip(row, classes, strict=True)))
            for row in self.rows[: self.limit]
        )
        table = element(
            "table",
            element("caption", self.title),
            element("thead", element("tr", *headings)),
            element("tbody", *rows),
            class_="sortable",
            id=f"table-{self.name}",
        )
        content = scrolling_box(table, self.title)
        omitted = len(self.rows) - self.limit
        if omitted > 0:
            content += note(f"{omitted:,} more rows are in {self.name}.csv.")
        return content if self.summary is None else details(self.summary, content)

    def csv(self) -> str:
        """Return all rows as CSV; undefined numbers are empty and markup is removed."""
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(self.columns)
        for row in self.rows:
            writer.writerow(["" if value is None or value != value else _plain(value) for value in row])
        return file.getvalue()

    def _is_numeric(self, index: int) -> bool:
        values = [row[index] for row in self.rows if row[index] is not None]
        return bool(values) and all(isinstance(value, int | float) for value in values)


def scrolling_box(content: Html, label: str) -> Html:
    """Build a box that scrolls sideways, also with the keyboard."""
    return element("div", content, class_="scrolls", tabindex="0", role="region", aria_label=label)


def _heading(column: str, css_class: str | None) -> Html:
    return element("th", column, scope="col", class_=css_class)


def _cell(value: object, css_class: str | None) -> Html:
    sort_key = None
    if is_number(value):
        sort_key = repr(value) if value == value else ""  # read by page.js
    return element("td", cell(value), class_=css_class, data_value=sort_key)


def _plain(value: object) -> object:
    """Remove the markup of a cell. `Markup.striptags` would also collapse the spaces of a path."""
    return Html(re.sub(r"<[^>]*>", "", value)).unescape() if isinstance(value, Html) else value
