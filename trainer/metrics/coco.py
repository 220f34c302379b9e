"""COCO's twelve metrics (cocodataset.org/#detection-eval), computed by faster-coco-eval."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from trainer.annotations import FloatArray
from trainer.metric_names import COCO as NAMES
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.masks import Rle, areas


def compute(images: Sequence[EvaluatedImage], classes: Sequence[str], *, by_masks: bool) -> dict[str, float]:
    """Compute the twelve metrics by name; -1 if undefined.

    Args:
        by_masks: compare masks, and measure objects by their masks' area.
    """
    if not any(len(image.crowd) for image in images):
        return dict.fromkeys(NAMES, -1.0)
    image_entries = [
        {"id": number, "height": image.size[0], "width": image.size[1]}
        for number, image in enumerate(images, 1)
    ]
    categories = [{"id": label, "name": name} for label, name in enumerate(classes, 1)]
    targets: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for number, image in enumerate(images, 1):
        target_boxes, target_areas = _in_pixels(image, image.target_boxes, image.target_masks)
        rows = zip(
            image.target_labels.tolist(),
            target_boxes,
            target_areas,
            image.crowd.astype(int).tolist(),
            strict=True,
        )
        targets += [
            {
                "id": len(targets) + place, "image_id": number, "category_id": label + 1, "bbox": box,
                "area": area, "iscrowd": crowd,
            }
            for place, (label, box, area, crowd) in enumerate(rows, 1)
        ]  # fmt: skip
        boxes, box_areas = _in_pixels(image, image.boxes, image.masks)
        scored = zip(image.labels.tolist(), boxes, box_areas, image.scores.tolist(), strict=True)
        predictions += [
            {
                "id": len(predictions) + place, "image_id": number, "category_id": label + 1, "bbox": box,
                "area": area, "iscrowd": 0, "score": score,
            }
            for place, (label, box, area, score) in enumerate(scored, 1)
        ]  # fmt: skip
        if by_masks:
            for entries, segments in ((targets, image.target_masks), (predictions, image.masks)):
                for entry, segment in zip(entries[len(entries) - len(segments) :], segments, strict=True):
                    entry["segmentation"] = segment
    evaluation = COCOeval_faster(
        *(
            _Annotations({"images": image_entries, "categories": categories, "annotations": annotations})
            for annotations in (targets, predictions)
        ),
        iouType="segm" if by_masks else "bbox",
        print_function=logging.getLogger(__name__).debug,
    )
    evaluation.run()
    return {name: float(value) for name, value in zip(NAMES, evaluation.stats, strict=True)}


def of_type(
    metric_type: str, images: Sequence[EvaluatedImage], classes: Sequence[str], *, by_masks: bool
) -> dict[str, float]:
    """COCO's metrics if `metric_type` includes them; for coco alone, also the mean average precision."""
    if "coco" not in metric_type:
        return {}
    values = compute(images, classes, by_masks=by_masks)
    return values | ({"mean_average_precision": values["map_50"]} if metric_type == "coco" else {})


class _Annotations(COCO):  # type: ignore[misc]  # untyped
    """COCO's container without its index, which costs time and is not needed to evaluate all images."""

    def createIndex(self) -> None:  # noqa: N802  the base class's name
        """Index images and categories by id."""
        self.imgs = {image["id"]: image for image in self.dataset["images"]}
        self.cats = {category["id"]: category for category in self.dataset["categories"]}

    def getAnnIds(self, *_: Any, **__: Any) -> list[int]:  # noqa: N802
        """Return all ids."""
        return [entry["id"] for entry in self.dataset["annotations"]]

    def loadAnns(self, ids: Sequence[int] = ()) -> list[dict[str, Any]]:  # noqa: N802
        """Return all annotations, the only request there is."""
        assert len(ids) == len(self.dataset["annotations"]), "COCOeval_faster requests all annotations"
        annotations: list[dict[str, Any]] = self.dataset["annotations"]
        return annotations


def _in_pixels(
    image: EvaluatedImage, boxes: FloatArray, segments: Sequence[Rle]
) -> tuple[list[list[float]], list[float]]:
    """Boxes in COCO's form (left, top, width and height in pixels), and the objects' areas."""
    height, width = image.size
    pixels = boxes.astype(np.float64) * (width, height, width, height)
    pixels[:, 2:] -= pixels[:, :2]
    sizes = areas(segments) if segments else pixels[:, 2] * pixels[:, 3]
    return pixels.tolist(), sizes.tolist()
