"""Scoring parameters: the thresholds and limits that every request may override, with ranges and defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

MASK_PARAMETERS = ("mask_pixel_score_threshold", "max_number_of_polygon_points")
"""Parameters that apply only to models with masks."""
OLDER_NAMES = {
    "box_score_threshold": ("box_score_thresh",),
    "nms_iou_threshold": ("nms_iou_thresh", "box_nms_thresh", "box_iou_thresh"),
    "box_detections_per_image": ("box_detections_per_img",),
    "tile_predictions_nms_threshold": ("tile_predictions_nms_thresh",),
}
"""Names that older jobs and requests have for parameters. R-CNNs called the threshold of NMS box_nms_thresh,
yolov5 called it box_iou_thresh."""
PRESENT_NAMES = {older: name for name, names in OLDER_NAMES.items() for older in names}
MAX_TILES = 400
"""Maximum number of tiles per image. Each tile costs a forward pass, and any request may ask for tiles."""


class ScoringParameters(BaseModel):
    """Thresholds and limits that turn a network's raw outputs into predictions.

    The training settings inherit these fields. A packaged model stores the values of its run as defaults, and
    every scoring request may override them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    box_score_threshold: float = Field(
        0.3, ge=0, le=1, description="Minimum score of a box; boxes with lower scores are not returned."
    )
    nms_iou_threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="NMS: if two boxes of a class overlap by more than this IoU, drop the lower-scoring one. "
        "It has no effect on networks that predict one box for each object.",
    )
    box_detections_per_image: int = Field(100, gt=0, description="Maximum number of boxes per image.")
    mask_pixel_score_threshold: float = Field(
        0.5, ge=0, le=1, description="Minimum score at which a pixel belongs to the object's mask."
    )
    max_number_of_polygon_points: int = Field(
        100, ge=3, description="Maximum number of points per polygon; longer polygons are simplified."
    )
    tile_grid_size: str | None = Field(
        None,
        description="Also score the image in tiles, columns × rows such as 3x2, or none; helps with small "
        "objects.",
    )
    tile_overlap_ratio: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Overlap of neighbouring tiles, as a fraction of their width and height.",
    )
    tile_predictions_nms_threshold: float = Field(
        0.25,
        ge=0,
        le=1,
        description="NMS across tiles: if two boxes of a class from different tiles overlap by more than "
        "this IoU, drop the lower-scoring one.",
    )

    @property
    def replaces_class_thresholds(self) -> bool:
        """Whether box_score_threshold applies to all classes, even where a model has thresholds by class."""
        return False

    @field_validator("tile_grid_size", mode="before")
    @classmethod
    def _grid(cls, value: Any) -> Any:
        """Normalise the spellings of a grid: 3X2 and (3, 2) become "3x2", "none" and "" become None."""
        if value is None or not isinstance(value, (str, tuple, list)):
            return value
        text = "x".join(map(str, value)) if isinstance(value, (tuple, list)) else value
        if text.strip().lower() in ("", "none"):
            return None
        match = _GRID.fullmatch(text.strip())
        if match is None or not 1 < int(match[1]) * int(match[2]) <= MAX_TILES:
            raise ValueError(
                f'must be columns and rows such as "3x2" or "(3, 2)", 2 to {MAX_TILES} tiles in total'
            )
        return f"{match[1]}x{match[2]}"


class RequestParameters(ScoringParameters):
    """The parameters of a request that sets some of them itself; `requested` makes them.

    Attributes:
        sets_box_score_threshold: the request sets box_score_threshold, perhaps to the model's own.
    """

    sets_box_score_threshold: bool

    @property
    def replaces_class_thresholds(self) -> bool:
        """Whether the request sets box_score_threshold."""
        return self.sets_box_score_threshold


def requested(defaults: ScoringParameters, changes: Mapping[str, Any]) -> RequestParameters:
    """The parameters of a request.

    Args:
        defaults: values of the parameters that the request does not set.
        changes: those that it sets, by their present names.

    Raises:
        pydantic.ValidationError: a value is of a wrong type or out of range.
    """
    own = {name: getattr(defaults, name) for name in ScoringParameters.model_fields}
    is_set = "box_score_threshold" in changes
    return RequestParameters.model_validate(
        {**own, **changes, "sets_box_score_threshold": is_set}, strict=True
    )


_GRID = re.compile(r"\(?\s*0*([1-9]\d{0,2})\s*[xX×,]\s*0*([1-9]\d{0,2})\s*\)?")
