"""Confidence intervals of a metric, and whether models can be told apart by it."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.metrics.intervals import Difference, Interval
from trainer.report.charts.interval_chart import interval_chart
from trainer.report.markup import element, note
from trainer.report.number_format import format_value
from trainer.report.tables import Table


def interval_in_words(interval: Interval) -> str:
    """An interval's ends and images, such as `0.712 to 0.804 on 120 images`."""
    return f"{format_value(interval.low)} to {format_value(interval.high)} on {interval.images:,} images"


def method_note(interval: Interval) -> object:
    """How an interval was made, with its caution."""
    text = (
        f"{interval.confidence:.0%} interval: {interval.method}, {interval.resamples:,} resamples, seed "
        f"{interval.seed}. It covers the choice of images, not the luck of a training run."
    )
    if interval.undefined:
        text += f" {interval.undefined:,} resamples, on which the metric is undefined, are left out."
    return note(f"{text} Caution: {interval.caution}." if interval.caution else text)


def interval_blocks(intervals: Sequence[tuple[str, Interval]]) -> list[object]:
    """A chart of several models' intervals of one metric."""
    if not intervals:
        return []
    metric = intervals[0][1].metric
    rows = [(name, each.value, each.low, each.high) for name, each in intervals]
    columns = ("", metric, "low", "high", "images")
    cells = [(*row, each.images) for row, (_, each) in zip(rows, intervals, strict=True)]
    title = f"{metric} with its {intervals[0][1].confidence:.0%} interval"
    table = Table("intervals", title, columns, cells)
    return [interval_chart("intervals", title, rows, x_label=metric, table=table)]


def difference_blocks(differences: Sequence[Difference], charts: Sequence[object] = ()) -> list[object]:
    """The paired differences: verdicts in words, and a chart with a table.

    Args:
        charts: shown next to that of the differences.
    """
    if not differences:
        return list(charts)
    metric = differences[0].metric
    rows = [(_pair(each), each.value, each.low, each.high) for each in differences]
    verdicts = [element("li", f"{each.verdict}.") for each in differences]
    cells = [
        (_pair(each), each.value, each.low, each.high, each.images, "yes" if each.is_clear else "no")
        for each in differences
    ]
    columns = ("second − first", "difference", "low", "high", "images", "can be told apart")
    title = f"Paired differences of {metric}"
    return [
        element("ul", *verdicts),
        *charts,
        interval_chart(
            "differences", f"{title}, second − first", rows, x_label=f"difference of {metric}",
            marks_zero=True, table=Table("differences", title, columns, cells),
        ),
        method_note(differences[0]),
    ]  # fmt: skip


def _pair(difference: Difference) -> str:
    return f"{difference.second} − {difference.first}"
