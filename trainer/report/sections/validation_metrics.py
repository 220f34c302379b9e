"""The sections about an evaluation's metrics: overall, by slice and by class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from trainer.metrics.results import Analysis
from trainer.report.charts.bar_chart import bar_chart
from trainer.report.markup import element, facts, note
from trainer.report.number_format import format_value
from trainer.report.page import Page
from trainer.report.sections.uncertainty import interval_in_words, method_note
from trainer.report.tables import Table

MAIN_CLASS_METRICS = ("average_precision", "f1-score")
"""The metric by which classes are compared: the first of these that an evaluation has."""
_COUNTS = ("support", "objects", "predictions")
_LISTED_CLASSES = 300


def add_validation_metrics(page: Page, analysis: Analysis) -> None:
    """Add the tables of all metrics and of each class's metrics."""
    page.add("Metrics on the validation data", *_overall(analysis))
    page.add("Metrics by class", *_by_class(analysis))


def _overall(analysis: Analysis) -> list[object]:
    metrics = {
        **analysis.metrics,
        **{f"image_level_{name}": value for name, value in analysis.image_level.items()},
    }
    counts: list[tuple[str, object]] = [("images", analysis.images), ("objects", analysis.objects)]
    interval = analysis.interval
    if interval is not None:
        shown = f"{format_value(interval.value)}, {interval_in_words(interval)}"
        counts.append((f"{interval.metric} with its {interval.confidence:.0%} interval", shown))
    if analysis.iou_threshold is not None:
        counts.append(("minimum IoU for a match", analysis.iou_threshold))
    rows = list(zip(metrics, _defined(analysis, metrics, metrics), strict=True))
    blocks: list[object] = [facts(counts)]
    if interval is not None:
        blocks.append(method_note(interval))
    blocks.append(Table("metrics", "All metrics", ("metric", "value"), rows))
    if analysis.slices:
        names = list(analysis.slices[0].metrics)
        slice_rows = [
            (part.by, part.value, part.images, part.objects, *_defined(analysis, part.metrics, names))
            for part in analysis.slices
        ]
        columns = ("by", "value", "images", "objects", *names)
        blocks.append(Table("slices", "By slice of the data", columns, slice_rows))
    return blocks


def _defined(analysis: Analysis, metrics: Mapping[str, float], names: Iterable[str]) -> list[float | None]:
    """Return metrics by name; None for NaN, and for -1, which marks undefined ones in tasks with boxes."""
    values = [metrics.get(name, math.nan) for name in names]
    return [
        None if value != value or (analysis.task.has_boxes and value == -1) else value for value in values
    ]


def _by_class(analysis: Analysis) -> list[object]:
    names = list(dict.fromkeys(name for metrics in analysis.per_class.values() for name in metrics))
    if not names:
        return []
    columns = ["class", *names]
    if analysis.thresholds:
        columns += [
            "best score threshold",
            *(f"{name} at threshold" for name in ("F1", "precision", "recall")),
        ]
    blocks = _main_metric_chart(analysis, names)
    rows = [_class_row(analysis, label, names) for label in analysis.per_class]
    title = "Metrics by class (click a heading to sort)"
    blocks.append(Table("all-metrics-by-class", title, columns, rows, limit=_LISTED_CLASSES))
    if analysis.thresholds:
        blocks.append(
            note(
                "At its best score threshold a class has its highest F1 on these images. ",
                element("code", "trainer evaluate RUN --data … --apply-thresholds"),
                " sets these thresholds in the model.",
            )
        )
    return blocks


def _class_row(analysis: Analysis, label: str, names: Sequence[str]) -> list[object]:
    row: list[object] = [label]
    for name, value in zip(names, _defined(analysis, analysis.per_class[label], names), strict=True):
        row.append(int(value) if value is not None and name in _COUNTS else value)
    if analysis.thresholds:
        best = analysis.thresholds.get(label)
        row += [best.score, best.f1, best.precision, best.recall] if best else [None] * 4
    return row


def _main_metric_chart(analysis: Analysis, names: Sequence[str]) -> list[object]:
    main = next((name for name in MAIN_CLASS_METRICS if name in names), None)
    if main is None or len(analysis.per_class) < 2:
        return []
    value_of = {
        label: _defined(analysis, metrics, [main])[0] for label, metrics in analysis.per_class.items()
    }
    # Highest first, undefined last.
    ranked = sorted(value_of.items(), key=lambda pair: -1.0 if pair[1] is None else pair[1])[::-1]
    labels = [label for label, _ in ranked]
    values = [math.nan if value is None else value for _, value in ranked]
    return [
        bar_chart("main-metric-by-class", f"{main} by class", labels, [(main, values)],
                  label_heading="class", high=1.0)
    ]  # fmt: skip
