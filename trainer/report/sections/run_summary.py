"""The parts of a run's summary: its main numbers, where it comes from, its settings and durations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.report.charts.bar_chart import bar_chart
from trainer.report.charts.chart import Chart
from trainer.report.markup import Html, element, facts
from trainer.report.number_format import format_bytes, format_duration, format_value, is_number
from trainer.report.tables import Table
from trainer.runs import Result


def headline(result: Result) -> Html:
    """Show the most important numbers in large type."""
    numbers = [
        (format_value(result.value), result.primary_metric),
        (result.best_of_epochs, "best epoch"),
        (format_duration(result.durations.total), "total time"),
    ]
    return element(
        "div",
        *(element("div", element("b", number), element("span", name)) for number, name in numbers),
        class_="headline",
    )


def provenance(result: Result, more: Sequence[tuple[str, object]] = ()) -> Html:
    """List task, model, `more`, and what is needed to reproduce the run."""
    fingerprint, commit = result.data_fingerprint, result.git_commit
    return facts(
        [
            ("task", result.task.value),
            ("model", result.model),
            *more,
            ("best epoch chosen on", result.best_epoch_chosen_on or None),
            ("seed", seed_shown(result)),
            ("peak memory", peak_memory(result) or None),
            ("data fingerprint", element("code", fingerprint) if fingerprint else None),
            ("git commit", element("code", commit) if commit else None),
            ("versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())),
        ]
    )


def seed_shown(result: Result) -> str:
    """Return the random seed as text."""
    return "random" if result.seed is None else str(result.seed)


def peak_memory(result: Result) -> str:
    """List the peak memory of process and GPUs; empty if it was not measured."""
    return ", ".join(f"{format_bytes(size)} ({name})" for name, size in result.peak_memory.items())


def settings(values: Mapping[str, Any]) -> Table:
    """List the hyperparameters of a job."""
    rows = [(name, value if is_number(value) else str(value)) for name, value in values.items()]
    title, summary = "Settings as in job.yaml", f"Settings ({len(values)})"
    return Table("settings", title, ("setting", "value"), rows, summary=summary)


def durations(result: Result) -> Chart:
    """Show how long each part of the run took."""
    seconds = result.durations.model_dump()
    total = seconds.pop("total")
    seconds["other"] = max(0.0, total - sum(seconds.values()))
    values = [("seconds", list(seconds.values()))]
    return bar_chart("durations", "Time in seconds", list(seconds), values, label_heading="part")
