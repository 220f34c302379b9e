"""The sections about a model's errors: confusions, and for detectors the kinds of errors and their cost."""

from __future__ import annotations

from trainer.metrics.results import Analysis, ConfusionMatrix
from trainer.report.charts.bar_chart import bar_chart
from trainer.report.charts.chart import Chart
from trainer.report.charts.heat_map import heat_map
from trainer.report.markup import element
from trainer.report.page import Page
from trainer.report.tables import Table
from trainer.tasks import Task

_LISTED_CLASSES, _LISTED_PAIRS = 300, 25
_KINDS = {
    "classification": "right place, wrong class",
    "localisation": "right class, imprecise place",
    "both": "wrong class and imprecise place",
    "duplicate": "another prediction of an object already found",
    "background": "no object there",
    "missed": "an object without a prediction",
    "false positives": "all wrong predictions",
    "false negatives": "all objects that were not found",
}
_SUMS = ("false positives", "false negatives")


def add_error_analysis(page: Page, analysis: Analysis) -> None:
    """Add the section of confusions, and for detectors the errors by kind."""
    page.add("Confusions", *_confusions(analysis))
    if analysis.errors:
        page.add("Errors by kind", *_error_kinds(analysis))


def _confusions(analysis: Analysis) -> list[object]:
    if analysis.task is Task.MULTILABEL:
        rows = [(matrix.name, *_decisions(matrix)) for matrix in analysis.confusion_matrices]
        headings = ("class", "true positives", "false positives", "false negatives", "true negatives")
        return [Table("confusions", "Decisions for each class", headings, rows, limit=_LISTED_CLASSES)]
    blocks: list[object] = []
    if analysis.confusion_matrices:
        # Detectors have a matrix for each score threshold: show the one nearest to 0.5.
        matrices = analysis.confusion_matrices
        nearest = min(matrices, key=lambda matrix: abs((matrix.score_threshold or 0.0) - 0.5))
        blocks.append(_matrix_chart(nearest))
    if not analysis.confused_pairs:
        return [*blocks, element("p", "No class is mistaken for another.")]
    pairs = [(pair.true, pair.predicted, pair.count, pair.share) for pair in analysis.confused_pairs]
    columns = ("labelled", "predicted", "count", "fraction of the class")
    return [*blocks, Table("confused-pairs", "Most confused classes", columns, pairs, limit=_LISTED_PAIRS)]


def _decisions(matrix: ConfusionMatrix) -> tuple[int, int, int, int]:
    (true_negatives, false_positives), (false_negatives, true_positives) = matrix.counts
    return true_positives, false_positives, false_negatives, true_negatives


def _matrix_chart(matrix: ConfusionMatrix) -> Chart:
    threshold = matrix.score_threshold
    title = "Confusion matrix"
    notes = ["The shade of a cell is its fraction of the row."]
    if threshold is not None:
        title += f" at score threshold {threshold:g}"
        notes.append(
            "Predictions are matched with objects of any class. metrics.json has the matrices at other "
            "thresholds."
        )
    return heat_map("confusion-matrix", title, matrix.rows, matrix.columns, matrix.counts,
                    row_heading="labelled", column_heading="predicted", notes=notes)  # fmt: skip


def _error_kinds(analysis: Analysis) -> list[object]:
    kinds = [error for error in analysis.errors if error.kind not in _SUMS]
    chart = bar_chart(
        "error-costs", "Cost of errors in mean average precision", [error.kind for error in kinds],
        [("cost", [error.cost for error in kinds])], label_heading="kind",
        notes=["How much mean average precision would rise without errors of a kind. Costs do not add up."],
    )  # fmt: skip
    rows = [(error.kind, error.count, error.cost, _KINDS.get(error.kind, "")) for error in analysis.errors]
    columns = ("kind", "count", "cost in mean average precision", "meaning")
    return [chart, Table("errors", "Errors by kind and cost", columns, rows)]
