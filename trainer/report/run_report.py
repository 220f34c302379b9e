"""Writes a run's report: report.html in its directory, and report/ with its charts and tables as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer import strict_yaml
from trainer.data.quality.examined_images import examine
from trainer.data.training_data import Data
from trainer.files import write_atomically
from trainer.report.embedded_images import EmbeddedImages
from trainer.report.evaluated_run import EvaluatedRun
from trainer.report.markup import Html, element, note
from trainer.report.page import Page
from trainer.report.sections import run_summary
from trainer.report.sections.curves import add_curves
from trainer.report.sections.data_overview import add_data_overview
from trainer.report.sections.data_problems import add_data_problems
from trainer.report.sections.error_analysis import add_error_analysis
from trainer.report.sections.label_errors import add_label_errors
from trainer.report.sections.prediction_examples import add_prediction_examples
from trainer.report.sections.sweep_results import add_sweep_results
from trainer.report.sections.training_history import (
    add_training_history,
    read_class_metrics,
    read_metrics,
)
from trainer.report.sections.validation_metrics import add_validation_metrics
from trainer.report.trials_csv import TRIALS_FILE, read_trials
from trainer.runs import Result, Run

_LINKED_FILES = (
    "job.yaml",
    "result.json",
    "metrics.csv",
    "metrics_by_class.csv",
    "metrics.json",
    "predictions.jsonl",
    "trainer.log",
)


def write_run_report(
    run: Run,
    *,
    data: Data | None = None,
    evaluated: EvaluatedRun | None = None,
    notes: Sequence[str] = (),
    output: Path | None = None,
) -> Path:
    """Write a finished run's report from what its directory holds.

    Args:
        run: the run.
        data: the data it was trained on; None leaves out the sections about the data.
        evaluated: its predictions on the validation data; None leaves out the sections about predictions.
        notes: sentences for the top of the report, such as why sections are missing.
        output: the file to write; None writes report.html and its parts into the run's directory.

    Returns:
        The path of the HTML file.

    Raises:
        RunError: the run has not finished.
        OSError: the report cannot be written.
    """
    result = run.read_result()
    job = read_job(run)
    page = Page(run.directory.absolute().name, f"{result.model} for {result.task}")
    embedded = EmbeddedImages()
    page.add("Summary", *map(note, notes), *_summary(run, result, job))
    if (run.directory / TRIALS_FILE).exists():
        max_latency_ms = job.get("local", {}).get("max_latency_ms")
        add_sweep_results(page, run, result.primary_metric, result.best_trial, max_latency_ms)
    if (trained := _trained(run, result)) is not None:
        rows, by_class = read_metrics(trained.metrics), read_class_metrics(trained.class_metrics)
        add_training_history(page, rows, by_class, result.primary_metric, result.best_epoch)
    if evaluated is not None:
        add_validation_metrics(page, evaluated.analysis)
        add_error_analysis(page, evaluated.analysis)
        add_curves(page, evaluated.analysis)
        add_prediction_examples(page, evaluated, embedded)
        add_label_errors(page, evaluated, embedded)
    if data is not None:
        images = examine(data.train, data.validation)
        add_data_overview(page, images, embedded)
        add_data_problems(page, images, embedded, data.warnings)
    if output is None:
        if evaluated is not None:
            write_atomically(run.evaluation, evaluated.analysis.to_json() + "\n")
        page.write_parts(run.report_parts)
    page.write(output or run.report)
    return output or run.report


def read_job(run: Run) -> dict[str, Any]:
    """Read a run's job.yaml as it is; an empty dict if the file is missing."""
    content = strict_yaml.load(run.job.read_bytes(), str(run.job)) if run.job.exists() else None
    return content if isinstance(content, dict) else {}


def _summary(run: Run, result: Result, job: dict[str, Any]) -> list[object]:
    links = [element("a", name, href=name) for name in _LINKED_FILES if (run.directory / name).exists()]
    more = [("weights", job.get("local", {}).get("weights")), ("files", Html(", ").join(links))]
    settings = job.get("training_parameters", {})
    return [
        run_summary.headline(result),
        run_summary.provenance(result, more),
        run_summary.durations(result),
        run_summary.settings(settings) if settings else None,
    ]


def _trained(run: Run, result: Result) -> Run | None:
    """The run itself, or its best trial if it is a sweep; None if that is not in the table of trials."""
    if result.best_trial is None:
        return run
    trials = read_trials(run.directory / TRIALS_FILE, result.primary_metric)
    best = next((trial for trial in trials if trial.number == result.best_trial), None)
    return None if best is None else best.run(run)
