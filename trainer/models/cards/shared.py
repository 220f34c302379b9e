"""Values that the cards of several families share."""

from __future__ import annotations

from trainer.scoring import ScoringParameters
from trainer.tasks import Task

CLASSIFICATION = (Task.CLASSIFICATION, Task.MULTILABEL)

HUB_PREFIX = "hf/"
"""With this prefix, a user names any model of the Hugging Face Hub: hf/ORG/NAME or hf/ORG/NAME@REVISION."""

RESNETS = (18, 34, 50, 101, 152)
"""Depths."""

BOX_SETTINGS = (
    *ScoringParameters.model_fields,
    "validation_metric_type",
    "validation_iou_threshold",
    "log_validation_loss",
    "log_training_metrics",
)
SQUARE_SETTINGS = (*BOX_SETTINGS, "image_size", "multi_scale")

# RT-DETRs and DETRs have no modern recipe, because their defaults are their authors' recipes.
ADAMW_MODERN = {
    "optimizer": "adamw",
    # The cosine ends at 0. Metrics gain most near its end, so runs do not stop early; the best epoch is
    # packaged in any case.
    "warmup_cosine_lr_cycles": 0.5,
    "early_stopping": False,
}
