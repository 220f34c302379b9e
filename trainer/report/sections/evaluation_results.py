"""The report's parts about an evaluation: figures, curves, confusions, thresholds, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from trainer.metrics.results import Analysis, ConfusionMatrix, Curve
from trainer.report.charts.chart import Chart
from trainer.report.charts.heat_map import heat_map
from trainer.report.charts.line_chart import Series, bars, lines
from trainer.report.charts.scale import Scale, shown
from trainer.report.markup import Table, element, facts, note, paragraph
from trainer.report.page import Page
from trainer.tasks import Task

_CURVES = 7
_AVERAGES = ("micro", "macro", "weighted")
_ROWS = 300
_OF_CLASS = ("average_precision", "f1-score")

_SAID = {
    "precision_recall": ("Precision and recall", "recall", "precision"),
    "roc": ("ROC", "false positive rate", "true positive rate"),
    "cumulative_gains": (
        "Cumulative gains",
        "share of images, most likely first",
        "share of positives found",
    ),
    "lift": ("Lift", "share of images, most likely first", "times better than chance"),
    "calibration": ("Calibration", "predicted probability", "share that is right"),
    "f1": ("F1 by threshold", "score threshold", "F1"),
    "image_level": ("Image level", "recall", "precision"),
}


def add(page: Page, analysis: Analysis) -> None:
    """Add the sections of figures, classes, confusions and curves."""
    page.add("Figures on the validation data", *_figures(analysis))
    page.add("Classes", *_per_class(analysis))
    page.add("Confusions", *_confusions(analysis))
    page.add("Curves", *curves(analysis))
    if analysis.errors:
        page.add("What goes wrong", *_errors(analysis))


def _figures(analysis: Analysis) -> list[object]:
    rows = list(analysis.metrics.items())
    if analysis.image_level:
        rows += [(f"image_level_{name}", value) for name, value in analysis.image_level.items()]
    shown_rows = [(name, _defined(value, analysis.task)) for name, value in rows]
    kept = [("images", analysis.images), ("objects", analysis.objects)]
    if analysis.iou_threshold is not None:
        kept.append(("found from IoU", analysis.iou_threshold))  # type: ignore[arg-type]
    blocks: list[object] = [facts(kept), Table("figures", "All figures", ("figure", "value"), shown_rows)]
    if analysis.slices:
        names = list(analysis.slices[0].metrics)
        rows_of = [
            (
                each.by,
                each.value,
                each.images,
                each.objects,
                *(_defined(each.metrics.get(name), analysis.task) for name in names),
            )
            for each in analysis.slices
        ]
        blocks.append(Table("slices", "By slice", ("by", "value", "images", "objects", *names), rows_of))
    return blocks


def _defined(value: float | None, task: Task) -> float | None:
    """None for what is undefined, which in detection is -1."""
    return None if value is None or value != value or (task.has_boxes and value == -1) else value


def _per_class(analysis: Analysis) -> list[object]:
    names = list(dict.fromkeys(name for figures in analysis.per_class.values() for name in figures))
    if not names:
        return []
    counted = [name for name in names if _are_counts(name)]
    columns = ["class", *names]
    with_thresholds = bool(analysis.thresholds)
    if with_thresholds:
        columns += ["best score threshold", "F1 there", "precision there", "recall there"]
    rows: list[Sequence[object]] = []
    for label, figures in analysis.per_class.items():
        row: list[object] = [label]
        for name in names:
            value = _defined(figures.get(name), analysis.task)
            row.append(int(value) if value is not None and name in counted else value)
        if with_thresholds:
            best = analysis.thresholds.get(label)
            row += [best.score, best.f1, best.precision, best.recall] if best else [None] * 4
        rows.append(row)
    blocks: list[object] = []
    main = next((name for name in _OF_CLASS if name in names), None)
    if main is not None and len(rows) > 1:
        values = {label: _defined(of.get(main), analysis.task) for label, of in analysis.per_class.items()}
        ordered = sorted(values, key=lambda label: -1.0 if (value := values[label]) is None else value)[::-1]
        numbers = [math.nan if (value := values[label]) is None else value for label in ordered]
        blocks.append(
            bars(
                "class-figures",
                f"{main} by class",
                ordered,
                [(main, numbers)],
                label_heading="class",
                high=1.0,
            )
        )
    blocks.append(
        Table("classes-figures", "Figures by class: click a heading to sort", columns, rows, limit=_ROWS)
    )
    if with_thresholds:
        blocks.append(
            note(
                "The best score threshold is where the class has its highest F1 on these images; "
                "`trainer evaluate RUN --data … --apply-thresholds` gives the model such thresholds."
            )
        )
    return blocks


def _are_counts(name: str) -> bool:
    return name in ("support", "objects", "predictions")


def _confusions(analysis: Analysis) -> list[object]:
    matrices = analysis.confusion_matrices
    blocks: list[object] = []
    if analysis.task is Task.MULTILABEL:
        rows = [(each.name, *_cells(each)) for each in matrices]
        decisions = ("class", "rightly named", "wrongly named", "overlooked", "rightly not named")
        blocks.append(Table("confusions", "Decisions about each class", decisions, rows, limit=_ROWS))
    elif matrices:
        # Of a detector the one at the middle threshold; all are in metrics.json.
        chosen = min(matrices, key=lambda each: abs((each.score_threshold or 0.0) - 0.5))
        at = chosen.score_threshold
        title = "Confusion matrix" if at is None else f"Confusion matrix at score {at:g}"
        remarks = ["Rows are shaded by their share: a full cell is all of its row."]
        if at is not None:
            remarks.append(
                "Objects are matched without regard to class. metrics.json has the matrices of other scores."
            )
        blocks.append(
            heat_map("confusion-matrix", title, chosen.rows, chosen.columns, chosen.counts,
                     row_heading="true", column_heading="predicted", remarks=remarks)
        )  # fmt: skip
    if analysis.confused_pairs:
        pairs = [(pair.true, pair.predicted, pair.count, pair.share) for pair in analysis.confused_pairs]
        columns = ("true", "taken for", "times", "share of the class")
        blocks.append(Table("confused-pairs", "Classes taken for another", columns, pairs, limit=25))
    elif analysis.task is not Task.MULTILABEL:
        blocks.append(paragraph("No class is taken for another."))
    return blocks


def _cells(matrix: ConfusionMatrix) -> tuple[int, int, int, int]:
    (true_negatives, false_positives), (false_negatives, true_positives) = matrix.counts
    return true_positives, false_positives, false_negatives, true_negatives


def curves(analysis: Analysis) -> list[object]:
    """A chart for each kind of curve."""
    blocks: list[object] = []
    for kind, (title, x_label, y_label) in _SAID.items():
        found = analysis.curves.get(kind)
        if not found:
            continue
        chosen = _chosen(found, analysis)
        remarks = []
        if len(chosen) < len(found):
            remarks.append(
                f"{len(chosen)} of {len(found)} lines: the averages, and the classes with the lowest figures."
            )
        blocks.append(_curve_chart(kind, title, x_label, y_label, chosen, remarks))
    if analysis.calibration is not None:
        c = analysis.calibration
        blocks.append(
            facts(
                [
                    (f"calibration error (ECE, {c.bins} bins)", c.error),
                    ("best temperature", c.temperature),
                    ("ECE at that temperature", c.error_scaled),
                    ("log loss, and at that temperature", f"{shown(c.log_loss)}, {shown(c.log_loss_scaled)}"),
                ]
            )
        )
    return blocks


def _curve_chart(
    kind: str,
    title: str,
    x_label: str,
    y_label: str,
    found: Sequence[Curve],
    remarks: Sequence[str],
) -> Chart:
    whole = Scale(0.0, 1.0)
    y_scale = Scale.over((value for each in found for value in each.y), low=0.0) if kind == "lift" else whole
    return lines(
        f"curve-{kind.replace('_', '-')}", title,
        [Series(each.name, each.x, each.y) for each in found], x_label=x_label, y_label=y_label,
        x_scale=whole, y_scale=y_scale, diagonal=kind in ("roc", "cumulative_gains", "calibration"),
        marks=kind == "calibration", remarks=remarks,
    )  # fmt: skip


def _chosen(found: Sequence[Curve], analysis: Analysis) -> list[Curve]:
    """The averages and the classes with the lowest figures, if there are too many to be told apart."""
    if len(found) <= _CURVES:
        return list(found)
    averages = [each for each in found if each.name in _AVERAGES and each.name != "weighted"]
    classes = [each for each in found if each.name not in _AVERAGES]
    worst = sorted(classes, key=lambda each: _figure_of(analysis, each.name))[: _CURVES - len(averages)]
    return [*averages, *(each for each in classes if each in worst)]


def _figure_of(analysis: Analysis, label: str) -> float:
    figures = analysis.per_class.get(label, {})
    value = next((figures[name] for name in _OF_CLASS if name in figures), float("nan"))
    return float(value) if math.isfinite(value) else 2.0


def _errors(analysis: Analysis) -> list[object]:
    kinds = [each for each in analysis.errors if each.kind not in ("false positives", "false negatives")]
    table = Table(
        "errors", "Errors, and what each kind costs",
        ("kind", "count", "costs, in mean average precision", "what it is"),
        [(each.kind, each.count, each.cost, _ERRORS.get(each.kind, "")) for each in analysis.errors],
    )  # fmt: skip
    chart = bars(
        "error-costs", "What errors cost, in mean average precision", [each.kind for each in kinds],
        [("cost", [each.cost for each in kinds])], label_heading="kind",
        remarks=("By how much it would rise if errors of this kind alone were mended; costs do not add up.",),
    )  # fmt: skip
    return [chart, table]


_ERRORS = {
    "classification": "an object of another class, in the right place",
    "localisation": "the right class, but the place is off",
    "both": "another class, and the place is off",
    "duplicate": "an object that was found already",
    "background": "nothing is there",
    "missed": "an object that nothing found",
    "false positives": "all predictions that are wrong",
    "false negatives": "all objects that were not found",
}


def figure_rows(names: Iterable[str], results: Sequence[dict[str, float]]) -> list[Sequence[object]]:
    """A row for each figure, a column for each run; the highest is marked where there are several."""
    rows: list[Sequence[object]] = []
    for name in names:
        values = [figures.get(name) for figures in results]
        known = [value for value in values if value is not None and value == value]
        best = (min if "loss" in name else max)(known) if len(known) > 1 and len(set(known)) > 1 else None
        rows.append([name, *(marked(value, value == best) for value in values)])
    return rows


def marked(value: float | None, is_best: bool) -> object:
    """A figure, with a mark if it is the best of several."""
    return element("span", shown(value), " ✓", class_="best good") if is_best else value
