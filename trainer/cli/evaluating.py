"""`trainer evaluate` and `trainer report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from trainer.cli.application import app
from trainer.cli.arguments import Datastores, Switch, a_task, mapping
from trainer.errors import JobError, Problem

if TYPE_CHECKING:
    from rich.console import Console

    from trainer.metrics.results import Analysis


@app.command
def evaluate(
    run_or_model: Path | None = None,
    /,
    *,
    data: list[str],
    output: Path | None = None,
    task: Annotated[str | None, a_task("Task of the --predictions.")] = None,
    predictions: Path | None = None,
    slice_by: Annotated[list[str] | None, Parameter(consume_multiple=False)] = None,
    iou_threshold: float = 0.5,
    box_score_threshold: float | None = None,
    unknown_classes: Literal["error", "missed", "ignored"] = "error",
    datastore: Datastores = None,
    target_column_name: str | None = None,
    skip_invalid: Switch = False,
    device: str | None = None,
    apply_thresholds: Switch = False,
    model_output: Path | None = None,
) -> None:
    """Evaluate a trained model, or predictions made anywhere, and show what goes wrong.

    Examples:

        trainer evaluate runs/… --data test.jsonl --output evaluation
        trainer evaluate --task object-detection --predictions answers.jsonl --data test.jsonl

    Parameters
    ----------
    run_or_model
        Directory of a run or of an MLflow model.
    data
        A .jsonl file or an MLTable folder with the targets. May be repeated.
    output
        Write metrics.json, a CSV file for each table, and a model's predictions.jsonl into this folder.
    predictions
        Evaluate these predictions instead of a model: JSON lines of the documented schema, one per image.
        Either all name their image by image_url (the data's own, a path, or a file name that only one image
        has), or none does and they are in the order of the data.
    slice_by
        Also compute the metrics for each value of this key of the data's lines, such as camera, or
        meta.camera within an object. May be repeated.
    iou_threshold
        Minimum IoU for a match, in [0.1, 1].
    box_score_threshold
        Ignore objects with lower scores. Average precision needs all objects that a model finds, so this is
        not the threshold that the model answers with; its metrics at that threshold are shown too. To repeat
        the metrics of a training run, give its box_score_threshold. [default: 0.001]
    unknown_classes
        How to treat classes of the data that the model does not know: error, missed (their objects count as
        never found) or ignored (their objects are left out).
    target_column_name
        Key of the data's lines that holds the label. [default: that of the run's job, or label]
    skip_invalid
        Skip invalid objects and lines instead of stopping.
    device
        Device of the model, as torch names it: cpu, cuda, cuda:1. [default: a GPU if there is one]
    apply_thresholds
        Make the model answer with the score threshold that is best for F1, for each class; a request's own
        box_score_threshold overrides it. Choose thresholds on other data than you report metrics on.
    model_output
        With --apply-thresholds: write the changed model here and leave the evaluated one as it is.
    """
    if apply_thresholds and run_or_model is None:
        raise _unusable("--apply-thresholds", "needs a model to apply them to")
    if model_output is not None and not apply_thresholds:
        raise _unusable("--model-output", "needs --apply-thresholds")
    from trainer.api import evaluate as run_evaluation

    evaluation = run_evaluation(
        run_or_model,
        data=data,
        predictions=predictions,
        task=task,
        output=output,
        slice_by=slice_by or (),
        iou_threshold=iou_threshold,
        box_score_threshold=box_score_threshold,
        unknown_classes=unknown_classes,
        datastores=mapping(datastore),
        target_column_name=target_column_name,
        skip_invalid=skip_invalid,
        device=device,
        progress=True,
    )
    for note in evaluation.notes:
        print(note if note.startswith("warning: ") else f"note: {note}", file=sys.stderr)
    _show(evaluation.analysis)
    if output is not None:
        print(f"\nwritten: {output}")
    if apply_thresholds:
        from trainer.evaluating.thresholds import apply

        assert run_or_model is not None, "checked above"
        best = {name: threshold.score for name, threshold in evaluation.analysis.thresholds.items()}
        print(f"thresholds applied: {apply(run_or_model, best, model_output)}")


@app.command
def report(
    runs: Annotated[list[Path], Parameter(consume_multiple=True)], /, *, output: Path | None = None
) -> None:
    """Rewrite a run's report.html, or compare several runs of one task side by side.

    A run writes its report when it ends; this command writes it again, for example after an update. Where the
    data have moved, the report says so and omits the parts that need them.

    Examples:

        trainer report runs/one
        trainer report runs/one runs/two --output comparison.html

    Parameters
    ----------
    runs
        Directories of finished runs.
    output
        File to write. [default: report.html in the run's directory; comparison.html here for several runs]
    """
    from trainer.training.report_writing import remake

    print(f"report  {remake(runs, output)}")


def _unusable(flag: str, rule: str) -> JobError:
    return JobError("the evaluation cannot be run:", [Problem(flag, "", rule)])


_TABLES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("label_issues", "likely label errors", ("location", "kind", "given", "suggested", "score")),
    ("mistakes", "most confident mistakes", ("location", "kind", "true", "predicted", "score")),
    ("worst_images", "worst images", ("location", "loss", "right", "wrong", "missed", "f1")),
    ("confused_pairs", "confused pairs", ("true", "predicted", "count", "share")),
    ("calibration", "calibration", ("error", "temperature", "log_loss", "error_scaled", "log_loss_scaled")),
    ("errors", "kinds of errors and their cost in mean_average_precision", ("kind", "count", "cost")),
    (
        "thresholds",
        "best score thresholds, and those that the model answers with",
        ("class", "score", "f1", "precision", "recall", "served_score", "served_f1"),
    ),
)
_FEW_ROWS, _MANY_ROWS = 10, 40


def _show(analysis: Analysis) -> None:
    """Print the first rows of each table; the metrics of the whole come last, where a terminal ends."""
    from rich.console import Console

    from trainer.evaluating.tables import sample, tables

    rows_of = tables(analysis)
    console = Console(width=None if sys.stdout.isatty() else 160)

    def show(name: str, title: str, columns: Sequence[str], most: int = _MANY_ROWS) -> None:
        rows = rows_of.get(name, [])
        columns = [column for column in columns if any(row.get(column) is not None for row in rows)]
        cells, more = sample(rows, columns, most)
        _print(console, title, columns, cells, more)

    for name, title, columns in _TABLES:
        show(name, title, columns, _MANY_ROWS if name in ("errors", "thresholds") else _FEW_ROWS)
    _show_confusion(console, analysis)
    metrics = [name for name in analysis.metrics if name in _SLICE_METRICS]
    show("slices", "slices", ("by", "value", "images", "objects", *metrics))
    show("per_class", "metrics of each class", tuple(rows_of.get("per_class", [{}])[0]))
    show("image_level", "whether an image has any object", ("figure", "value"))
    show("figures", f"metrics on {analysis.images:,} images", ("figure", "value"))


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
