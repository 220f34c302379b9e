"""The report's parts about a training: what it came to, and its course by epochs."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.report.charts.chart import Chart
from trainer.report.charts.line_chart import Series, bars, lines
from trainer.report.charts.scale import Scale, seconds_shown, shown, wants_log
from trainer.report.markup import Html, Table, element, facts
from trainer.report.page import Folded, Page
from trainer.runs import Result

Rows = Sequence[Mapping[str, float]]

_NOT_FIGURES = ("epoch", "seconds", "learning_rate")
_LOSS_OF_TRAINING, _LOSS_OF_VALIDATION = "train_loss", "log_loss"
_LINES = 7


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv; empty cells are left out. None before the first epoch."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def headline(result: Result) -> Html:
    """The numbers that matter, large."""
    numbers = [
        (shown(result.value), result.primary_metric),
        (f"{result.best_epoch} of {result.epochs}", "best epoch"),
        (seconds_shown(result.durations.total), "in all"),
    ]
    return element(
        "div",
        *(element("div", element("b", number), element("span", name)) for number, name in numbers),
        class_="headline",
    )


def origin(result: Result, more: Sequence[tuple[str, object]] = ()) -> Html:
    """What the run was made of."""
    memory = {name: bytes_shown(size) for name, size in result.peak_memory.items()}
    return facts(
        [
            ("task", result.task.value),
            ("model", result.model),
            *more,
            ("seed", result.seed if result.seed is not None else "drawn"),
            ("memory at most", ", ".join(f"{size} ({name})" for name, size in memory.items()) or None),
            (
                "data fingerprint",
                element("code", result.data_fingerprint) if result.data_fingerprint else None,
            ),
            ("git commit", element("code", result.git_commit) if result.git_commit else None),
            ("versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())),
        ]
    )


def bytes_shown(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def settings(values: Mapping[str, Any]) -> Folded:
    """The hyperparameters, to unfold."""
    table = Table("settings", "Settings, as job.yaml has them", ("setting", "value"),
                  [(name, _setting(value)) for name, value in values.items()])  # fmt: skip
    return Folded(f"Settings ({len(values)})", table)


def durations(result: Result) -> Chart:
    """Where the time went."""
    spent = result.durations.model_dump()
    total = spent.pop("total")
    spent["other"] = max(0.0, total - sum(spent.values()))
    return bars(
        "durations",
        "Time, in seconds",
        list(spent),
        [("seconds", list(spent.values()))],
        label_heading="part",
    )


def add_course(page: Page, rows: Rows, primary_metric: str, best_epoch: int) -> None:
    """Add the section of curves by epoch."""
    if rows:
        page.add("Course of the training", *course(rows, primary_metric, best_epoch), *_all_numbers(rows))


def course(rows: Rows, primary_metric: str, best_epoch: int | None) -> list[Chart]:
    """Losses, the primary metric, other figures, learning rate and time by epoch."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    losses = [name for name in (_LOSS_OF_TRAINING, _LOSS_OF_VALIDATION) if name in names]
    parts = [
        name for name in names if is_loss(name) and name not in (*losses, "log_loss_train", "train_log_loss")
    ]
    shares = [
        name
        for name in names
        if name not in _NOT_FIGURES and not is_loss(name) and name != primary_metric
        and not name.startswith("train_") and all(-1 <= row[name] <= 1 for row in rows if name in row)
    ]  # fmt: skip
    mains = [name for name in (primary_metric, f"train_{primary_metric}") if name in names]
    said = {_LOSS_OF_TRAINING: "training", _LOSS_OF_VALIDATION: "validation (log_loss)"}
    charts = []
    if mains:
        remarks = () if best_epoch is None else (f"The best epoch by {primary_metric} is {best_epoch}.",)
        charts.append(
            _chart(
                "course-metric", primary_metric, rows, mains, {}, best_epoch, ends=(0.0, 1.0), remarks=remarks
            )
        )
    if losses:
        charts.append(_chart("course-loss", "Loss", rows, losses, said, best_epoch))
    if shares:
        shares = [name for name in shares if "_micro" not in name and "_weighted" not in name] or shares
        charts.append(
            _chart("course-figures", "Other figures", rows, shares[:_LINES], {}, best_epoch, ends=(0.0, 1.0))
        )
    if len(parts) > 1:
        short = {name: name.removeprefix("train_") for name in parts}
        charts.append(
            _chart("course-loss-parts", "Parts of the training loss", rows, parts[:_LINES], short, best_epoch)
        )
    if "learning_rate" in names:
        charts.append(
            _chart("course-learning-rate", "Learning rate", rows, ["learning_rate"], {}, best_epoch)
        )
    if "seconds" in names:
        charts.append(_chart("course-seconds", "Seconds an epoch", rows, ["seconds"], {}, None, low=0.0))
    return charts


def is_loss(name: str) -> bool:
    return "loss" in name


def series_of(rows: Rows, name: str, said: str | None = None) -> Series:
    """A figure by epoch; -1, the reference's sign for what is undefined, is a gap."""
    known = [(row["epoch"], row[name]) for row in rows if name in row]
    values = [math.nan if value == -1 and not is_loss(name) else value for _, value in known]
    return Series(said or name, [epoch for epoch, _ in known], values)


def _chart(
    name: str,
    title: str,
    rows: Rows,
    names: Sequence[str],
    said: Mapping[str, str],
    best: int | None,
    *,
    ends: tuple[float, float] | None = None,
    low: float | None = None,
    remarks: Sequence[str] = (),
) -> Chart:
    series = [series_of(rows, each, said.get(each)) for each in names]
    values = [value for each in series for value in each.y]
    log = ends is None and low is None and wants_log(values)
    y_scale = Scale.over(values, log=log) if ends is None else Scale.over([*ends])
    if low is not None:
        y_scale = Scale.over(values, low=low)
    return lines(
        name, title, series, x_label="epoch", x_scale=_epochs(rows), y_scale=y_scale,
        best=None if best is None else float(best),
        remarks=(*remarks, *(("Logarithmic scale.",) if log else ())),
    )  # fmt: skip


def _epochs(rows: Rows) -> Scale:
    return Scale.of_epochs(max((row["epoch"] for row in rows), default=1.0))


def _all_numbers(rows: Rows) -> list[Folded]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    whole = [tuple(_exact(row.get(name), name) for name in names) for row in rows]
    return [Folded("All figures by epoch", Table("metrics", "All figures by epoch", names, whole, limit=500))]


def _exact(value: float | None, name: str) -> object:
    return int(value) if value is not None and name == "epoch" else value


def _setting(value: object) -> object:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
