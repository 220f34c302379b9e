"""The sections about an evaluation's metrics: overall, by slice and by class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from trainer.metrics.results import Analysis
from trainer.report.charts.bar_chart import bar_chart
from trainer.report.markup import element, facts, note
from trainer.report.number_format import format_value
from trainer.report.page import Page
from trainer.report.sections.training_history import is_loss
from trainer.report.tables import Table
from trainer.tasks import Task

MAIN_CLASS_METRICS = ("average_precision", "f1-score")
"""The metric by which classes are compared: the first of these that an evaluation has."""
_COUNTS = ("support", "objects", "predictions")
_LISTED_CLASSES = 300


def add_validation_metrics(page: Page, analysis: Analysis) -> None:
    """Add the tables of all metrics and of each class's metrics."""
    page.add("Metrics on the validation data", *_overall(analysis))
    page.add("Metrics by class", *_by_class(analysis))


def _overall(analysis: Analysis) -> list[object]:
    task = analysis.task
    metrics = {
        **analysis.metrics,
        **{f"image_level_{name}": value for name, value in analysis.image_level.items()},
    }
    counts: list[tuple[str, object]] = [("images", analysis.images), ("objects", analysis.objects)]
    if analysis.iou_threshold is not None:
        counts.append(("minimum IoU of a match", analysis.iou_threshold))
    rows = [(name, _if_defined(value, task)) for name, value in metrics.items()]
    blocks: list[object] = [facts(counts), Table("metrics", "All metrics", ("metric", "value"), rows)]
    if analysis.slices:
        names = list(analysis.slices[0].metrics)
        slice_rows = [
            (
                part.by,
                part.value,
                part.images,
                part.objects,
                *(_if_defined(part.metrics.get(name), task) for name in names),
            )
            for part in analysis.slices
        ]
        columns = ("by", "value", "images", "objects", *names)
        blocks.append(Table("slices", "By slice of the data", columns, slice_rows))
    return blocks


def _if_defined(value: float | None, task: Task) -> float | None:
    """Return None for NaN, and for -1 in detection and segmentation, where it marks undefined metrics."""
    return None if value is None or value != value or (task.has_boxes and value == -1) else value


def _by_class(analysis: Analysis) -> list[object]:
    names = list(dict.fromkeys(name for metrics in analysis.per_class.values() for name in metrics))
    if not names:
        return []
    columns = ["class", *names]
    if analysis.thresholds:
        columns += [
            "best score threshold",
            "F1 at threshold",
            "precision at threshold",
            "recall at threshold",
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
    for name in names:
        value = _if_defined(analysis.per_class[label].get(name), analysis.task)
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
        label: math.nan if (value := _if_defined(metrics.get(main), analysis.task)) is None else value
        for label, metrics in analysis.per_class.items()
    }
    # Highest first, undefined last.
    labels = sorted(value_of, key=lambda label: -1.0 if math.isnan(value_of[label]) else value_of[label])[
        ::-1
    ]
    values = [value_of[label] for label in labels]
    return [
        bar_chart("main-metric-by-class", f"{main} by class", labels, [(main, values)],
                  label_heading="class", high=1.0)
    ]  # fmt: skip


def comparison_rows(
    names: Iterable[str], metrics_of_runs: Sequence[Mapping[str, float]]
) -> list[Sequence[object]]:
    """Make a row for each metric with a column for each run, the best value marked if values differ."""
    rows: list[Sequence[object]] = []
    for name in names:
        values = [metrics.get(name) for metrics in metrics_of_runs]
        defined = [value for value in values if value is not None and value == value]
        best = (min if is_loss(name) else max)(defined) if len(set(defined)) > 1 else None
        rows.append([name, *(mark_if(value, value == best) for value in values)])
    return rows


def mark_if(value: float | None, is_best: bool) -> object:
    """Return the value, as HTML with a check mark if it is the best."""
    return element("span", format_value(value), " ✓", class_="best good") if is_best else value
