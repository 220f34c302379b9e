"""COCO's twelve figures (cocodataset.org/#detection-eval), computed by faster-coco-eval."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from trainer.annotations import FloatArray
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.masks import Rle, areas

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


def figures(scenes: Sequence[EvaluatedImage], classes: Sequence[str], *, by_masks: bool) -> dict[str, float]:
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
    targets: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes, 1):
        true_boxes, true_areas = _in_pixels(scene, scene.target_boxes, scene.target_masks)
        rows = zip(
            scene.target_labels.tolist(),
            true_boxes,
            true_areas,
            scene.crowd.astype(int).tolist(),
            strict=True,
        )
        targets += [
            {
                "id": len(targets) + place, "image_id": number, "category_id": label + 1, "bbox": box,
                "area": area, "iscrowd": crowd,
            }
            for place, (label, box, area, crowd) in enumerate(rows, 1)
        ]  # fmt: skip
        found_boxes, found_areas = _in_pixels(scene, scene.boxes, scene.masks)
        scored = zip(scene.labels.tolist(), found_boxes, found_areas, scene.scores.tolist(), strict=True)
        found += [
            {
                "id": len(found) + place, "image_id": number, "category_id": label + 1, "bbox": box,
                "area": area, "iscrowd": 0, "score": score,
            }
            for place, (label, box, area, score) in enumerate(scored, 1)
        ]  # fmt: skip
        if by_masks:
            for entries, segments in ((targets, scene.target_masks), (found, scene.masks)):
                for entry, segment in zip(entries[len(entries) - len(segments) :], segments, strict=True):
                    entry["segmentation"] = segment
    evaluation = COCOeval_faster(
        *(
            _Annotations({"images": images, "categories": categories, "annotations": annotations})
            for annotations in (targets, found)
        ),
        iouType="segm" if by_masks else "bbox",
        print_function=logging.getLogger(__name__).debug,
    )
    evaluation.run()
    return {name: float(value) for name, value in zip(NAMES, evaluation.stats, strict=True)}


class _Annotations(COCO):  # type: ignore[misc]  # it is untyped
    """COCO's container for what is evaluated as a whole, image by image: the index over it is spared."""

    def createIndex(self) -> None:  # noqa: N802  its name
        """Find images and categories by their ids."""
        self.imgs = {image["id"]: image for image in self.dataset["images"]}
        self.cats = {category["id"]: category for category in self.dataset["categories"]}

    def getAnnIds(self, *_: Any, **__: Any) -> list[int]:  # noqa: N802
        """All of them."""
        return [entry["id"] for entry in self.dataset["annotations"]]

    def loadAnns(self, ids: Sequence[int] = ()) -> list[dict[str, Any]]:  # noqa: N802
        """All of them, as is asked for."""
        assert len(ids) == len(self.dataset["annotations"]), "nobody asks for a part"
        annotations: list[dict[str, Any]] = self.dataset["annotations"]
        return annotations


def _in_pixels(
    scene: EvaluatedImage, boxes: FloatArray, segments: Sequence[Rle]
) -> tuple[list[list[float]], list[float]]:
    """Boxes as COCO has them, left, top, width and height in pixels, and the areas of the objects."""
    height, width = scene.size
    pixels = boxes.astype(np.float64) * (width, height, width, height)
    pixels[:, 2:] -= pixels[:, :2]
    sizes = areas(segments) if segments else pixels[:, 2] * pixels[:, 3]
    return pixels.tolist(), sizes.tolist()
