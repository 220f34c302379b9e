"""Pieces of the report's HTML: text made safe, facts, tables, and what holds them together."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.report.charts.scale import shown

_LONG = 60
"""Characters of a fact that gets a line of its own."""


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(text: object) -> Html:
    """Any text, class names and paths of users included, as it may stand in HTML and in attributes."""
    if isinstance(text, Html):
        return text
    # Characters that no HTML document may hold, NUL among them, would be errors of the page.
    clean = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    return Html(html.escape(clean, quote=True))


def element(name: str, *content: object, **attributes: object) -> Html:
    """`<name attribute="…">content</name>`; an attribute `class_` is called class, `data_x` data-x."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{''.join(map(escape, content))}</{name}>")


def joined(parts: Iterable[object]) -> Html:
    """Several pieces, one after the other."""
    return Html("".join(map(escape, parts)))


def paragraph(*content: object, kind: str | None = None) -> Html:
    return element("p", *content, class_=kind)


def note(*content: object) -> Html:
    """A remark in small print: what was left out, how something was measured."""
    return paragraph(*content, kind="note")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and what they are; values that are None are left out."""
    return element(
        "dl",
        *(
            element(
                "div",
                element("dt", name),
                element("dd", _cell(value)),
                class_="long" if len(str(value)) > _LONG else None,
            )
            for name, value in pairs
            if value is not None
        ),
        class_="facts",
    )


def place(where: str) -> Html:
    """A file and line: the file's name, and the whole path when pointed at."""
    return element("code", where.replace("\\", "/").rpartition("/")[2], title=where)


def folded(summary: object, *content: object, opened: bool = False) -> Html:
    """What a reader opens when wanted; works without scripts."""
    opening = "<details open>" if opened else "<details>"
    return Html(f"{opening}{element('summary', summary)}{joined(content)}</details>")


@dataclass(frozen=True)
class Table:
    """A table on the page and as a file.

    Attributes:
        name: of the file, without its ending.
        title: its caption.
        columns: their headings.
        rows: numbers stand right, and sort as numbers; Html in a cell is kept as it is.
        limit: rows on the page; the file has all.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    limit: int = 200

    def html(self) -> Html:
        """The table in a box that scrolls sideways; where scripts run a click on a heading sorts it."""
        numeric = [
            any(isinstance(row[place], int | float) for row in self.rows)
            and all(row[place] is None or isinstance(row[place], int | float) for row in self.rows)
            for place in range(len(self.columns))
        ]
        head = element(
            "tr",
            *(
                element("th", column, scope="col", class_="number" if is_number else None)
                for column, is_number in zip(self.columns, numeric, strict=True)
            ),
        )
        body = [
            element("tr", *(_td(value, is_number) for value, is_number in zip(row, numeric, strict=True)))
            for row in self.rows[: self.limit]
        ]
        table = element(
            "table",
            element("caption", self.title),
            element("thead", head),
            element("tbody", *body),
            class_="sortable",
            id=f"table-{self.name}",
        )
        box = element("div", table, class_="scrolls", tabindex="0", role="region", aria_label=self.title)
        left_out = len(self.rows) - self.limit
        if left_out <= 0:
            return box
        return joined([box, note(f"{left_out:,} more rows stand in the file {self.name}.csv.")])

    def csv(self) -> str:
        """The whole table as CSV; undefined numbers are empty."""
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(self.columns)
        for row in self.rows:
            writer.writerow(["" if value is None or value != value else value for value in map(_plain, row)])
        return file.getvalue()


def _plain(value: object) -> object:
    """A cell's text without markup."""
    if not isinstance(value, Html):
        return value
    text, inside = [], False
    for character in value:
        inside = character == "<" or (inside and character != ">")
        if not inside and character != ">":
            text.append(character)
    return html.unescape("".join(text))


def _td(value: object, is_number: bool) -> Html:
    exact = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        exact = repr(value) if value == value else ""  # the script sorts by this
    return element("td", _cell(value), class_="number" if is_number else None, data_value=exact)


def _cell(value: object) -> Html:
    return value if isinstance(value, Html) else escape(shown(value))
