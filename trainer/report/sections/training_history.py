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

_NOT_METRICS = ("epoch", "seconds", "learning_rate")
_TRAINING_LOSS, _VALIDATION_LOSS = "train_loss", "log_loss"
_MAX_LINES = 7


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read a run's metrics.csv without its empty cells; an empty list before the first epoch."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def add_training_history(page: Page, rows: Rows, primary_metric: str, best_epoch: int) -> None:
    """Add charts by epoch and a table of all numbers; nothing if there are no epochs."""
    if not rows:
        return
    names = _columns(rows)
    cells = [
        tuple(int(row[name]) if name == "epoch" and name in row else row.get(name) for name in names)
        for row in rows
    ]
    title = "All metrics by epoch"
    table = Table("metrics-by-epoch", title, names, cells, limit=500, summary=title)
    page.add("Training history", *_charts(rows, primary_metric, best_epoch), table)


def series_of(rows: Rows, column: str, name: str | None = None) -> Series:
    """Make a line of a column by epoch; -1, which marks undefined metrics, leaves a gap."""
    points = [(row["epoch"], row[column]) for row in rows if column in row]
    values = [math.nan if value == -1 and not is_loss(column) else value for _, value in points]
    return Series(name or column, [epoch for epoch, _ in points], values)


def is_loss(name: str) -> bool:
    """Whether a metric is a loss, so that lower is better."""
    return "loss" in name


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _charts(rows: Rows, primary_metric: str, best_epoch: int) -> list[Chart]:
    """Draw losses, primary metric, other metrics, learning rate and time by epoch."""
    names = _columns(rows)
    losses = [name for name in (_TRAINING_LOSS, _VALIDATION_LOSS) if name in names]
    loss_parts = [
        name for name in names if is_loss(name) and name not in (*losses, "log_loss_train", "train_log_loss")
    ]
    main = [name for name in (primary_metric, f"train_{primary_metric}") if name in names]
    others = _other_metrics(rows, primary_metric)
    charts = []
    if main:
        note = f"The best epoch by {primary_metric} is {best_epoch}."
        charts.append(
            _chart("metric-by-epoch", primary_metric, rows, main, best_epoch, Scale(0.0, 1.0), notes=[note])
        )
    if losses:
        labels = {_TRAINING_LOSS: "training", _VALIDATION_LOSS: "validation (log_loss)"}
        charts.append(_chart("loss-by-epoch", "Loss", rows, losses, best_epoch, labels=labels))
    if others:
        charts.append(
            _chart("other-metrics-by-epoch", "Other metrics", rows, others, best_epoch, Scale(0.0, 1.0))
        )
    if len(loss_parts) > 1:
        labels = {name: name.removeprefix("train_") for name in loss_parts}
        charts.append(
            _chart("loss-parts-by-epoch", "Parts of the training loss", rows, loss_parts[:_MAX_LINES],
                   best_epoch, labels=labels)
        )  # fmt: skip
    if "learning_rate" in names:
        charts.append(_chart("learning-rate-by-epoch", "Learning rate", rows, ["learning_rate"], best_epoch))
    if "seconds" in names:
        scale = Scale.over([row["seconds"] for row in rows if "seconds" in row], low=0.0)
        charts.append(_chart("seconds-by-epoch", "Seconds per epoch", rows, ["seconds"], None, scale))
    return charts


def _other_metrics(rows: Rows, primary_metric: str) -> list[str]:
    """Choose validation metrics in [-1, 1], macro averages before the others."""
    names = [
        name
        for name in _columns(rows)
        if name not in (*_NOT_METRICS, primary_metric)
        and not is_loss(name)
        and not name.startswith("train_")
        and all(-1 <= row[name] <= 1 for row in rows if name in row)
    ]
    return ([name for name in names if "_micro" not in name and "_weighted" not in name] or names)[
        :_MAX_LINES
    ]


def _chart(
    name: str,
    title: str,
    rows: Rows,
    columns: Sequence[str],
    best_epoch: int | None,
    y_scale: Scale | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Chart:
    series = [series_of(rows, column, (labels or {}).get(column)) for column in columns]
    if y_scale is None:
        values = [value for line in series for value in line.y]
        y_scale = Scale.over(values, log=needs_log(values))
    return line_chart(
        name, title, series, x_label="epoch", x_scale=Scale.of_epochs(max(row["epoch"] for row in rows)),
        y_scale=y_scale, best=best_epoch, notes=[*notes, "Logarithmic scale."] if y_scale.log else notes,
    )  # fmt: skip
