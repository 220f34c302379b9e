"""Several runs side by side: figures, settings that differ, courses, classes and curves."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from trainer.errors import RunError
from trainer.metrics.results import Analysis
from trainer.report.charts.line_chart import Series, bars, lines
from trainer.report.charts.scale import Scale, seconds_shown, shown
from trainer.report.markup import Html, Table, element, note
from trainer.report.page import Page
from trainer.report.sections.evaluation_results import figure_rows, marked
from trainer.report.sections.training_history import bytes_shown, read_metrics, series_of
from trainer.runs import Result, Run

_CURVES = {"precision_recall": ("recall", "precision"), "roc": ("false positive rate", "true positive rate")}
_BARS = 14


@dataclass(frozen=True)
class _Compared:
    """A run as it is compared; `name` is its own among the others."""

    name: str
    run: Run
    result: Result
    rows: list[dict[str, float]]
    settings: dict[str, Any]
    analysis: Analysis | None


def write(runs: Sequence[Run], output: Path) -> Path:
    """Write a page that compares finished runs of one task.

    Raises:
        RunError: a run has not finished, or they are of different tasks.
        OSError: it cannot be written.
    """
    compared = [_read(run, name) for run, name in zip(runs, _names(runs), strict=True)]
    tasks = sorted({each.result.task.value for each in compared})
    if len(tasks) > 1:
        raise RunError(f"runs of one task can be compared; these are of {' and '.join(tasks)}")
    page = Page(f"{len(runs)} runs side by side", f"{tasks[0]}: {', '.join(each.name for each in compared)}")
    page.add("Summary", _summary(compared, output), *_differing_data(compared))
    page.add("Figures", *_figures(compared))
    page.add("Courses", *_courses(compared))
    page.add("Classes", *_classes(compared))
    page.add("Curves", *_curves(compared))
    page.add("Settings", *_settings(compared))
    page.write(output)
    return output


def _read(run: Run, name: str) -> _Compared:
    result = run.read_result()
    content = yaml.safe_load(run.job.read_text("utf-8")) if run.job.exists() else {}
    analysis = Analysis.read(run.evaluation) if run.evaluation.exists() else None
    settings = content.get("training_parameters", {}) | {"weights": content.get("local", {}).get("weights")}
    return _Compared(name, run, result, read_metrics(run.metrics), settings, analysis)


def _names(runs: Sequence[Run]) -> list[str]:
    """The directories' names, with as much of their paths as tells them apart."""
    paths = [run.directory.absolute().parts for run in runs]
    depth = 1
    while depth < max(map(len, paths)) and len({path[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path[-depth:]) for path in paths]


def _summary(compared: Sequence[_Compared], output: Path) -> Table:
    columns = ("", *(each.name for each in compared))
    of = [each.result for each in compared]
    values = [result.value for result in of]
    best = max((value for value in values if value == value), default=None)
    rows: list[Sequence[object]] = [
        ("report", *(_link(each.run, output) for each in compared)),
        ("model", *(result.model for result in of)),
        ("primary metric", *(result.primary_metric for result in of)),
        ("at the best epoch", *(marked(value, value == best and len(set(values)) > 1) for value in values)),
        ("best epoch", *(f"{result.best_epoch} of {result.epochs}" for result in of)),
        ("time", *(seconds_shown(result.durations.total) for result in of)),
        ("of it training", *(seconds_shown(result.durations.train) for result in of)),
        ("memory at most", *(_memory(result) for result in of)),
        ("data fingerprint", *(element("code", result.data_fingerprint or "–") for result in of)),
        ("git commit", *(element("code", (result.git_commit or "–")[:12]) for result in of)),
        ("seed", *(str(result.seed) if result.seed is not None else "drawn" for result in of)),
    ]
    for library in dict.fromkeys(name for result in of for name in result.versions):
        rows.append((library, *(result.versions.get(library, "–") for result in of)))
    return Table("summary", "The runs", columns, rows)


def _memory(result: Result) -> str:
    return ", ".join(f"{bytes_shown(size)} ({name})" for name, size in result.peak_memory.items()) or "–"


def _link(run: Run, output: Path) -> Html:
    if not run.report.exists():
        return element("span", str(run.directory))
    path = os.path.relpath(run.report.absolute(), output.absolute().parent)
    return element("a", "its report", href=quote(Path(path).as_posix()))


def _differing_data(compared: Sequence[_Compared]) -> list[Html]:
    known = {each.result.data_fingerprint for each in compared if each.result.data_fingerprint}
    if len(known) < 2:
        return []
    return [note("The data differ, by their fingerprints: the figures may not be comparable.")]


def _figures(compared: Sequence[_Compared]) -> list[object]:
    names = list(dict.fromkeys(name for each in compared for name in each.result.metrics))
    rows = figure_rows(names, [each.result.metrics for each in compared])
    columns = ("figure", *(each.name for each in compared))
    drawn = [
        name
        for name in names
        if "loss" not in name and "_weighted" not in name and "_micro" not in name
        and all(0 <= each.result.metrics.get(name, 0) <= 1 for each in compared)
    ][:_BARS]  # fmt: skip
    blocks: list[object] = []
    if drawn:
        values = [
            (each.name, [each.result.metrics.get(name, float("nan")) for name in drawn]) for each in compared
        ]
        blocks.append(
            bars(
                "compared-figures",
                "Figures at the best epoch",
                drawn,
                values,
                label_heading="figure",
                high=1.0,
            )
        )
    blocks.append(
        Table("figures", "All figures at the best epoch; the best of each is marked", columns, rows)
    )
    return blocks


def _courses(compared: Sequence[_Compared]) -> list[object]:
    blocks: list[object] = []
    metrics = list(dict.fromkeys(each.result.primary_metric for each in compared))
    for name in (*metrics, "log_loss", "train_loss", "learning_rate"):
        series = [
            series_of(each.rows, name, each.name)
            for each in compared
            if any(name in row for row in each.rows)
        ]
        if series:
            last = max(max(each.x) for each in series)
            ends = Scale(0.0, 1.0) if name in metrics else None
            blocks.append(
                lines(f"compared-{name.replace('_', '-')}", name, series, x_label="epoch",
                      x_scale=Scale.of_epochs(last), y_scale=ends)
            )  # fmt: skip
    return blocks


def _classes(compared: Sequence[_Compared]) -> list[object]:
    with_analysis = [each for each in compared if each.analysis is not None]
    per_class = [each.analysis.per_class for each in with_analysis if each.analysis is not None]
    names = list(dict.fromkeys(name for classes in per_class for name in classes))
    if not names:
        return []
    figures = {name for classes in per_class for of in classes.values() for name in of}
    main = next((name for name in ("average_precision", "f1-score") if name in figures), None)
    if main is None:
        return []
    results = [
        {name: of[main] for name, of in classes.items() if of.get(main, -1) != -1} for classes in per_class
    ]
    rows = figure_rows(names, results)
    columns = ("class", *(each.name for each in with_analysis))
    return [Table("classes", f"{main} by class; the best is marked", columns, rows)]


def _curves(compared: Sequence[_Compared]) -> list[object]:
    """The averages' curves over each other, or, for detection, those of the image level."""
    blocks: list[object] = []
    for kind, (x_label, y_label) in (*_CURVES.items(), ("image_level", ("recall", "precision"))):
        series = []
        for each in compared:
            found = each.analysis.curves.get(kind, []) if each.analysis is not None else []
            chosen = next((curve for curve in found if curve.name in ("macro", "image_level")), None)
            if chosen is None and len(found) == 1:
                chosen = found[0]
            if chosen is not None:
                series.append(Series(each.name, chosen.x, chosen.y))
        if series:
            whole = Scale(0.0, 1.0)
            title = {"roc": "ROC, macro average", "image_level": "Image level"}.get(
                kind, "Precision and recall"
            )
            blocks.append(
                lines(f"compared-curve-{kind.replace('_', '-')}", title, series,
                      x_label=x_label, y_label=y_label, x_scale=whole, y_scale=whole, marks=False,
                      diagonal=kind == "roc")
            )  # fmt: skip
    return blocks


def _settings(compared: Sequence[_Compared]) -> list[object]:
    names = list(dict.fromkeys(name for each in compared for name in each.settings))
    rows = [(name, *(_shown(each.settings.get(name)) for each in compared)) for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    if not differing:
        return [note("All settings are the same.")]
    columns = ("setting", *(each.name for each in compared))
    return [Table("settings", "Settings that differ", columns, differing)]


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    return shown(value)
