"""Bar charts: named values, and histograms."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from trainer.report.charts.chart import Chart
from trainer.report.charts.plot_area import LEFT, RIGHT, TOP, PlotArea
from trainer.report.charts.scale import Scale
from trainer.report.charts.svg import WIDTH, bar, legend, series_class, text, text_width
from trainer.report.markup import joined
from trainer.report.number_format import format_value
from trainer.report.tables import Table

_MAX_LABELS = 30
_MAX_LABEL_WIDTH = 190.0  # enough for the names of all metrics
_BINS = 24
_DESCRIBED_BARS = 10


def bar_chart(
    name: str,
    title: str,
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[float]]],
    *,
    label_heading: str,
    high: float | None = None,
    notes: Sequence[str] = (),
) -> Chart:
    """Draw horizontal bars, one for each label and series.

    Only the first 30 labels are drawn if there are more; a note says so, and the table has all.

    Args:
        labels: names of the bars.
        series: (name, values by label).
        high: end of the axis; None covers all values.
    """
    drawn_labels = labels[:_MAX_LABELS]
    thickness = 18.0 if len(series) == 1 else 11.0
    row_height = thickness * len(series) + 8
    label_width = min(_MAX_LABEL_WIDTH, max([text_width(label) for label in drawn_labels], default=0.0) + 10)
    finite = [value for _, values in series for value in values if math.isfinite(value)]
    scale = Scale.over(finite, low=min(0.0, *finite, 0.0), high=high)
    extent = WIDTH - label_width - RIGHT - 50
    parts = []
    for row, label in enumerate(drawn_labels):
        top = TOP + row * row_height
        middle, max_width = top + row_height / 2, label_width - 8
        parts.append(text(label_width - 6, middle, label, anchor="end", max_width=max_width))
        for index, (series_name, values) in enumerate(series):
            value, y = values[row], top + index * thickness
            end_of_bar = 0.0
            if math.isfinite(value):
                start, end = sorted((scale.position(0.0), scale.position(value)))
                width = max(1.0, (end - start) * extent)
                tooltip = f"{label}, {series_name}: {format_value(value)}"
                x = label_width + start * extent
                parts.append(bar(x, y, width, thickness - 1, series_class(index), tooltip))
                end_of_bar = scale.position(value) * extent
            parts.append(text(label_width + end_of_bar + 5, y + thickness / 2 + 3.5, format_value(value)))
    height = TOP + len(drawn_labels) * row_height + 4
    key, height = legend([series_name for series_name, _ in series], height)
    parts.append(key)
    description = "; ".join(
        f"{label}: "
        + ", ".join(f"{series_name} {format_value(values[row])}" for series_name, values in series)
        for row, label in enumerate(drawn_labels[:_DESCRIBED_BARS])
    )
    rows = [(label, *(values[row] for _, values in series)) for row, label in enumerate(labels)]
    table = Table(name, title, (label_heading, *(series_name for series_name, _ in series)), rows)
    omitted = len(labels) - len(drawn_labels)
    if omitted:
        notes = [*notes, f"The numbers list {omitted:,} more."]
    return Chart(name, title, description, joined(parts), WIDTH, max(height, 40.0), table, notes=notes)


def histogram(
    name: str,
    title: str,
    values: Iterable[float],
    *,
    x_label: str,
    y_label: str,
    log: bool = False,
    are_counts: bool = False,
    notes: Sequence[str] = (),
) -> Chart:
    """Draw how many values fall into each of 24 bins.

    Args:
        values: values to count; leaves out those that are not finite or, on a logarithmic axis, not positive.
        y_label: name of what is counted.
        log: whether the axis is logarithmic, with bins of equal ratio instead of equal width.
        are_counts: whether the values are whole numbers; each has a bar of its own if there are few.
    """
    usable = sorted(value for value in values if math.isfinite(value) and (value > 0 or not log))
    lowest, highest = (usable[0], usable[-1]) if usable else (0.0, 0.0)
    has_bar_for_each = are_counts and highest - lowest < _BINS
    scale, bins = Scale.over(usable, log=log), _BINS
    if has_bar_for_each:
        scale, bins = Scale(lowest - 0.5, highest + 0.5), int(highest - lowest) + 1
    counts = [0] * bins
    for value in usable:
        counts[min(bins - 1, int(scale.position(value) * bins))] += 1
    edges = [scale.value_at(index / bins) for index in range(bins + 1)]
    area = PlotArea(scale, Scale.over(counts, low=0), x_label, y_label)
    parts = [area.axes()]
    rows = []
    for index, count in enumerate(counts):
        if not count:
            continue
        range_shown = f"{format_value(edges[index])} to {format_value(edges[index + 1])}"
        if has_bar_for_each:
            range_shown = format_value(edges[index] + 0.5)
        rows.append((range_shown, count))
        left, top = LEFT + area.width * index / bins + 0.5, area.y(count)
        tooltip = f"{range_shown}: {count:,}"
        parts.append(bar(left, top, area.width / bins - 1, area.y(0) - top, "s0", tooltip))
    description = "No values."
    if usable:
        median = statistics.median_high(usable)
        description = (
            f"{len(usable):,} values from {format_value(lowest)} to {format_value(highest)}, "
            f"median {format_value(median)}."
        )
    table = Table(name, title, (x_label, y_label), rows)
    return Chart(name, title, description, joined(parts), WIDTH, area.total_height, table, notes=notes)
