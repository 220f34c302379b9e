"""Prints the tables of an evaluation on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from trainer.metrics.intervals import Difference, Interval
    from trainer.metrics.results import Analysis


_TABLES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("label_issues", "likely label errors", ("location", "kind", "given", "suggested", "score")),
    ("mistakes", "most confident mistakes", ("location", "kind", "true", "predicted", "score")),
    ("worst_images", "worst images", ("location", "loss", "right", "wrong", "missed", "f1")),
    ("confused_pairs", "confused pairs", ("true", "predicted", "count", "share")),
    (
        "calibration",
        "calibration of the scores, and what --calibrate would make of it",
        ("scores", "error", "error_cross_fitted", "temperature", "bias", "log_loss", "log_loss_cross_fitted"),
    ),
    ("errors", "kinds of errors and their cost in mean_average_precision", ("kind", "count", "cost")),
    (
        "thresholds",
        "best score thresholds, and those that the model answers with",
        ("class", "score", "f1", "precision", "recall", "served_score", "served_f1"),
    ),
)
_HEADINGS = {"figure": "metric", "share": "fraction"}
"""Headings on the terminal of columns with other names in the CSV files."""
_FEW_ROWS, _MANY_ROWS = 10, 40


def show_analysis(analysis: Analysis) -> None:
    """Print the first rows of each table; the metrics of the whole come last, where a terminal ends."""
    from rich.console import Console

    from trainer.evaluating.tables import sample, tables

    rows_of = tables(analysis)
    console = Console(width=None if sys.stdout.isatty() else 160)

    def show(name: str, title: str, columns: Sequence[str], most: int = _MANY_ROWS) -> None:
        rows = rows_of.get(name, [])
        columns = [column for column in columns if any(row.get(column) is not None for row in rows)]
        cells, more = sample(rows, columns, most)
        _print(console, title, [_HEADINGS.get(column, column) for column in columns], cells, more)

    for name, title, columns in _TABLES:
        show(name, title, columns, _MANY_ROWS if name in ("errors", "thresholds") else _FEW_ROWS)
    _show_confusion(console, analysis)
    metrics = [name for name in analysis.metrics if name in _SLICE_METRICS]
    show("slices", "slices", ("by", "value", "images", "objects", *metrics))
    show("per_class", "metrics of each class", tuple(rows_of.get("per_class", [{}])[0]))
    show("image_level", "whether an image has any object", ("figure", "value"))
    show("figures", f"metrics on {analysis.images:,} images", ("figure", "value"))
    if analysis.interval is not None:
        interval = analysis.interval
        ends = f"{interval.low:.4f} to {interval.high:.4f}"
        print(f"\n{interval.metric} {interval.value:.4f}, {interval.confidence:.0%} interval {ends}")
        print(f"({_method(interval)})")


def show_differences(differences: Sequence[Difference]) -> None:
    """Print the paired difference of every two models, and whether it tells them apart."""
    for each in differences:
        ends = f"{each.confidence:.0%} interval {each.low:+.4f} to {each.high:+.4f}"
        print(f"\n{each.metric}, {each.second} − {each.first}: {each.value:+.4f}, {ends}")
        print(f"{each.verdict} ({_method(each)})")
    if not differences:
        print("\nthe models have no image in common on which the primary metric is defined")


def _method(interval: Interval) -> str:
    resamples = f"{interval.resamples:,} resamples"
    parts = [f"{interval.method}, {resamples}, seed {interval.seed}"]
    if interval.undefined:
        parts.append(f"undefined on {interval.undefined:,} of them, which are left out")
    return "; ".join([*parts, *([f"caution: {interval.caution}"] if interval.caution else [])])


_SLICE_METRICS = (
    "accuracy", "AUC_macro", "f1_score_macro", "log_loss", "iou", "mean_average_precision", "precision",
    "recall", "map", "map_50",
)  # fmt: skip
_MAX_MATRIX_CLASSES = 12


def _show_confusion(console: Console, analysis: Analysis) -> None:
    """Print the confusion matrix, of a detector at a score of 0.5, if it fits on a terminal."""
    matrices = [matrix for matrix in analysis.confusion_matrices if matrix.score_threshold in (None, 0.5)]
    if len(matrices) != 1 or len(matrices[0].columns) > _MAX_MATRIX_CLASSES:
        return
    (matrix,) = matrices
    title = "true classes (rows) and predicted classes (columns)"
    title += "" if matrix.score_threshold is None else f" at scores of at least {matrix.score_threshold}"
    rows = [[name, *map(str, counts)] for name, counts in zip(matrix.rows, matrix.counts, strict=True)]
    _print(console, title, ("", *matrix.columns), rows, 0)


def _print(console: Console, title: str, columns: Sequence[str], rows: list[list[str]], more: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        is_text = number == 0 or column in ("kind", "value", "true", "predicted", "given", "suggested")
        table.add_column(escape(column), justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(f"\n[bold]{escape(title)}[/bold]")
    console.print(table)
    if more:
        console.print(f"… and {more:,} more")
