"""The report of a run: `report.html` in its directory, its charts, tables and figures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from trainer.data.quality.examined_images import look_at
from trainer.data.training_data import Data
from trainer.report.embedded_images import Pictures
from trainer.report.markup import Html, element, note
from trainer.report.page import Page
from trainer.report.sections import (
    data_overview,
    evaluation_results,
    prediction_examples,
    sweep_trials,
    training_history,
)
from trainer.report.sections.prediction_examples import Evaluated
from trainer.runs import Result, Run


def write(
    run: Run,
    *,
    data: Data | None = None,
    evaluated: Evaluated | None = None,
    remarks: Sequence[str] = (),
    output: Path | None = None,
) -> Path:
    """Write a finished run's report from what its directory holds.

    Args:
        data: that it was trained on; None leaves the part about them out.
        evaluated: its predictions on the validation data; None leaves the parts about them out.
        remarks: what is to be said beside, such as why parts are missing.
        output: the file; None: report.html in the run's directory, with its parts beside it.

    Raises:
        RunError: the run has not finished.
        OSError: it cannot be written.
    """
    result = run.read_result()
    page = Page(run.directory.absolute().name, _subtitle(result))
    job = _job(run)
    pictures = Pictures()
    page.add("Summary", *map(note, remarks), *_summary(run, result, job))
    if is_sweep(run):
        bound = job.get("local", {}).get("max_latency_ms")
        sweep_trials.add(page, run, result.primary_metric, result.best_trial, bound)
    training_history.add_course(page, _rows(run, result), result.primary_metric, result.best_epoch)
    if evaluated is not None:
        evaluation_results.add(page, evaluated.analysis)
        prediction_examples.add(page, evaluated, pictures)
    if data is not None:
        data_overview.add(page, look_at(data.train, data.validation), pictures, data.warnings)
    if output is None:
        if evaluated is not None:
            run.evaluation.write_text(evaluated.analysis.to_json() + "\n", encoding="utf-8")
        page.write_parts(run.report_parts)
    page.write(output or run.report)
    return output or run.report


def is_sweep(run: Run) -> bool:
    return (run.directory / sweep_trials.TRIALS_FILE).exists()


def _subtitle(result: Result) -> str:
    return f"{result.model} for {result.task}"


def _job(run: Run) -> dict[str, Any]:
    """What job.yaml holds; nothing if it is missing."""
    if not run.job.exists():
        return {}
    content = yaml.safe_load(run.job.read_text("utf-8"))
    return content if isinstance(content, dict) else {}


def _summary(run: Run, result: Result, job: dict[str, Any]) -> list[object]:
    local = job.get("local", {})
    more = [("weights", local.get("weights")), ("files", _links(run))]
    settings = job.get("training_parameters", {})
    return [
        training_history.headline(result),
        training_history.origin(result, more),
        training_history.durations(result),
        training_history.settings(settings) if settings else None,
    ]


def _links(run: Run) -> Html:
    """To the other files of the run's directory, where the report lies."""
    names = ("job.yaml", "result.json", "metrics.csv", "metrics.json", "predictions.jsonl", "trainer.log")
    there = [name for name in names if (run.directory / name).exists()]
    parts = [element("a", name, href=name) for name in there]
    return Html(", ".join(parts))


def _rows(run: Run, result: Result) -> list[dict[str, float]]:
    """The figures by epoch; of a sweep those of its best trial."""
    if result.best_trial is None:
        return training_history.read_metrics(run.metrics)
    trials = sweep_trials.read_trials(run.directory / sweep_trials.TRIALS_FILE, result.primary_metric)
    best = next((trial for trial in trials if trial.number == result.best_trial), None)
    directory = None if best is None else sweep_trials.trial_directory(run, best)
    return [] if directory is None else training_history.read_metrics(directory / "metrics.csv")
