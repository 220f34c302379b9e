"""COCO's twelve figures (cocodataset.org/#detection-eval), computed by faster-coco-eval."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from trainer.annotations import FloatArray, IntArray
from trainer.metrics.masks import Rle, areas
from trainer.metrics.scenes import Scene

NAMES = (
    "map",
    "map_50",
    "map_75",
    "map_small",
    "map_medium",
    "map_large",
    "mar_1",
    "mar_10",
    "mar_100",
    "mar_small",
    "mar_medium",
    "mar_large",
)
"""In the order of the COCO API's summary, named as torchmetrics does: mean average precision over IoU .50 to
.95, at .50, at .75, for small, medium and large objects; mean average recall for at most 1, 10 and 100
detections a class and image, and for small, medium and large objects."""


def figures(scenes: Sequence[Scene], classes: Sequence[str], *, by_masks: bool) -> dict[str, float]:
    """The twelve figures by name, -1 where undefined.

    Args:
        by_masks: compare masks, and measure objects by their masks' area.
    """
    if not any(len(scene.crowd) for scene in scenes):
        return dict.fromkeys(NAMES, -1.0)
    images = [
        {"id": number, "height": scene.size[0], "width": scene.size[1]}
        for number, scene in enumerate(scenes, 1)
    ]
    categories = [{"id": label, "name": name} for label, name in enumerate(classes, 1)]
    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes, 1):
        for entry, crowd in zip(
            _entries(number, scene, scene.truth_boxes, scene.truth_labels, scene.truth_masks),
            scene.crowd.tolist(),
            strict=True,
        ):
            truths.append(entry | {"id": len(truths) + 1, "iscrowd": int(crowd)})
        for entry, score in zip(
            _entries(number, scene, scene.boxes, scene.labels, scene.masks),
            scene.scores.tolist(),
            strict=True,
        ):
            found.append(entry | {"id": len(found) + 1, "iscrowd": 0, "score": score})
    evaluation = COCOeval_faster(
        *(
            COCO({"images": images, "categories": categories, "annotations": annotations})
            for annotations in (truths, found)
        ),
        iouType="segm" if by_masks else "bbox",
        print_function=logging.getLogger(__name__).debug,
    )
    evaluation.run()
    return {name: float(value) for name, value in zip(NAMES, evaluation.stats, strict=True)}


def _entries(
    number: int, scene: Scene, boxes: FloatArray, labels: IntArray, segments: Sequence[Rle]
) -> list[dict[str, Any]]:
    """Objects as COCO annotations in pixels, but for what is particular to truths or to predictions."""
    height, width = scene.size
    pixels = boxes.astype(np.float64) * (width, height, width, height)
    pixels[:, 2:] -= pixels[:, :2]  # COCO's boxes are left, top, width, height
    sizes = areas(segments) if segments else pixels[:, 2] * pixels[:, 3]
    entries: list[dict[str, Any]] = [
        {"image_id": number, "category_id": label + 1, "bbox": box, "area": area}
        for label, box, area in zip(labels.tolist(), pixels.tolist(), sizes.tolist(), strict=True)
    ]
    for entry, segment in zip(entries, segments, strict=False):
        entry["segmentation"] = segment
    return entries
