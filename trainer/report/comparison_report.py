"""Writes a page that compares several runs: metrics, history, classes, curves, and settings that differ."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainer.errors import RunError
from trainer.files import distinct_names
from trainer.metric_names import is_minimised
from trainer.metrics.intervals import Difference
from trainer.metrics.results import Analysis
from trainer.report.charts.bar_chart import bar_chart
from trainer.report.charts.line_chart import Series, line_chart
from trainer.report.charts.scale import Scale
from trainer.report.markup import Html, element, note
from trainer.report.number_format import UNDEFINED, format_duration, format_value
from trainer.report.page import Page
from trainer.report.run_report import read_job
from trainer.report.sections.curves import curve_chart
from trainer.report.sections.run_summary import peak_memory, seed_shown
from trainer.report.sections.training_history import is_loss, read_metrics, series_of
from trainer.report.sections.uncertainty import difference_blocks, interval_blocks, interval_in_words
from trainer.report.sections.validation_metrics import MAIN_CLASS_METRICS
from trainer.report.tables import Table
from trainer.runs import Result, Run

_MAX_BARS = 14


@dataclass(frozen=True)
class _Compared:
    """A model with its evaluation; `name` is unique among those on the page."""

    name: str
    analysis: Analysis | None


@dataclass(frozen=True)
class _ComparedRun(_Compared):
    """A run with everything that is compared."""

    run: Run
    result: Result
    rows: list[dict[str, float]]
    settings: dict[str, Any]


def run_names(runs: Sequence[Run]) -> list[str]:
    """The names of runs on the page that compares them."""
    return distinct_names([run.directory for run in runs])


def write_comparison(
    runs: Sequence[Run], output: Path, differences: Sequence[Difference] = (), notes: Sequence[str] = ()
) -> Path:
    """Write a page that compares finished runs of one task.

    Args:
        differences: paired differences of the primary metric, by the names of `run_names`.
        notes: sentences on pairs of runs that have no difference.

    Raises:
        RunError: a run has not finished, or the runs have different tasks.
        OSError: the page cannot be written.
    """
    compared = [_read(run, name) for run, name in zip(runs, run_names(runs), strict=True)]
    tasks = sorted({run.result.task.value for run in compared})
    if len(tasks) > 1:
        raise RunError(f"only runs of the same task can be compared; these are of {' and '.join(tasks)}")
    page = Page(f"Comparison of {len(runs)} runs", f"{tasks[0]}: {', '.join(run.name for run in compared)}")
    page.add("Summary", _summary(compared, output), _fingerprint_note(compared))
    page.add("Can the runs be told apart?", *difference_blocks(differences), *map(note, notes))
    page.add("Metrics", *_metrics(compared))
    page.add("Training history", *_history(compared))
    page.add("Metrics by class", _classes(compared))
    page.add("Curves", *_curves(compared))
    page.add("Settings", _settings(compared))
    page.write(output)
    return output


def write_evaluations(
    analyses: Sequence[tuple[str, Analysis]], differences: Sequence[Difference], output: Path
) -> Path:
    """Write a page that compares the evaluations of several models on the same data.

    Args:
        analyses: name and evaluation of each model.
        differences: paired differences of the primary metric.

    Raises:
        OSError: the page cannot be written.
    """
    compared = [_Compared(name, analysis) for name, analysis in analyses]
    names = [name for name, _ in analyses]
    page = Page(f"Comparison of {len(analyses)} models", f"{analyses[0][1].task}: {', '.join(names)}")
    intervals = [(name, each.interval) for name, each in analyses if each.interval is not None]
    page.add("Can the models be told apart?", *difference_blocks(differences, interval_blocks(intervals)))
    metrics = [analysis.metrics for _, analysis in analyses]
    rows = _comparison_rows(dict.fromkeys(name for each in metrics for name in each), metrics)
    page.add("Metrics", Table("metrics", "All metrics, best values marked", ("metric", *names), rows))
    page.add("Metrics by class", _classes(compared))
    page.add("Curves", *_curves(compared))
    page.write(output)
    return output


def _read(run: Run, name: str) -> _ComparedRun:
    result, job = run.read_result(), read_job(run)
    analysis = Analysis.read(run.evaluation) if run.evaluation.exists() else None
    settings = {**job.get("training_parameters", {}), "weights": job.get("local", {}).get("weights")}
    return _ComparedRun(name, analysis, run, result, read_metrics(run.metrics), settings)


def _summary(compared: Sequence[_ComparedRun], output: Path) -> Table:
    results = [run.result for run in compared]
    values = [result.value for result in results]
    metrics = {result.primary_metric for result in results}
    better = min if all(map(is_minimised, metrics)) else max
    best = better((value for value in values if value == value), default=None) if len(metrics) == 1 else None
    rows: list[Sequence[object]] = [
        ("report", *(_report_link(run.run, output) for run in compared)),
        ("model", *(result.model for result in results)),
        ("primary metric", *(result.primary_metric for result in results)),
        ("value at the best epoch", *(_mark_if(v, v == best and len(set(values)) > 1) for v in values)),
        ("95% interval", *(_interval_shown(run.analysis) for run in compared)),
        ("best epoch", *(result.best_of_epochs for result in results)),
        ("total time", *(format_duration(result.durations.total) for result in results)),
        ("training time", *(format_duration(result.durations.train) for result in results)),
        ("peak memory", *(peak_memory(result) or UNDEFINED for result in results)),
        ("data fingerprint", *(element("code", result.data_fingerprint or UNDEFINED) for result in results)),
        ("git commit", *(element("code", (result.git_commit or UNDEFINED)[:12]) for result in results)),
        ("seed", *map(seed_shown, results)),
    ]
    for library in dict.fromkeys(name for result in results for name in result.versions):
        rows.append((library, *(result.versions.get(library, UNDEFINED) for result in results)))
    return Table("summary", "Runs", ("", *(run.name for run in compared)), rows)


def _interval_shown(analysis: Analysis | None) -> str:
    interval = analysis.interval if analysis is not None else None
    return UNDEFINED if interval is None else interval_in_words(interval)


def _report_link(run: Run, output: Path) -> Html:
    if not run.report.exists():
        return element("span", str(run.directory))
    path = os.path.relpath(run.report.absolute(), output.absolute().parent)
    return element("a", "report", href=quote(Path(path).as_posix()))


def _fingerprint_note(compared: Sequence[_ComparedRun]) -> Html | None:
    fingerprints = {run.result.data_fingerprint for run in compared} - {""}
    if len(fingerprints) < 2:
        return None
    return note("The runs have different data fingerprints, so their metrics may not be comparable.")


def _metrics(compared: Sequence[_ComparedRun]) -> list[object]:
    names = list(dict.fromkeys(name for run in compared for name in run.result.metrics))
    bar_names = [
        name
        for name in names
        if not is_loss(name) and "_weighted" not in name and "_micro" not in name
        and all(0 <= run.result.metrics.get(name, 0) <= 1 for run in compared)
    ][:_MAX_BARS]  # fmt: skip
    blocks: list[object] = []
    if bar_names:
        series = [
            (run.name, [run.result.metrics.get(name, float("nan")) for name in bar_names]) for run in compared
        ]
        blocks.append(
            bar_chart("compared-metrics", "Metrics at the best epoch", bar_names, series,
                      label_heading="metric", high=1.0)
        )  # fmt: skip
    rows = _comparison_rows(names, [run.result.metrics for run in compared])
    title = "All metrics at the best epoch, best values marked"
    return [*blocks, Table("metrics", title, ("metric", *(run.name for run in compared)), rows)]


def _comparison_rows(
    names: Iterable[str], metrics_of_runs: Sequence[Mapping[str, float]]
) -> list[Sequence[object]]:
    """Make a row for each metric with a column for each run, the best value marked if values differ."""
    rows: list[Sequence[object]] = []
    for name in names:
        values = [metrics.get(name) for metrics in metrics_of_runs]
        defined = [value for value in values if value is not None and value == value]
        best = (min if is_loss(name) else max)(defined) if len(set(defined)) > 1 else None
        rows.append([name, *(_mark_if(value, value == best) for value in values)])
    return rows


def _mark_if(value: float | None, is_best: bool) -> object:
    """Return the value, as HTML with a check mark if it is the best."""
    return element("span", format_value(value), " ✓", class_="best good") if is_best else value


def _history(compared: Sequence[_ComparedRun]) -> list[object]:
    blocks: list[object] = []
    metrics = list(dict.fromkeys(run.result.primary_metric for run in compared))
    for column in dict.fromkeys((*metrics, "log_loss", "train_loss", "learning_rate")):
        series = [
            series_of(run.rows, column, run.name)
            for run in compared
            if any(column in row for row in run.rows)
        ]
        if series:
            epochs = Scale.of_epochs(
                max(max(line.x) for line in series), min(1.0, *(min(line.x) for line in series))
            )
            y_scale = Scale(0.0, 1.0) if column in metrics and not is_minimised(column) else None
            name = f"compared-{column.replace('_', '-')}"
            blocks.append(line_chart(name, column, series, x_label="epoch", x_scale=epochs, y_scale=y_scale))
    return blocks


def _classes(compared: Sequence[_Compared]) -> Table | None:
    per_class = {run.name: run.analysis.per_class for run in compared if run.analysis is not None}
    labels = list(dict.fromkeys(label for classes in per_class.values() for label in classes))
    metrics = {name for classes in per_class.values() for metrics in classes.values() for name in metrics}
    main = next((name for name in MAIN_CLASS_METRICS if name in metrics), None)
    if main is None:
        return None
    values = [
        {label: metrics[main] for label, metrics in classes.items() if metrics.get(main, -1) != -1}
        for classes in per_class.values()
    ]
    title = f"{main} by class, best values marked"
    return Table("classes", title, ("class", *per_class), _comparison_rows(labels, values))


def _curves(compared: Sequence[_Compared]) -> list[object]:
    """Draw one curve of each run: the macro average or, for detection, the image level."""
    blocks: list[object] = []
    for kind, suffix in (("precision_recall", ""), ("roc", ", macro average"), ("image_level", "")):
        series = []
        for run in compared:
            curves = run.analysis.curves.get(kind, []) if run.analysis is not None else []
            is_only = len(curves) == 1
            curve = next((each for each in curves if is_only or each.name in ("macro", "image_level")), None)
            if curve is not None:
                series.append(Series(run.name, curve.x, curve.y))
        if series:
            blocks.append(curve_chart(kind, series, prefix="compared-", suffix=suffix))
    return blocks


def _settings(compared: Sequence[_ComparedRun]) -> object:
    names = list(dict.fromkeys(name for run in compared for name in run.settings))
    rows = [(name, *(_setting_shown(run.settings.get(name)) for run in compared)) for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    if not differing:
        return note("All settings are the same.")
    return Table("settings", "Settings that differ", ("setting", *(run.name for run in compared)), differing)


def _setting_shown(value: object) -> str:
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    return format_value(value)
