"""The report's parts about a sweep: its trials, how settings and figures go together, and what mattered."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.report.charts.heat_map import parallel
from trainer.report.charts.line_chart import Point, bars, lines, scatter
from trainer.report.charts.scale import Scale, wants_log
from trainer.report.markup import Html, Table, element, facts, note, paragraph
from trainer.report.page import Page
from trainer.report.sections.training_history import read_metrics, series_of
from trainer.runs import Run

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

TRIALS_FILE = "trials.csv"
LEAST_TRIALS = 10
"""Ended trials below which nothing is said about the importance of settings."""
_FIXED = ("trial", "state", "latency_ms", "pareto", "attempts", "best_epoch", "epochs", "seconds", "host",
          "directory", "reason")  # fmt: skip
_AXES = 10
_CURVES = 7
_TREES = 64


@dataclass(frozen=True)
class Trial:
    """A row of trials.csv.

    Attributes:
        value: the primary metric; None where there is none.
        parameters: what was proposed, numbers as such.
    """

    number: int
    state: str
    value: float | None
    latency: float | None
    on_front: bool
    seconds: float | None
    directory: str
    reason: str
    parameters: dict[str, Any] = field(default_factory=dict)


def read_trials(path: Path, metric: str) -> list[Trial]:
    """The rows of a sweep's trials.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        Trial(
            number=int(row["trial"]),
            state=row["state"],
            value=_number(row[metric]),
            latency=_number(row["latency_ms"]),
            on_front=row["pareto"] == "True",
            seconds=_number(row["seconds"]),
            directory=row["directory"],
            reason=row["reason"],
            parameters={
                name: _typed(value)
                for name, value in row.items()
                if name not in (*_FIXED, metric) and value != ""
            },
        )
        for row in rows
    ]


def add(page: Page, run: Run, metric: str, best: int | None, max_latency: float | None = None) -> None:
    """Add the sections of a sweep whose trials stand in the run's trials.csv."""
    trials = read_trials(run.directory / TRIALS_FILE, metric)
    names = list(dict.fromkeys(name for trial in trials for name in trial.parameters))
    varied = [name for name in names if len({str(trial.parameters.get(name)) for trial in trials}) > 1]
    ended = [trial for trial in trials if trial.value is not None]
    states = ", ".join(
        f"{count} {state}"
        for state in ("complete", "pruned", "failed")
        if (count := _in_state(trials, state))
    )
    blocks: list[object] = [facts([("trials", f"{len(trials)}: {states}"), ("best trial", best)])]
    blocks += _courses(run, ended, metric, best)
    blocks.append(_table(run, trials, names, metric, best))
    page.add("Trials", *blocks)
    if len(ended) > 1 and varied:
        page.add("Settings and what came of them", *_parallel(ended, varied, metric, best))
        page.add("Which settings mattered", *_importance(trials, metric))
    if any(trial.latency is not None for trial in trials):
        page.add("Latency", *_front(trials, metric, max_latency))


def _in_state(trials: Sequence[Trial], state: str) -> int:
    return sum(trial.state == state for trial in trials)


def _courses(run: Run, ended: Sequence[Trial], metric: str, best: int | None) -> list[object]:
    if not ended:
        return [paragraph("No trial came to an end.")]
    points = [Point(float(t.number), t.value or 0.0, f"trial {t.number}", t.number == best) for t in ended]
    blocks: list[object] = [
        scatter(
            "trial-values", f"{metric} of the trials, in their order", points, x_label="trial", y_label=metric
        )
    ]
    series = []
    for trial in sorted(ended, key=lambda each: -(each.value or 0.0))[:_CURVES]:
        directory = trial_directory(run, trial)
        rows = [] if directory is None else read_metrics(directory / "metrics.csv")
        if any(metric in row for row in rows):
            series.append(series_of(rows, metric, f"trial {trial.number}"))
    if series:
        last = max(max(each.x) for each in series)
        blocks.append(
            lines("trial-courses", f"{metric} by epoch, of the best trials", series, x_label="epoch",
                  x_scale=Scale.of_epochs(last))
        )  # fmt: skip
    return blocks


def trial_directory(run: Run, trial: Trial) -> Path | None:
    """The trial's own run: below the sweep's, also where that was moved, or where the table says."""
    for directory in (run.directory / "trials" / Path(trial.directory).name, Path(trial.directory)):
        if trial.directory and directory.is_dir():
            return directory
    return None


def _table(run: Run, trials: Sequence[Trial], names: Sequence[str], metric: str, best: int | None) -> Table:
    with_latency = any(trial.latency is not None for trial in trials)
    columns = [
        "trial",
        "state",
        metric,
        *(["latency, ms", "Pareto front"] if with_latency else []),
        "seconds",
        *names,
    ]
    with_reasons = any(trial.reason for trial in trials)
    rows = []
    for trial in trials:
        row: list[object] = [_link(run, trial, trial.number == best), trial.state, trial.value]
        if with_latency:
            row += [trial.latency, "yes" if trial.on_front else ""]
        row += [trial.seconds, *(trial.parameters.get(name) for name in names)]
        rows.append([*row, trial.reason] if with_reasons else row)
    if with_reasons:
        columns.append("reason")
    title = "The trials: click a heading to sort, a number for the trial's own report"
    return Table("trials", title, columns, rows, limit=1000)


