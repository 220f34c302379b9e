"""What a caller may ask of a model for each request: thresholds and limits, with their ranges."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

OF_MASKS = ("mask_pixel_score_threshold", "max_number_of_polygon_points")
"""Parameters that mean nothing without masks."""
MAX_TILES = 400
"""Of one image; each is a run of the network, and a request may ask for them."""


class ScoringParameters(BaseModel):
    """Thresholds applied when raw network outputs become predictions.

    Training settings inherit these fields, a packaged model stores the values it was trained with as its
    defaults, and every scoring request may override them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    box_score_threshold: float = Field(
        0.3, ge=0, le=1, description="Boxes with a lower score are not returned."
    )
    nms_iou_threshold: float = Field(
        0.5, ge=0, le=1, description="Of two boxes of one class overlapping by more than this IoU, keep one."
    )
    box_detections_per_image: int = Field(100, gt=0, description="Return at most this many boxes an image.")
    mask_pixel_score_threshold: float = Field(
        0.5, ge=0, le=1, description="A pixel with at least this score belongs to the object's mask."
    )
    max_number_of_polygon_points: int = Field(
        100, ge=3, description="A polygon is simplified to at most this many points."
    )
    tile_grid_size: str | None = Field(
        None,
        description="Score the image's tiles, too: columns × rows as 3x2; helps with small objects.",
    )
    tile_overlap_ratio: float = Field(
        0.25, ge=0, lt=1, description="Neighbouring tiles share this part of their width and height."
    )
    tile_predictions_nms_threshold: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Of two boxes of one class from different tiles with a higher IoU, keep one.",
    )

    @field_validator("tile_grid_size", mode="before")
    @classmethod
    def _grid(cls, value: Any) -> Any:
        """3x2, 3X2 and (3, 2) are the same grid."""
        if value is None or not isinstance(value, (str, tuple, list)):
            return value
        text = "x".join(map(str, value)) if isinstance(value, (tuple, list)) else value
        if text.strip().lower() in ("", "none"):
            return None
        found = _GRID.fullmatch(text.strip())
        if found is None or not 1 < int(found[1]) * int(found[2]) <= MAX_TILES:
            raise ValueError(
                f'must be columns and rows such as "3x2" or "(3, 2)", of 2 to {MAX_TILES} tiles together'
            )
        return f"{found[1]}x{found[2]}"


_GRID = re.compile(r"\(?\s*0*([1-9]\d{0,2})\s*[xX×,]\s*0*([1-9]\d{0,2})\s*\)?")
