"""The section about a run's metrics by epoch."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.report.charts.chart import Chart
from trainer.report.charts.line_chart import Series, line_chart
from trainer.report.charts.scale import Scale, needs_log
from trainer.report.page import Page
from trainer.report.tables import Table

Rows = Sequence[Mapping[str, float]]
"""The rows of metrics.csv: values by column, without the empty cells."""

ClassRows = tuple[str, Mapping[str, Rows]]
"""A metric's name, and for each class its values by epoch."""

_NOT_METRICS = ("epoch", "seconds", "learning_rate")
_MAX_LINES = 7


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read a run's metrics.csv without its empty cells; an empty list before the first epoch."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def read_class_metrics(path: Path) -> ClassRows:
    """Read the first metric of each class of a run's metrics_by_class.csv; nothing if there is no file."""
    if not path.exists():
        return "", {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        name = (list(reader.fieldnames or ()) + [""] * 3)[2]
        by_class: dict[str, list[dict[str, float]]] = {}
        for row in reader:
            by_class.setdefault(row["class"], []).append(
                {"epoch": float(row["epoch"]), name: float(row[name] or "nan")}
            )
    return name, by_class


def add_training_history(
    page: Page, rows: Rows, by_class: ClassRows, primary_metric: str, best_epoch: int
) -> None:
    """Add charts by epoch and a table of all numbers; nothing if there are no epochs.

    Args:
        by_class: what `read_class_metrics` returns.
    """
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [
        tuple(int(row[name]) if name == "epoch" and name in row else row.get(name) for name in names)
        for row in rows
    ]
    title = "All metrics by epoch"
    table = Table("metrics-by-epoch", title, names, cells, limit=500, summary=title)
    numbers = [row["epoch"] for row in rows]
    epochs = Scale.of_epochs(max(numbers), min(1.0, *numbers))
    charts = _charts(rows, names, epochs, primary_metric, best_epoch)
    charts += _chart_of_classes(*by_class, epochs, best_epoch)
    page.add("Training history", *charts, table)


def series_of(rows: Rows, column: str, name: str | None = None) -> Series:
    """Make a line of a column by epoch; -1, which marks undefined metrics, leaves a gap."""
    points = [(row["epoch"], row[column]) for row in rows if column in row]
    values = [math.nan if value == -1 and not is_loss(column) else value for _, value in points]
    return Series(name or column, [epoch for epoch, _ in points], values)


def is_loss(name: str) -> bool:
    """Whether a metric is a loss, so that lower is better."""
    return "loss" in name


def _charts(
    rows: Rows, names: Sequence[str], epochs: Scale, primary_metric: str, best_epoch: int
) -> list[Chart]:
    """Draw primary metric, losses, other metrics, learning rate and time by epoch."""
    unit = Scale(0.0, 1.0)
    loss_parts = [
        name
        for name in names
        if is_loss(name) and name not in ("train_loss", "log_loss", "log_loss_train", "train_log_loss")
    ]
    if len(loss_parts) == 1:  # the same as the loss
        loss_parts = []
    label_of = {name: name.removeprefix("train_") for name in loss_parts}
    label_of |= {"train_loss": "training", "log_loss": "validation (log_loss)"}
    seconds = Scale.over([row["seconds"] for row in rows if "seconds" in row], low=0.0)
    charts: list[tuple[str, str, Sequence[str], Scale | None]] = [
        (
            "metric",
            primary_metric,
            (primary_metric, f"train_{primary_metric}"),
            None if is_loss(primary_metric) else unit,
        ),
        ("loss", "Loss", ("train_loss", "log_loss"), None),
        ("other-metrics", "Other metrics", _other_metrics(rows, names, primary_metric), unit),
        ("loss-parts", "Parts of the training loss", loss_parts[:_MAX_LINES], None),
        ("learning-rate", "Learning rate", ("learning_rate",), None),
        ("seconds", "Seconds per epoch", ("seconds",), seconds),
    ]
    drawn = []
    for name, title, columns, y_scale in charts:
        series = [series_of(rows, column, label_of.get(column)) for column in columns if column in names]
        if not series:
            continue
        if y_scale is None:
            values = [value for line in series for value in line.y]
            y_scale = Scale.over(values, log=needs_log(values))
        notes = [f"The best epoch by {primary_metric} is {best_epoch}."] if name == "metric" else []
        notes += ["Logarithmic scale."] if y_scale.log else []
        drawn.append(
            line_chart(f"{name}-by-epoch", title, series, x_label="epoch", x_scale=epochs, y_scale=y_scale,
                       best=None if name == "seconds" else best_epoch, notes=notes)
        )  # fmt: skip
    return drawn


def _chart_of_classes(
    metric: str, by_class: Mapping[str, Rows], epochs: Scale, best_epoch: int
) -> list[Chart]:
    """Draw a metric of single classes by epoch: of the classes with the lowest values at the best epoch."""
    if len(by_class) < 2:  # it would be the metric of all
        return []
    lines = {name: series_of(rows, metric, name) for name, rows in by_class.items()}
    values = {name: dict(zip(line.x, line.y, strict=True)) for name, line in lines.items()}
    # An undefined value is NaN, and comes last.
    at_best = {name: by_epoch.get(best_epoch, math.nan) for name, by_epoch in values.items()}
    lowest = sorted(lines, key=lambda name: (math.isnan(at_best[name]), at_best[name]))[:_MAX_LINES]
    is_part = len(lines) > _MAX_LINES
    notes = [f"The {_MAX_LINES} lowest of {len(lines)} classes at the best epoch."] if is_part else []
    drawn = [line for name, line in lines.items() if name in lowest]
    title = f"{metric.replace('_', ' ')} of single classes"
    return [
        line_chart("classes-by-epoch", title, drawn, x_label="epoch", x_scale=epochs, y_scale=Scale(0.0, 1.0),
                   best=best_epoch, notes=notes)
    ]  # fmt: skip


def _other_metrics(rows: Rows, names: Sequence[str], primary_metric: str) -> list[str]:
    """Choose validation metrics in [-1, 1], macro averages before the others."""
    names = [
        name
        for name in names
        if name not in (*_NOT_METRICS, primary_metric)
        and not is_loss(name)
        and not name.startswith("train_")
        and all(-1 <= row[name] <= 1 for row in rows if name in row)
    ]
    macro = [name for name in names if "_micro" not in name and "_weighted" not in name]
    return (macro or names)[:_MAX_LINES]