def _link(run: Run, trial: Trial, is_best: bool) -> Html:
    number = f"{trial.number}{' (best)' if is_best else ''}"
    directory = run.directory / "trials" / Path(trial.directory).name
    if not trial.directory or not (directory / "report.html").is_file():
        return element("span", number)
    return element("a", number, href=f"trials/{directory.name}/report.html")


def _parallel(ended: Sequence[Trial], varied: Sequence[str], metric: str, best: int | None) -> list[object]:
    left_out = len(varied) - _AXES
    # Settings that most trials have come first; those of one sub-space alone are mostly gaps.
    known = sorted(varied, key=lambda name: -sum(name in trial.parameters for trial in ended))[:_AXES]
    rows: list[Mapping[str, object]] = [{**trial.parameters, metric: trial.value} for trial in ended]
    remarks = ["A line is a trial, the stronger the higher its figure; the best stands out."]
    if left_out > 0:
        remarks.append(f"{left_out} settings that fewer trials have are left out.")
    place = next((place for place, trial in enumerate(ended) if trial.number == best), None)
    return [
        parallel("parallel-coordinates", "Parallel coordinates", [*known, metric], rows,
                 labels=[f"trial {trial.number}" for trial in ended], best=place, remarks=remarks)
    ]  # fmt: skip


def _importance(trials: Sequence[Trial], metric: str) -> list[object]:
    found = importance(trials)
    if isinstance(found, str):
        return [paragraph(found)]
    complete = _in_state(trials, "complete")
    remark = (
        f"By fANOVA (Hutter et al., 2014; Optuna's) over {complete} trials: the share of the variation of "
        f"{metric} that goes with each setting. Few trials make it rough, and it tells nothing beyond the "
        "values that were tried."
    )
    names = list(found)
    return [
        bars("importance", f"Importance of settings for {metric}", names,
             [("importance", list(found.values()))], label_heading="setting", high=1.0),
        note(remark),
    ]  # fmt: skip


def importance(trials: Sequence[Trial]) -> dict[str, float] | str:
    """The importance of each setting that all complete trials have, falling, in [0, 1], or why there is none.

    The settings are taken as the trials had them, whatever sub-space they came from, so that the model is one
    of them.
    """
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    if len(complete) < LEAST_TRIALS:
        return (
            f"That takes at least {LEAST_TRIALS} trials that were trained to their end; there are "
            f"{len(complete)}. trainer fit --resume with a higher --max-trials adds some."
        )
    shared = set.intersection(*(set(trial.parameters) for trial in complete))
    spaces = {name: _distribution([trial.parameters[name] for trial in complete]) for name in sorted(shared)}
    spaces_known = {name: space for name, space in spaces.items() if space is not None}
    if not spaces_known:
        return "No setting that all trials have took more than one value."
    if len({trial.value for trial in complete}) == 1:
        return "All trials came to the same figure."
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental features warn
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            study = optuna.create_study(direction="maximize")
            study.add_trials(
                [
                    optuna.create_trial(
                        params={
                            name: _for_optuna(trial.parameters[name], space)
                            for name, space in spaces_known.items()
                        },
                        distributions=spaces_known,
                        value=trial.value,
                    )
                    for trial in complete
                ]
            )
            found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(n_trees=_TREES, seed=0))
        finally:
            optuna.logging.set_verbosity(verbosity)
    return {name: float(value) for name, value in found.items()}


def _distribution(values: Sequence[Any]) -> BaseDistribution | None:
    """The range of what was tried; None for a single value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if len({str(value) for value in values}) < 2:
        return None
    if all(isinstance(value, int | float) for value in values):
        numbers = [float(value) for value in values]
        return FloatDistribution(min(numbers), max(numbers), log=wants_log(numbers))
    return CategoricalDistribution(sorted({str(value) for value in values}))


def _for_optuna(value: Any, space: BaseDistribution) -> Any:
    from optuna.distributions import CategoricalDistribution

    return str(value) if isinstance(space, CategoricalDistribution) else float(value)


def _front(trials: Sequence[Trial], metric: str, max_latency: float | None) -> list[object]:
    points = [
        Point(trial.latency, trial.value, f"trial {trial.number}", trial.on_front)
        for trial in trials
        if trial.latency is not None and trial.value is not None
    ]
    remarks = ["The line joins the trials that no other beats in both: the Pareto front."]
    if max_latency is not None:
        remarks.append(f"The best model is the best of those within {max_latency:g} ms.")
    return [
        scatter("pareto", f"{metric} and latency", points, x_label="latency, ms an image", y_label=metric,
                front=True, remarks=remarks)
    ]  # fmt: skip


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _typed(text: str) -> object:
    number = _number(text)
    if number is None:
        return text
    return int(number) if text.lstrip("-").isdigit() else number
