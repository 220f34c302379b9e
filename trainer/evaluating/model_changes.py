"""Writes score thresholds for each class, or a calibration, into a packaged model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from serving.locate import ARTIFACTS, find_model
from serving.package import replace_model, write_model
from serving.scorer import WEIGHTS_FILE, read_family
from trainer.errors import RunError
from trainer.models.score_calibration import ScoreCalibration
from trainer.models.spec import Spec


def apply_thresholds(run_or_model: Path, thresholds: Mapping[str, float], output: Path | None = None) -> Path:
    """Give a model a score threshold for each class.

    Its `box_score_threshold` becomes the lowest of them; a request's own box_score_threshold applies to all
    classes instead. Classes not in `thresholds` keep theirs. The model is written again, with the code of the
    installed version.

    Args:
        thresholds: class name → score in [0, 1].
        output: directory for the new model; None changes the model in place.

    Returns:
        The changed model's directory.

    Raises:
        RunError: there is no model, it is a classifier, `thresholds` is empty, or the model cannot be
        written.
    """
    directory = find_model(run_or_model)
    spec = read_family(directory / ARTIFACTS).spec
    if not spec.task.has_boxes:
        raise RunError(
            f"{directory}: a model for {spec.task} has no score thresholds; it returns all probabilities"
        )
    if not thresholds:
        raise RunError(f"{directory}: there is no threshold to apply, as no object was detected")
    previous = spec.class_score_thresholds
    merged = {
        name: thresholds.get(name, previous.get(name, spec.parameters.box_score_threshold))
        for name in spec.classes
    }
    new_spec = spec.model_copy(
        update={
            "parameters": spec.parameters.model_copy(update={"box_score_threshold": min(merged.values())}),
            "class_score_thresholds": merged,
        }
    )
    return _write_again(directory, new_spec, output)


def apply_calibration(run_or_model: Path, calibration: ScoreCalibration, output: Path | None = None) -> Path:
    """Calibrate a model's scores, after the calibration that it may have already.

    Thresholds of classes are changed with the scores. The model is written again, with the code of the
    installed version.

    Args:
        calibration: fitted to the scores of the model's answers.
        output: directory for the new model; None changes the model in place.

    Returns:
        The changed model's directory.

    Raises:
        RunError: there is no model, or it cannot be written.
    """
    directory = find_model(run_or_model)
    spec = read_family(directory / ARTIFACTS).spec
    return _write_again(directory, spec.calibrated(calibration), output)


def _write_again(directory: Path, spec: Spec, output: Path | None) -> Path:
    """Write a model with another spec, in place or as a new model."""
    import torch

    weights = torch.load(directory / ARTIFACTS / WEIGHTS_FILE, map_location="cpu", weights_only=True)
    if output is not None:
        return write_model(output, spec, weights)
    try:
        replace_model(directory, spec, weights)
    except OSError as error:
        raise RunError(f"{directory}: cannot be changed: {error.strerror}") from error
    return directory
