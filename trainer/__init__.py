"""Trains image models on Azure AutoML for Images data and job files, on one's own machines.

import trainer

run = trainer.fit(trainer.Job(task="object-detection", training_data="train.jsonl"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.fitting import fit, resume
    from trainer.job.job import Job
    from trainer.runs import Run
    from trainer.tasks import Task

__all__ = ["Job", "Run", "Task", "fit", "resume"]

_HOMES = {
    "Job": "trainer.job.job",
    "Run": "trainer.runs",
    "Task": "trainer.tasks",
    "fit": "trainer.fitting",
    "resume": "trainer.fitting",
}


def __getattr__(name: str) -> Any:
    """Load the public names when they are used: importing the package stays quick and free of torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
