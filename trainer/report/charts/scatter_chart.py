"""Scatter charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report.charts.chart import Chart
from trainer.report.charts.plot_area import PlotArea
from trainer.report.charts.scale import Scale
from trainer.report.charts.svg import WIDTH
from trainer.report.markup import joined
from trainer.report.number_format import format_value
from trainer.report.tables import Table


@dataclass(frozen=True)
class Point:
    """A labelled point of a scatter chart."""

    x: float
    y: float
    label: str
    is_highlighted: bool = False


def scatter_chart(
    name: str,
    title: str,
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    notes: Sequence[str] = (),
) -> Chart:
    """Draw points; a line joins the highlighted ones, if there are several, from left to right."""
    area = PlotArea(
        Scale.over(point.x for point in points), Scale.over(point.y for point in points), x_label, y_label
    )
    highlighted = sorted((point for point in points if point.is_highlighted), key=lambda point: point.x)
    parts = [area.axes(), area.path([(point.x, point.y) for point in highlighted], "s1")]
    for point in points:
        tooltip = f"{point.label}: {y_label} {format_value(point.y)}, {x_label} {format_value(point.x)}"
        css_class, radius = ("s1", 5.0) if point.is_highlighted else ("s0", 3.5)
        parts.append(area.mark(point.x, point.y, css_class, tooltip, radius))
    names = ", ".join(point.label for point in highlighted) or "none"
    description = f"{len(points)} points; highlighted: {names}."
    rows = [(point.label, point.x, point.y, "yes" if point.is_highlighted else "") for point in points]
    table = Table(name, title, ("point", x_label, y_label, "highlighted"), rows)
    return Chart(name, title, description, joined(parts), WIDTH, area.total_height, table, notes=notes)
