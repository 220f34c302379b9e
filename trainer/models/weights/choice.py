"""The user's choice of weights to start from. Does not import torch, unlike reading them."""

from __future__ import annotations

import os
import re

PRETRAINED = "pretrained"
NONE = "none"

# The names under which Azure's notebooks find the best model in MLflow.
BEST_CHILD_TAG = "automl_best_child_run_id"
"""Tag of a run: the ID of the run that has its model. For a sweep that is its best trial's, else its own."""
MODEL_ARTIFACT = "outputs/mlflow-model"
"""Path of the packaged model among the artifacts of that run."""


def choice_or_environment(choice: str | None) -> str:
    """The user's choice: `--weights`, else TRAINER_WEIGHTS, else the published weights."""
    return choice or os.environ.get("TRAINER_WEIGHTS") or PRETRAINED


def of_run(run: str) -> str:
    """The choice for a `checkpoint_run_id`: a run's directory, or an MLflow run."""
    # A run id has no path separator, so anything with one is a path, whether it exists or not.
    if is_address(run) or os.path.exists(os.path.expanduser(run)) or re.search(r"[/\\]", run):
        return run
    return f"runs:/{run}"


def is_address(choice: str) -> bool:
    """Whether the choice is an address of MLflow: `runs:/ID`, `runs:/ID/PATH` or `models:/NAME/VERSION`."""
    return re.match(r"(runs|models):/", choice) is not None
