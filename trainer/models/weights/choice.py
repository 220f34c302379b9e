"""Which weights a user chose to start from; free of torch, unlike the reading of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

PRETRAINED = "pretrained"
NONE = "none"


def choice_or_environment(choice: str | None) -> str:
    """The user's choice: `--weights`, else TRAINER_WEIGHTS, else the published weights."""
    return choice or os.environ.get("TRAINER_WEIGHTS") or PRETRAINED


def of_run(run: str) -> str:
    """The choice that `checkpoint_run_id` stands for: a run's directory, or the model of an MLflow run."""
    # A run id has no separators in it: anything with one is a path, there or not.
    if is_address(run) or Path(run).expanduser().exists() or re.search(r"[/\\]", run):
        return run
    return f"runs:/{run}/model"


def is_address(choice: str) -> bool:
    """Whether MLflow is to find it: `runs:/ID/model`, `models:/NAME/VERSION`."""
    return re.match(r"(runs|models):/", choice) is not None
