"""Line charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report.charts.chart import Chart
from trainer.report.charts.plot_area import HEIGHT, TOP, PlotArea
from trainer.report.charts.scale import Scale
from trainer.report.charts.svg import WIDTH, legend, line, series_class, text
from trainer.report.markup import joined
from trainer.report.number_format import format_tick, format_value
from trainer.report.tables import Table

_MARKED_POINTS = 60
_TABLE_ROWS = 100
_DESCRIBED_SERIES = 12


@dataclass(frozen=True)
class Series:
    """A named line through points in order; values that are not finite leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    x_scale: Scale | None = None,
    y_label: str = "",
    y_scale: Scale | None = None,
    best: float | None = None,
    diagonal: bool = False,
    marks: bool = True,
    notes: Sequence[str] = (),
) -> Chart:
    """Draw lines that share their axes.

    Args:
        series: the lines, which need not share their x values.
        x_scale: scale of the horizontal axis; None covers all values.
        y_scale: scale of the vertical axis; None covers all values.
        best: x to mark with a vertical line, such as the best epoch.
        diagonal: whether to draw the diagonal, which chance or a perfect model would follow.
        marks: whether to mark each point with a tooltip; series of more than 60 points get no marks.
    """
    x_scale = x_scale or Scale.over(value for series_line in series for value in series_line.x)
    y_scale = y_scale or Scale.over(value for series_line in series for value in series_line.y)
    area = PlotArea(x_scale, y_scale, x_label, y_label)
    parts = [area.axes()]
    if diagonal:
        start, end = (area.x(x_scale.low), area.y(y_scale.low)), (area.x(x_scale.high), area.y(y_scale.high))
        parts.append(line(*start, *end, "guide"))
    if best is not None and x_scale.low <= best <= x_scale.high:
        x = area.x(best)
        anchor, offset = ("end", -4) if x > WIDTH * 0.75 else ("start", 4)
        parts.append(line(x, TOP, x, TOP + HEIGHT, "guide"))
        parts.append(text(x + offset, TOP + 9, f"best: {format_tick(best)}", anchor=anchor))
    for index, series_line in enumerate(series):
        points = list(zip(series_line.x, series_line.y, strict=True))
        parts.append(area.path(points, series_class(index)))
        finite = [point for point in points if all(map(math.isfinite, point))]
        if marks and len(finite) <= _MARKED_POINTS:
            for x, y in finite:
                tooltip = f"{series_line.name}: {format_value(y)} at {x_label} {format_value(x)}"
                parts.append(area.mark(x, y, series_class(index), tooltip))
    key, height = legend([series_line.name for series_line in series], area.total_height)
    table = _table(name, title, series, x_label)
    body = joined([*parts, key])
    return Chart(name, title, _description(series, x_label), body, WIDTH, height, table, notes=notes)


def _description(series: Sequence[Series], x_label: str) -> str:
    parts = []
    for series_line in series[:_DESCRIBED_SERIES]:
        finite = [(x, y) for x, y in zip(series_line.x, series_line.y, strict=True) if math.isfinite(y)]
        if finite:
            (first_x, first), (last_x, last) = finite[0], finite[-1]
            lowest, highest = min(y for _, y in finite), max(y for _, y in finite)
            parts.append(
                f"{series_line.name}: {format_value(first)} at {x_label} {format_value(first_x)}, "
                f"{format_value(last)} at {format_value(last_x)}, "
                f"between {format_value(lowest)} and {format_value(highest)}"
            )
    return "; ".join(parts) + "." if parts else "No values."


def _table(name: str, title: str, series: Sequence[Series], x_label: str) -> Table:
    """Tabulate about 100 points: lines side by side if they share their x values, else one after another."""
    if all(list(series_line.x) == list(series[0].x) for series_line in series):
        rows: list[Sequence[object]] = [
            (x, *(series_line.y[row] for series_line in series))
            for row, x in enumerate(series[0].x if series else ())
        ]
        return Table(name, title, (x_label, *(series_line.name for series_line in series)), _thinned(rows))
    limit = max(2, _TABLE_ROWS // len(series))
    rows = [
        (series_line.name, x, y)
        for series_line in series
        for x, y in _thinned(list(zip(series_line.x, series_line.y, strict=True)), limit)
    ]
    return Table(name, title, ("line", x_label, "value"), rows)


def _thinned(rows: list[Sequence[object]], limit: int = _TABLE_ROWS) -> list[Sequence[object]]:
    """Return at most `limit` rows, evenly spaced, the first and the last among them."""
    if len(rows) <= limit:
        return rows
    return [rows[round(index * (len(rows) - 1) / (limit - 1))] for index in range(limit)]
