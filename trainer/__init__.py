"""Trains image models on Azure AutoML for Images data and job files, on your own machines.

import trainer

run = trainer.fit(trainer.Job(task="object-detection", training_data="train.jsonl"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Job", "Run", "Task", "TrainerError", "__version__", "evaluate", "fit", "resume", "validate"]

if TYPE_CHECKING:
    from trainer.api import Job, Run, Task, TrainerError, __version__, evaluate, fit, resume, validate
else:

    def __getattr__(name: str) -> Any:
        """Import a public name when it is used: `import trainer` stays fast, and free of torch."""
        if name not in __all__:
            raise AttributeError(f"module 'trainer' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module("trainer.api"), name)
