"""Interval charts: values with the ends of their confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.report.charts.chart import Chart
from trainer.report.charts.plot_area import RIGHT, TOP
from trainer.report.charts.scale import Scale
from trainer.report.charts.svg import WIDTH, line, shape, text
from trainer.report.markup import joined
from trainer.report.number_format import format_tick, format_value
from trainer.report.tables import Table

_LEFT, _ROW_HEIGHT, _LINE_OFFSET = 16.0, 38.0, 24.0
_CAP = 4.0


def interval_chart(
    name: str,
    title: str,
    rows: Sequence[tuple[str, float, float, float]],
    *,
    x_label: str,
    marks_zero: bool = False,
    table: Table | None = None,
    notes: Sequence[str] = (),
) -> Chart:
    """Draw a horizontal line from the low to the high end of each interval, with a dot at its value.

    Args:
        rows: label, value, low and high end of each; all finite.
        marks_zero: whether to draw a vertical line at 0, which the axis then includes.
        table: the numbers; None if another table on the page has them.
    """
    scale = Scale.over([end for row in rows for end in row[1:]] + ([0.0] if marks_zero else []))
    extent, base = WIDTH - _LEFT - RIGHT, TOP + _ROW_HEIGHT * len(rows)

    def x(value: float) -> float:
        return _LEFT + scale.position(value) * extent

    parts = []
    for tick in scale.ticks():
        parts.append(line(x(tick), TOP, x(tick), base, "grid"))
        parts.append(text(x(tick), base + 16, format_tick(tick), anchor="middle"))
    parts.append(line(_LEFT, base, _LEFT + extent, base, "axis"))
    if marks_zero:
        parts.append(line(x(0.0), TOP, x(0.0), base, "guide"))
    for number, (label, value, low, high) in enumerate(rows):
        y = TOP + _ROW_HEIGHT * number + _LINE_OFFSET
        # Above its interval, where a label has the chart's whole width: names of runs are long.
        parts.append(text(_LEFT, y - 10, label, max_width=extent))
        parts.append(line(x(low), y, x(high), y, "line s0"))
        parts += [line(x(end), y - _CAP, x(end), y + _CAP, "line s0") for end in (low, high)]
        tooltip = f"{label}: {_in_words(value, low, high)}"
        parts.append(shape("circle", tooltip, cx=x(value), cy=y, r=4.0, class_="mark s0"))
    parts.append(text(_LEFT + extent / 2, base + 33, x_label, anchor="middle", css_class="label"))
    description = "; ".join(f"{label}: {_in_words(*ends)}" for label, *ends in rows)
    return Chart(name, title, description, joined(parts), WIDTH, base + 40, table, notes=notes)


def _in_words(value: float, low: float, high: float) -> str:
    return f"{format_value(value)}, from {format_value(low)} to {format_value(high)}"
