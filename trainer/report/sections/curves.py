"""The section of curves: precision-recall, ROC, gains, lift, calibration and F1 by threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.metrics.results import Analysis, Calibration, Curve
from trainer.report.charts.chart import Chart
from trainer.report.charts.line_chart import Series, line_chart
from trainer.report.charts.scale import Scale
from trainer.report.markup import Html, element, facts, note
from trainer.report.page import Page
from trainer.report.sections.validation_metrics import MAIN_CLASS_METRICS

_MAX_LINES = 7
_AVERAGES = ("micro", "macro", "weighted")
_KINDS = {
    "precision_recall": ("Precision and recall", "recall", "precision"),
    "roc": ("ROC", "false positive rate", "true positive rate"),
    "cumulative_gains": (
        "Cumulative gains",
        "fraction of images, most likely first",
        "fraction of positives found",
    ),
    "lift": ("Lift", "fraction of images, most likely first", "times better than chance"),
    "calibration": ("Calibration", "predicted probability", "fraction that is correct"),
    "f1": ("F1 by threshold", "score threshold", "F1"),
    "image_level": ("Image level", "recall", "precision"),
}
"""(title, x label, y label) of each kind of curve."""
_WHEN = ("before", "after, cross-fitted", "after, on the images of the fit")
_WITH_DIAGONAL = ("roc", "cumulative_gains", "calibration")


def add_curves(page: Page, analysis: Analysis) -> None:
    """Add a chart for each kind of curve, and the calibration error."""
    blocks: list[object] = [_chart(kind, analysis) for kind in _KINDS if analysis.curves.get(kind)]
    page.add("Curves", *blocks)
    page.add("Calibration", *_calibration_blocks(analysis))


def _chart(kind: str, analysis: Analysis) -> Chart:
    curves = analysis.curves[kind]
    drawn = _most_relevant(curves, analysis)
    notes = []
    if len(drawn) < len(curves):
        notes.append(
            f"Shows {len(drawn)} of {len(curves)} lines: averages and the classes with the lowest metrics."
        )
    return curve_chart(kind, [Series(curve.name, curve.x, curve.y) for curve in drawn], notes=notes)


def curve_chart(
    kind: str, series: Sequence[Series], *, prefix: str = "", suffix: str = "", notes: Sequence[str] = ()
) -> Chart:
    """Draw curves of one kind.

    Args:
        kind: a key of `Analysis.curves`.
        prefix: put before the chart's name, which is unique on a page.
        suffix: put after its title.
    """
    title, x_label, y_label = _KINDS[kind]
    unit = Scale(0.0, 1.0)
    y_scale = Scale.over((y for line in series for y in line.y), low=0.0) if kind == "lift" else unit
    return line_chart(
        f"{prefix}curve-{kind.replace('_', '-')}", title + suffix, series, x_label=x_label, x_scale=unit,
        y_label=y_label, y_scale=y_scale, diagonal=kind in _WITH_DIAGONAL, marks=kind == "calibration",
        notes=notes,
    )  # fmt: skip


def _most_relevant(curves: Sequence[Curve], analysis: Analysis) -> list[Curve]:
    """Return all curves, or, if there are more than seven, the averages and those of the worst classes."""
    if len(curves) <= _MAX_LINES:
        return list(curves)
    averages = [curve for curve in curves if curve.name in _AVERAGES and curve.name != "weighted"]
    of_classes = [curve for curve in curves if curve.name not in _AVERAGES]
    worst = sorted(of_classes, key=lambda curve: _main_metric(analysis, curve.name))
    worst = worst[: _MAX_LINES - len(averages)]
    return [*averages, *(curve for curve in of_classes if curve in worst)]


def _main_metric(analysis: Analysis, label: str) -> float:
    """Return the metric by which a class is compared; 2, above all others, if it is undefined."""
    metrics = analysis.per_class.get(label, {})
    value = next((metrics[name] for name in MAIN_CLASS_METRICS if name in metrics), math.nan)
    return float(value) if math.isfinite(value) else 2.0


def _calibration_blocks(analysis: Analysis) -> list[object]:
    """The scores before and after calibration: the packaged one, or else the one that would fit best."""
    packaged, calibration = (
        analysis.packaged_calibration,
        analysis.packaged_calibration or analysis.calibration,
    )
    if calibration is None:
        return []
    series = [Series(curve.name, curve.x, curve.y) for curve in calibration.reliability]
    unit = Scale(0.0, 1.0)
    blocks: list[object] = [_calibration_facts(calibration)]
    if series:
        blocks.append(
            line_chart(
                "reliability", "Reliability of the scores", series, x_label="mean score", x_scale=unit,
                y_label="fraction that is correct", y_scale=unit, diagonal=True,
            )
        )  # fmt: skip
    if packaged is not None:
        blocks.append(
            note(
                "The packaged model's scores are calibrated, and so are those in all other sections. The "
                "calibration was fitted to these images; the cross-fitted values, each image's from a fit to "
                "others, are what to expect of new images."
            )
        )
    else:
        blocks.append(
            note(
                "The model's scores are not calibrated. ",
                element("code", "--calibrate"),
                " of ",
                element("code", "trainer fit"),
                " or ",
                element("code", "trainer evaluate"),
                " does it.",
            )
        )
    return blocks


def _calibration_facts(calibration: Calibration) -> Html:
    losses = (calibration.log_loss, calibration.log_loss_cross_fitted, calibration.log_loss_scaled)
    errors = (calibration.error, calibration.error_cross_fitted, calibration.error_scaled)
    return facts(
        [
            ("temperature", calibration.temperature),
            ("bias", calibration.bias or None),
            ("images", calibration.images),
            ("scores", calibration.scores),
            *zip((f"ECE ({calibration.bins} bins) {when}" for when in _WHEN), errors, strict=True),
            *zip((f"log loss {when}" for when in _WHEN), losses, strict=True),
        ]
    )
