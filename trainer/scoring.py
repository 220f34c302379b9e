"""What a caller may ask of a model for each request: thresholds and limits, with their ranges."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


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
