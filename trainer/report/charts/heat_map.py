"""Heat maps of confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.report.charts.chart import Chart
from trainer.report.charts.svg import rotated_text, shape, text, text_width
from trainer.report.markup import joined
from trainer.report.tables import Table

_MAX_ROWS = 40
_MAX_NUMBERED_COLUMNS = 16
"""With more columns the cells are too small for their numbers."""
_CELL, _SMALL_CELL = 30.0, 16.0
_COLUMN_LABEL_WIDTH = 76.0
_FLATTENED = 0.75
"""Width or height that slanted text takes, as a fraction of its length."""


def heat_map(
    name: str,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    counts: Sequence[Sequence[int]],
    *,
    row_heading: str,
    column_heading: str,
    notes: Sequence[str] = (),
) -> Chart:
    """Draw a matrix of counts in which each cell is shaded by its fraction of the row's total.

    With more than 40 rows or columns, only the 40 rows with the most confusions and their columns are drawn;
    the CSV file has all.

    Args:
        rows: names of the true classes.
        columns: names of the predicted classes.
        counts: [rows][columns].
    """
    headings = (f"{row_heading} \\ {column_heading}", *columns)
    table = Table(name, title, headings, [(row, *values) for row, values in zip(rows, counts, strict=True)])
    drawn_rows, drawn_columns = _most_confused(rows, columns, counts)
    if len(drawn_rows) < len(rows) or len(drawn_columns) < len(columns):
        notes = [
            *notes,
            f"Shows the {len(drawn_rows)} of {len(rows)} classes with the most confusions; "
            f"{name}.csv has all.",
        ]
    cell = _CELL if len(drawn_columns) <= _MAX_NUMBERED_COLUMNS else _SMALL_CELL
    slanted_widths = [text_width(columns[index]) * _FLATTENED for index in drawn_columns]
    left = min(140.0, max(text_width(rows[index]) for index in drawn_rows) + 30) if drawn_rows else 60.0
    top = min(120.0, max(slanted_widths, default=0.0) + 44)
    parts = [
        text(left, 14, f"{column_heading} →", css_class="label"),
        text(6, top - 8, f"{row_heading} ↓", css_class="label"),
    ]
    for place, (index, width) in enumerate(zip(drawn_columns, slanted_widths, strict=True)):
        label = columns[index] if width <= _COLUMN_LABEL_WIDTH else columns[index][:15] + "…"
        x = left + (place + 0.6) * cell
        parts.append(rotated_text(x, top - 6, -48, label, tooltip=columns[index]))
    for row_place, row in enumerate(drawn_rows):
        y = top + row_place * cell
        parts.append(text(left - 6, y + cell / 2 + 4, rows[row], anchor="end", max_width=left - 10))
        total = sum(counts[row])
        for column_place, column in enumerate(drawn_columns):
            count = counts[row][column]
            x = left + column_place * cell
            fraction = count / total if total else 0.0
            tooltip = f"{row_heading} {rows[row]}, {column_heading} {columns[column]}: {count:,}"
            if total:
                tooltip += f" of {total:,} ({fraction:.0%})"
            opacity = f"{0.04 + 0.96 * fraction:.2f}"
            parts.append(
                shape("rect", tooltip, x=x + 0.5, y=y + 0.5, width=cell - 1, height=cell - 1, class_="cell",
                      fill_opacity=opacity)
            )  # fmt: skip
            if count and cell >= _CELL:
                number = str(count) if count < 10_000 else f"{count / 1000:.0f}k"
                ink = "on" if fraction > 0.5 else "off"
                parts.append(text(x + cell / 2, y + cell / 2 + 4, number, anchor="middle", css_class=ink))
    # The slanted labels of the last columns reach beyond the cells.
    overhang = max((min(_COLUMN_LABEL_WIDTH, width) for width in slanted_widths), default=0.0)
    width, height = left + len(drawn_columns) * cell + overhang, top + len(drawn_rows) * cell + 8
    return Chart(
        name, title, _description(rows, columns, counts), joined(parts), max(width, 300.0), height, table,
        wide=width > 520, notes=notes,
    )  # fmt: skip


def _most_confused(
    rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]
) -> tuple[list[int], list[int]]:
    """Return the indices of the rows and columns to draw."""
    if max(len(rows), len(columns)) <= _MAX_ROWS:
        return list(range(len(rows))), list(range(len(columns)))
    wrong = [
        sum(count for column, count in zip(columns, values, strict=True) if column != row)
        for row, values in zip(rows, counts, strict=True)
    ]
    worst = sorted(sorted(range(len(rows)), key=lambda row: -wrong[row])[:_MAX_ROWS])
    names = {rows[row] for row in worst}
    return worst, [index for index, column in enumerate(columns) if column in names or column not in rows]


def _description(rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Describe how many counts are on the diagonal, and the most frequent confusions."""
    right = 0
    confusions: list[tuple[int, str]] = []
    for row, values in zip(rows, counts, strict=True):
        for column, count in zip(columns, values, strict=True):
            if column == row:
                right += count
            elif count:
                confusions.append((count, f"{row} predicted as {column} {count:,} times"))
    confusions.sort(key=lambda confusion: -confusion[0])
    summary = f"{right:,} of {sum(map(sum, counts)):,} on the diagonal. "
    if not confusions:
        return summary + "Nothing is off the diagonal."
    return summary + "Most frequent confusions: " + "; ".join(said for _, said in confusions[:5]) + "."
