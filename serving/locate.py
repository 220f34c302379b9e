"""Finds the packaged model in a run directory or a model directory."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import RunError
from trainer.files import without_prefix

ARTIFACTS = "artifacts"


def find_model(run_or_model: Path) -> Path:
    """The MLflow model directory: the path itself if it contains an MLmodel file, otherwise its `model/`.

    Raises:
        RunError: neither is a model directory, or the model was not packaged by this project.
    """
    run_or_model = Path(without_prefix(str(run_or_model), Path.cwd()))
    for directory in (run_or_model, run_or_model / "model"):
        if (directory / "MLmodel").is_file():
            if (directory / ARTIFACTS / "spec.json").is_file():
                return directory
            raise RunError(
                f"{directory}: is an MLflow model, but lacks {ARTIFACTS}/spec.json; "
                "only models packaged by `trainer fit` can be used here; use `mlflow models serve` for others"
            )
    if not run_or_model.exists():
        raise RunError(f"{run_or_model}: does not exist; name a run directory or an MLflow model directory")
    raise RunError(
        f"{run_or_model}: contains no model, looked for MLmodel and model/MLmodel; name the directory that "
        "`trainer fit` printed. A run that has not finished has no model yet"
    )


def find_artifacts(run_or_model: Path) -> Path:
    """The directory with `spec.json` and `weights.pt` in the model directory; errors as for `find_model`."""
    return find_model(run_or_model) / ARTIFACTS
