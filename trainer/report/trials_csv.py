"""Reads trials.csv, a sweep's table of trials."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.runs import Run

TRIALS_FILE = "trials.csv"
_FIXED_COLUMNS = ("trial", "state", "latency_ms", "pareto", "attempts", "best_epoch", "epochs", "seconds",
                  "host", "directory", "reason")  # fmt: skip
"""Columns of every sweep; the others are the primary metric and the settings that vary."""


@dataclass(frozen=True)
class Trial:
    """A row of trials.csv.

    Attributes:
        number: the trial number.
        state: complete, pruned or failed.
        value: the primary metric; None if there is none.
        latency_ms: milliseconds per image; None if it was not measured.
        is_pareto: whether the trial is on the Pareto front of metric and latency.
        seconds: duration; None if unknown.
        directory: the trial's run directory when the table was written; may be empty.
        reason: why the trial failed or was pruned.
        settings: the proposed settings, numbers as such.
    """

    number: int
    state: str
    value: float | None
    latency_ms: float | None
    is_pareto: bool
    seconds: float | None
    directory: str
    reason: str
    settings: Mapping[str, Any]

    def run(self, sweep: Run) -> Run:
        """Return the trial's run, also if the sweep has been moved; its directory may be gone."""
        directory = sweep.directory / "trials" / Path(self.directory).name
        return Run(directory if directory.is_dir() or not self.directory else Path(self.directory))


def read_trials(path: Path, metric: str) -> list[Trial]:
    """Read a sweep's trials.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        Trial(
            number=int(row["trial"]),
            state=row["state"],
            value=_number(row[metric]),
            latency_ms=_number(row["latency_ms"]),
            is_pareto=row["pareto"] == "True",
            seconds=_number(row["seconds"]),
            directory=row["directory"],
            reason=row["reason"],
            settings={
                name: _number_or_text(value)
                for name, value in row.items()
                if name not in (*_FIXED_COLUMNS, metric) and value != ""
            },
        )
        for row in rows
    ]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _number_or_text(text: str) -> object:
    number = _number(text)
    if number is None:
        return text
    return int(number) if text.lstrip("-").isdigit() else number
