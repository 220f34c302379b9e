"""The table of a sweep's trials: live on a terminal, and as trials.csv in the run's directory."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.sweep.execution.attempts import PARTS
from trainer.sweep.execution.trial_queue import Record

if TYPE_CHECKING:
    from rich.table import Table

_WIDEST = 60


def best_of(records: Sequence[Record], max_latency: float | None = None) -> Record | None:
    """The trial with the highest primary metric; of those that were pruned only if no other has an end.

    Args:
        max_latency: milliseconds that the second objective may be at most.
    """
    for state in ("complete", "pruned"):
        ended = [
            record
            for record in records
            if record.state == state
            and record.values
            and not math.isnan(record.values[0])
            and (max_latency is None or (len(record.values) > 1 and record.values[1] <= max_latency))
        ]
        if ended:
            return max(ended, key=lambda record: record.values[0])  # of equal ones the first
    return None


def pareto_front(records: Sequence[Record]) -> set[int]:
    """The numbers of trials that no other beats in one objective without losing in the other.

    The first objective is the higher the better, the second the lower.
    """
    ended = [record for record in records if record.state == "complete" and len(record.values) == 2]
    return {
        one.number
        for one in ended
        if not any(
            other.values[0] >= one.values[0]
            and other.values[1] <= one.values[1]
            and other.values != one.values
            for other in ended
        )
    }


def render(records: Sequence[Record], metric: str, max_latency: float | None = None) -> Table:
    """The trials as a table for a terminal; the best is bold."""
    from rich.table import Table

    two = any(len(record.values) > 1 for record in records)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (
        "trial",
        "state",
        metric,
        *(("latency",) if two else ()),
        "best epoch",
        "seconds",
        "settings",
    ):
        table.add_column(name, justify="left" if name in ("state", "settings") else "right")
    best, front = best_of(records, max_latency), pareto_front(records)
    for record in records:
        value = record.values[0] if record.values else record.latest
        cells = [str(record.number), _state(record), "" if value is None else f"{value:.4f}"]
        if two:
            measured = f"{record.values[1]:.1f} ms" if len(record.values) > 1 else ""
            cells.append(measured + (" *" if record.number in front else ""))
        seconds = record.attributes.get("seconds") or (
            record.duration.total_seconds() if record.duration else None
        )
        cells += [str(record.attributes.get("best_epoch", "")), f"{seconds:.0f}" if seconds else ""]
        cells.append(record.attributes["reason"] if record.state == "failed" else _settings(record))
        table.add_row(*cells, style="bold" if best is not None and record.number == best.number else None)
    return table


def write_csv(path: Path, records: Sequence[Record], metric: str) -> None:
    """All trials with all that is known of each; a row a trial."""
    names = list(dict.fromkeys(name for record in records for name in record.parameters))
    front = pareto_front(records)
    kept = ("best_epoch", "epochs", "seconds", "host", "directory", "reason", PARTS)
    partial = path.with_suffix(".csv.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", metric, "latency_ms", "pareto", "attempts", *kept, *names])
        for record in records:
            values = [*record.values, *[""] * (2 - len(record.values))]
            known: dict[str, Any] = record.attributes
            writer.writerow(
                [
                    *(record.number, record.state, *values, record.number in front, record.attempts),
                    *(known.get(name, "") for name in kept),
                    *(record.parameters.get(name, "") for name in names),
                ]
            )
    partial.replace(path)


def _state(record: Record) -> str:
    notes = [f"attempt {record.attempts}"] if record.attempts > 1 else []
    if PARTS in record.attributes:
        notes.append(f"batches in {record.attributes[PARTS]} parts")
    return f"{record.state} ({', '.join(notes)})" if notes else record.state


def _settings(record: Record) -> str:
    text = ", ".join(f"{name} {_shown(value)}" for name, value in record.parameters.items())
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
