"""The files that a worker and the process of a trial exchange: an order, and the outcome."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Order(BaseModel):
    """What the process of a trial is to do.

    Attributes:
        job: the trial's own job file.
        directory: of the trial's run; if an earlier attempt left a run there, it is resumed.
        storage: address of the study's storage.
        trial_id: Optuna's ID of the attempt, unique in the storage.
        policy: early termination as the job file writes it.
        deadline: UNIX time after which the trial ends at its next evaluation.
        measures_latency: whether to package the model and time it for the second objective.
        parent_run: ID of the sweep's run in MLflow.
        micro_batches: how many micro-batches each batch is split into; over 1 after memory ran out.
    """

    model_config = ConfigDict(frozen=True)

    job: Path
    directory: Path
    storage: str
    study: str
    trial_id: int
    policy: dict[str, Any] | None = None
    deadline: float | None = None
    measures_latency: bool = False
    parent_run: str | None = None
    micro_batches: int = 1


class Outcome(BaseModel):
    """How one attempt at a trial ended.

    Attributes:
        state: "stopped" if the whole sweep was: the trial is resumed with the sweep.
        values: of the objectives, in their order; for a pruned trial only its best primary metric.
        reason: why it failed.
        may_succeed: whether another attempt can succeed; once recorded, whether another one follows.
        no_memory: whether memory ran out; the next attempt splits its batches into micro-batches.
        disk_full: whether the disk is full, which stops the whole sweep.
        attributes: kept with the trial: best epoch, number of epochs, seconds.
    """

    # An undefined metric is NaN, which plain JSON lacks.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    state: Literal["complete", "pruned", "failed", "stopped"]
    values: tuple[float, ...] = ()
    reason: str = ""
    may_succeed: bool = False
    no_memory: bool = False
    disk_full: bool = False
    attributes: dict[str, Any] = {}


UNDEFINED_METRIC = "its metric is undefined"
"""The reason of a trial that ended without a value of the primary metric."""
DISK_FULL = 6
"""Exit status of a trial's process that could not write its outcome because the disk is full."""


def outcome_path(order: Path) -> Path:
    """Where the process of a trial writes its outcome, given the path of its order."""
    return order.with_suffix(".outcome.json")


def write_privately(path: Path, text: str) -> None:
    """Write a file that only its owner can read: the storage's address may hold a password."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
