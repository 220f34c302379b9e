"""Shows the trials of a sweep: in the log, as a table on a terminal, and as trials.csv."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.files import atomic_writer
from trainer.sweep.attempts import MICRO_BATCHES
from trainer.sweep.execution.messages import Outcome
from trainer.sweep.execution.trial_records import Record, best_of, pareto_front

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger("trainer")

_MAX_WIDTH = 60
_ATTRIBUTES = ("best_epoch", "epochs", "seconds", "host", "directory", "reason", MICRO_BATCHES)
"""The attributes of a trial that are columns of trials.csv."""


def log_outcome(number: int, outcome: Outcome, metric: str) -> None:
    """Log how an attempt at a trial ended."""
    if outcome.state in ("complete", "pruned"):
        latency = f", {outcome.values[1]:.1f} ms" if len(outcome.values) > 1 else ""
        seconds = outcome.attributes.get("seconds", 0)
        log.info(
            "trial %d: %s, %s %.4f%s, %.0f s",
            number, outcome.state, metric, outcome.values[0], latency, seconds,
        )  # fmt: skip
    elif outcome.state == "failed":
        retry = "; it will be retried" if outcome.may_succeed else ""
        log.warning("trial %d: failed, %s%s", number, outcome.reason, retry)


def render(records: Sequence[Record], metric: str, max_latency: float | None = None) -> Table:
    """The trials as a table for a terminal, with the best one in bold and a * on the Pareto front."""
    from rich.markup import escape
    from rich.table import Table

    has_latency = any(len(record.values) > 1 for record in records)
    columns = ["trial", "state", metric, *(["latency"] if has_latency else [])]
    columns += ["best epoch", "seconds", "settings"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in ("state", "settings") else "right")
    best, front = best_of(records, max_latency), pareto_front(records)
    for record in records:
        value = record.values[0] if record.values else record.latest
        cells = [str(record.number), _state(record), "" if value is None else f"{value:.4f}"]
        if has_latency:
            latency = f"{record.values[1]:.1f} ms" if len(record.values) > 1 else ""
            cells.append(latency + (" *" if record.number in front else ""))
        seconds = record.attributes.get("seconds")
        if not seconds and record.duration:
            seconds = record.duration.total_seconds()
        cells += [str(record.attributes.get("best_epoch", "")), f"{seconds:.0f}" if seconds else ""]
        cells.append(record.attributes["reason"] if record.state == "failed" else _settings(record))
        cells = [escape(cell) for cell in cells]  # a reason may hold brackets, as those of gloo do
        table.add_row(*cells, style="bold" if best is not None and record.number == best.number else None)
    return table


def write_csv(path: Path, records: Sequence[Record], metric: str) -> None:
    """Write all trials, one per row, with their attributes and proposed settings."""
    names = list(dict.fromkeys(name for record in records for name in record.parameters))
    front = pareto_front(records)
    with atomic_writer(path, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", metric, "latency_ms", "pareto", "attempts", *_ATTRIBUTES, *names])
        for record in records:
            values = [*record.values, *[""] * (2 - len(record.values))]
            writer.writerow(
                [
                    *(record.number, record.state, *values, record.number in front, record.attempts),
                    *(record.attributes.get(name, "") for name in _ATTRIBUTES),
                    *(record.parameters.get(name, "") for name in names),
                ]
            )


def _state(record: Record) -> str:
    notes = [f"attempt {record.attempts}"] if record.attempts > 1 else []
    if MICRO_BATCHES in record.attributes:
        notes.append(f"{record.attributes[MICRO_BATCHES]} micro-batches per batch")
    return f"{record.state} ({', '.join(notes)})" if notes else record.state


def _settings(record: Record) -> str:
    text = ", ".join(f"{name} {_formatted(value)}" for name, value in record.parameters.items())
    return text if len(text) <= _MAX_WIDTH else text[: _MAX_WIDTH - 1] + "…"


def _formatted(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
