"""The sections about a sweep: its trials, their settings and metrics, and the Pareto front with latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.metric_names import is_minimised
from trainer.report.charts.bar_chart import bar_chart
from trainer.report.charts.chart import Chart
from trainer.report.charts.line_chart import line_chart
from trainer.report.charts.parallel_coordinates import parallel_coordinates
from trainer.report.charts.scale import Scale
from trainer.report.charts.scatter_chart import Point, scatter_chart
from trainer.report.markup import Html, element, facts, note
from trainer.report.page import Page
from trainer.report.sections.setting_importance import setting_importance
from trainer.report.sections.training_history import read_metrics, series_of
from trainer.report.tables import Table
from trainer.report.trials_csv import TRIALS_FILE, Trial, read_trials
from trainer.runs import Run

_MAX_AXES = 10
_MAX_LINES = 7
_LISTED_TRIALS = 1000


def add_sweep_results(
    page: Page, run: Run, metric: str, best: int | None, max_latency_ms: float | None = None
) -> None:
    """Add the sections of a sweep, read from its trials.csv.

    Args:
        metric: name of the primary metric.
        best: number of the best trial; None if no trial has a metric.
        max_latency_ms: limit for the best model, in milliseconds per image; None for no limit.
    """
    trials = read_trials(run.directory / TRIALS_FILE, metric)
    settings = list(dict.fromkeys(name for trial in trials for name in trial.settings))
    varied = [name for name in settings if len({str(trial.settings.get(name)) for trial in trials}) > 1]
    measured = [trial for trial in trials if trial.value is not None]
    count_of = Counter(trial.state for trial in trials)
    states = ", ".join(
        f"{count_of[each]} {each}" for each in ("complete", "pruned", "failed") if count_of[each]
    )
    page.add(
        "Trials",
        facts([("trials", f"{len(trials)}: {states}"), ("best trial", best)]),
        *_metric_charts(run, measured, metric, best),
        _trial_table(run, trials, settings, metric, best),
    )
    if len(measured) > 1 and varied:
        page.add(f"Settings and {metric}", _parallel_coordinates(measured, varied, metric, best))
        page.add("Importance of settings", *_importance(trials, metric, count_of["complete"]))
    if any(trial.latency_ms is not None for trial in trials):
        page.add("Latency", _pareto_front(trials, metric, max_latency_ms))


def _metric_charts(run: Run, measured: Sequence[Trial], metric: str, best: int | None) -> list[object]:
    if not measured:
        return [element("p", "No trial was evaluated.")]
    points = [
        Point(float(trial.number), trial.value or 0.0, f"trial {trial.number}", trial.number == best)
        for trial in measured
    ]
    blocks: list[object] = [
        scatter_chart("trial-values", f"{metric} by trial", points, x_label="trial", y_label=metric)
    ]
    series = []
    sign = 1 if is_minimised(metric) else -1
    for trial in sorted(measured, key=lambda trial: sign * (trial.value or 0.0))[:_MAX_LINES]:
        rows = read_metrics(trial.run(run).metrics)
        if any(metric in row for row in rows):
            series.append(series_of(rows, metric, f"trial {trial.number}"))
    if series:
        epochs = Scale.of_epochs(
            max(max(line.x) for line in series), min(1.0, *(min(line.x) for line in series))
        )
        title = f"{metric} by epoch, best trials"
        blocks.append(line_chart("trials-by-epoch", title, series, x_label="epoch", x_scale=epochs))
    return blocks


def _trial_table(
    run: Run, trials: Sequence[Trial], settings: Sequence[str], metric: str, best: int | None
) -> Table:
    columns: dict[str, list[object]] = {
        "trial": [_trial_link(run, trial, trial.number == best) for trial in trials],
        "state": [trial.state for trial in trials],
        metric: [trial.value for trial in trials],
    }
    if any(trial.latency_ms is not None for trial in trials):
        columns["latency, ms"] = [trial.latency_ms for trial in trials]
        columns["Pareto front"] = ["yes" if trial.is_pareto else "" for trial in trials]
    columns["seconds"] = [trial.seconds for trial in trials]
    columns |= {name: [trial.settings.get(name) for trial in trials] for name in settings}
    if any(trial.reason for trial in trials):
        columns["reason"] = [trial.reason for trial in trials]
    rows = list(zip(*columns.values(), strict=True))
    title = "Trials (click a heading to sort, a trial number for its report)"
    return Table("trials", title, list(columns), rows, limit=_LISTED_TRIALS)


def _trial_link(run: Run, trial: Trial, is_best: bool) -> Html:
    label = f"{trial.number}{' (best)' if is_best else ''}"
    directory = run.directory / "trials" / Path(trial.directory).name
    if not trial.directory or not (directory / "report.html").is_file():
        return element("span", label)
    return element("a", label, href=f"trials/{directory.name}/report.html")


def _parallel_coordinates(
    measured: Sequence[Trial], varied: Sequence[str], metric: str, best: int | None
) -> Chart:
    # Settings of a single sub-space are mostly gaps, so choose those that most trials have.
    axes = sorted(varied, key=lambda name: -sum(name in trial.settings for trial in measured))[:_MAX_AXES]
    rows: list[Mapping[str, object]] = [{**trial.settings, metric: trial.value} for trial in measured]
    better = "lower" if is_minimised(metric) else "higher"
    notes = [
        f"Each line is a trial; the {better} its {metric}, the stronger the line. The best is highlighted."
    ]
    omitted = len(varied) - len(axes)
    if omitted:
        notes.append(f"{omitted} settings that fewer trials share are left out.")
    best_index = next((index for index, trial in enumerate(measured) if trial.number == best), None)
    return parallel_coordinates(
        "parallel-coordinates", "Parallel coordinates", [*axes, metric], rows,
        labels=[f"trial {trial.number}" for trial in measured], best=best_index,
        is_minimised=is_minimised(metric), notes=notes,
    )  # fmt: skip


def _importance(trials: Sequence[Trial], metric: str, complete: int) -> list[object]:
    importance = setting_importance(trials)
    if isinstance(importance, str):
        return [element("p", importance)]
    method = (
        f"Fraction of the variance of {metric} that each setting explains, by fANOVA (Hutter et al., 2014) "
        f"as implemented in Optuna, from {complete} trials. With few trials it is only "
        "a rough estimate, and it holds only for the values that were tried."
    )
    series = [("importance", list(importance.values()))]
    title = f"Importance of settings for {metric}"
    return [
        bar_chart("importance", title, list(importance), series, label_heading="setting", high=1.0),
        note(method),
    ]


def _pareto_front(trials: Sequence[Trial], metric: str, max_latency_ms: float | None) -> Chart:
    points = [
        Point(trial.latency_ms, trial.value, f"trial {trial.number}", trial.is_pareto)
        for trial in trials
        if trial.latency_ms is not None and trial.value is not None
    ]
    notes = ["The line is the Pareto front: no trial is better than these in both metric and latency."]
    if max_latency_ms is not None:
        notes.append(f"The best model is the best one within {max_latency_ms:g} ms.")
    title = f"{metric} and latency"
    return scatter_chart(
        "pareto", title, points, x_label="latency, ms per image", y_label=metric, notes=notes
    )
