"""Finds the packaged model that a user means: a run's directory, or the model's own."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import RunError

ARTIFACTS = "artifacts"


def find_model(run_or_model: Path) -> Path:
    """The MLflow model directory: the path itself if it holds an MLmodel file, else `model/` in it.

    Raises:
        RunError: there is neither, or it is no model that this project packaged.
    """
    for directory in (run_or_model, run_or_model / "model"):
        if (directory / "MLmodel").is_file():
            if (directory / ARTIFACTS / "spec.json").is_file():
                return directory
            raise RunError(
                f"{directory}: is an MLflow model, but lacks {ARTIFACTS}/spec.json; "
                "only models written by `trainer fit` can be used here, `mlflow models serve` takes others"
            )
    if not run_or_model.exists():
        raise RunError(f"{run_or_model}: does not exist; give a run's directory or an MLflow model's")
    raise RunError(
        f"{run_or_model}: holds no model, looked for MLmodel and model/MLmodel in it; give the directory "
        "that `trainer fit` printed. A run that has not finished has no model yet"
    )


def find_artifacts(run_or_model: Path) -> Path:
    """The directory with `spec.json` and `weights.pt` of the model that `find_model` finds."""
    return find_model(run_or_model) / ARTIFACTS
