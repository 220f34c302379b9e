"""The best score thresholds, written into a packaged model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from serving.locate import ARTIFACTS, find_model
from serving.package import write_model
from serving.scorer import WEIGHTS_FILE, read_spec
from trainer.errors import RunError


def apply(run_or_model: Path, thresholds: Mapping[str, float], output: Path | None = None) -> Path:
    """Make a model answer with a score threshold for each class.

    Its `box_score_threshold` becomes the lowest of them, at which it searches; a request that sends another
    one gets that one for all classes. Classes without a threshold here keep theirs. The model is written
    anew, with the code that is installed here.

    Args:
        output: directory for the changed model, the one that is changed then stays as it is; None: in place.

    Returns:
        The changed model's directory.

    Raises:
        RunError: there is no model, it is a classifier, there are no thresholds, or it cannot be written.
    """
    import torch

    directory = find_model(run_or_model)
    spec = read_spec(directory / ARTIFACTS)
    if not spec.task.has_boxes:
        raise RunError(
            f"{directory}: a model for {spec.task} answers with all probabilities and has no thresholds"
        )
    if not thresholds:
        raise RunError(f"{directory}: no class has a threshold to apply, as none of its objects was found")
    former = spec.class_score_thresholds
    every = {
        name: thresholds.get(name, former.get(name, spec.parameters.box_score_threshold))
        for name in spec.classes
    }
    changed = spec.model_copy(
        update={
            "parameters": spec.parameters.model_copy(update={"box_score_threshold": min(every.values())}),
            "class_score_thresholds": every,
        }
    )
    weights = torch.load(directory / ARTIFACTS / WEIGHTS_FILE, map_location="cpu", weights_only=True)
    if output is not None:
        return write_model(output, changed, weights)
    try:
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
            made = write_model(Path(scratch) / "new", changed, weights)
            directory.rename(Path(scratch) / "old")
            made.rename(directory)
    except OSError as error:
        raise RunError(f"{directory}: cannot be changed: {error.strerror}") from error
    return directory
