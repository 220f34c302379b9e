"""The spec of a network: what it takes to rebuild and score with it, stored as JSON next to its weights."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from trainer.models.score_calibration import ScoreCalibration
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

SPEC_FORMAT = 1
"""Version of the stored form. Increase it with any change that older releases would misread."""

_DISTRIBUTION = "image-trainer"


class Spec(BaseModel):
    """What a network is, its classes and its scoring defaults.

    Attributes:
        format: version of the stored form; specs without a number are of format 1.
        family: the name of its family's card.
        model: the model's published name.
        classes: sorted class names; a prediction's label is an index into them.
        options: the family's own values, such as the image size.
        parameters: scoring defaults, which requests may override.
        class_score_thresholds: minimum score of a box by class, in effect unless the request sets
            box_score_threshold; other classes use box_score_threshold.
        calibration: turns the network's scores into those of its answers, which all thresholds refer to; None
            leaves them as they are.
        enable_onnx_normalization: an exported network takes images in [0, 255] and normalises them itself.
        substitute_for: the model that the job named, if this one was allowed to take its place; else "".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(default=SPEC_FORMAT, ge=1, le=SPEC_FORMAT)
    family: str
    model: str
    task: Task
    classes: tuple[str, ...]
    options: dict[str, Any]
    parameters: ScoringParameters
    class_score_thresholds: dict[str, float] = {}
    calibration: ScoreCalibration | None = None
    enable_onnx_normalization: bool = False
    substitute_for: str = ""

    def calibrated(self, calibration: ScoreCalibration) -> Spec:
        """The spec with a calibration after its own, if it has one.

        Thresholds of classes go with the scores that they were chosen for, so that the same boxes reach them.
        box_score_threshold stays as the user set it, unless it is the lowest of the classes' thresholds.
        """
        own = self.calibration
        update: dict[str, Any] = {"calibration": own.then(calibration) if own else calibration}
        if self.class_score_thresholds and self.task.has_boxes:
            thresholds = {
                name: calibration.threshold_after(score)
                for name, score in self.class_score_thresholds.items()
            }
            update["class_score_thresholds"] = thresholds
            parameters = {"box_score_threshold": min(thresholds.values())}
            update["parameters"] = self.parameters.model_copy(update=parameters)
        return self.model_copy(update=update)

    @classmethod
    def from_json(cls, text: str | bytes) -> Spec:
        """Read a stored spec of this or an older format.

        Raises:
            ValueError: the text is not a spec, or its format is newer; names the release that wrote it.
        """
        stored = json.loads(text)
        if not isinstance(stored, dict):
            raise ValueError("not a JSON object")
        writer = stored.pop("written_by", None) or f"a newer {_DISTRIBUTION}"
        number = stored.setdefault("format", 1)
        if isinstance(number, int) and number > SPEC_FORMAT:
            raise ValueError(
                f"its format is {number}, while this version reads formats up to {SPEC_FORMAT}; "
                f"use {writer}, which wrote it"
            )
        return cls.model_validate_json(json.dumps(stored))

    def to_json(self) -> str:
        """The stored form, with the release that wrote it for the errors of older ones."""
        try:
            written_by = f"{_DISTRIBUTION} {metadata.version(_DISTRIBUTION)}"
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            written_by = _DISTRIBUTION
        # Left out if empty, so that older releases read the specs of models without them.
        empty = {name for name in ("calibration", "substitute_for") if not getattr(self, name)}
        stored = self.model_dump(mode="json", exclude=empty)
        return json.dumps({**stored, "written_by": written_by}, indent=2)
