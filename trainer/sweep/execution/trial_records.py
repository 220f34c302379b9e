"""The trials of a sweep as users see them, a record each: in the log, in a table, and in trials.csv."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optuna.trial import FrozenTrial, TrialState

from trainer.files import atomic_writer
from trainer.metric_names import WHY_UNDEFINED, is_minimised
from trainer.sweep import attempts
from trainer.sweep.attempts import MICRO_BATCHES
from trainer.sweep.execution.messages import UNDEFINED_METRIC, Outcome

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger("trainer")

State = Literal["waiting", "running", "complete", "pruned", "failed"]

_STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
_MAX_WIDTH = 60
_ATTRIBUTES = ("best_epoch", "epochs", "seconds", "host", "directory", "reason", MICRO_BATCHES)
"""The attributes of a trial that are columns of trials.csv."""


@dataclass(frozen=True)
class Record:
    """A trial with all of its attempts.

    Attributes:
        number: counts trials, not attempts; also the name of its directory.
        parameters: the settings that were proposed.
        values: of the objectives; empty while there are none.
        latest: the last reported value of the primary metric, None before the first.
        attempts: how many there were.
        attributes: the last attempt's user attributes.
        duration: of the last attempt.
    """

    number: int
    state: State
    parameters: dict[str, Any]
    values: tuple[float, ...]
    latest: float | None
    attempts: int
    attributes: dict[str, Any]
    duration: timedelta | None


def record_of(number: int, of_trial: Sequence[FrozenTrial]) -> Record:
    """Combine the attempts at a trial, the last of which decides."""
    last = of_trial[-1]
    values = tuple(last.values or ())
    if last.state is TrialState.PRUNED and "pruned_value" in last.user_attrs:
        values = (last.user_attrs["pruned_value"],)
    reported = last.intermediate_values
    return Record(
        number=number,
        state="waiting" if attempts.is_retried(last) else _STATES[last.state],
        parameters=dict(last.user_attrs.get("parameters", {})),
        values=values,
        latest=reported[max(reported)] if reported else None,
        attempts=len(of_trial),
        attributes=dict(last.user_attrs),
        duration=last.duration,
    )


def best_of(records: Sequence[Record], metric: str, max_latency: float | None = None) -> Record | None:
    """The trial with the best primary metric; a pruned one only if no trial is complete.

    Args:
        metric: name of the primary metric, which is the first objective.
        max_latency: the highest second objective that counts, in milliseconds.
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
            best = min if is_minimised(metric) else max
            return best(ended, key=lambda record: record.values[0])  # among equals the first
    return None


def why_none_is_best(records: Sequence[Record], metric: str, max_latency: float | None = None) -> str:
    """Why there is no best trial, for an error."""
    undefined = sum(record.attributes.get("reason") == UNDEFINED_METRIC for record in records)
    if undefined:
        trials = "every trial" if undefined == len(records) else f"{undefined} of {len(records)} trials"
        return f"{metric} was undefined in {trials}, so none is the best: {WHY_UNDEFINED}"
    bound = f" within {max_latency:g} ms" if max_latency else ""
    return f"no trial finished{bound}; trials.csv has the reason for each"


def pareto_front(records: Sequence[Record], metric: str) -> set[int]:
    """The numbers of the trials that no other beats in one objective without losing in the other.

    The first objective is the primary metric, the second, latency, is minimised.
    """
    ended = [record for record in records if record.state == "complete" and len(record.values) == 2]
    sign = -1 if is_minimised(metric) else 1
    return {
        record.number
        for record in ended
        if not any(
            sign * other.values[0] >= sign * record.values[0]
            and other.values[1] <= record.values[1]
            and other.values != record.values
            for other in ended
        )
    }


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
    best, front = best_of(records, metric, max_latency), pareto_front(records, metric)
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
    front = pareto_front(records, metric)
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


def settings_in_words(record: Record) -> str:
    """The proposed settings of a trial, such as `learning_rate 0.01, optimizer adam`."""
    return ", ".join(f"{name} {_formatted(value)}" for name, value in record.parameters.items())


def _settings(record: Record) -> str:
    text = settings_in_words(record)
    return text if len(text) <= _MAX_WIDTH else text[: _MAX_WIDTH - 1] + "…"


def _formatted(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
