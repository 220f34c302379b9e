"""COCO's metrics against pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from trainer import metrics
from trainer.annotations import Detections, FloatArray, Mask, Objects
from trainer.metrics.coco import NAMES
from trainer.tasks import Task

CLASSES = ("a", "b", "never", "only predicted")
Pair = tuple[Detections, Objects]

# pycocotools has not caught up with NumPy 2
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def random_pairs(seed: int, *, masks: bool, most_found: int = 12, crowds: float = 0.15) -> list[Pair]:
    """Images of several sizes with objects of all three of COCO's sizes, some images without objects."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(8):
        size = (int(rng.integers(60, 300)), int(rng.integers(60, 300)))
        true = int(rng.integers(0, 8))
        boxes = random_boxes(rng, true)
        labels = rng.integers(0, 2, true)
        noise = int(rng.integers(0, most_found))
        found_boxes = np.concatenate(
            [(boxes + rng.normal(0, 0.02, boxes.shape)).clip(0, 1), random_boxes(rng, noise)]
        ).astype(np.float32)
        found_boxes[:, 2:] = np.maximum(found_boxes[:, 2:], found_boxes[:, :2])
        found_labels = np.concatenate([labels, rng.choice([0, 1, 3], noise)])
        scores = np.sort(rng.random(len(found_labels)).astype(np.float32))[::-1].copy()
        shuffled = rng.permutation(len(found_labels))
        found_boxes, found_labels = found_boxes[shuffled], found_labels[shuffled]
        prediction = Detections(
            found_boxes,
            found_labels,
            scores,
            size,
            tuple(ellipse(box, size) for box in found_boxes) if masks else None,
        )
        crowd = rng.random(true) < crowds
        # every other object is in two pieces, as one that something hides in part
        polygons = (
            tuple((diamond(box),) if i % 2 else halves(box) for i, box in enumerate(boxes)) if masks else None
        )
        pairs.append((prediction, Objects(boxes, labels, crowd, polygons)))
    return pairs


def random_boxes(rng: np.random.Generator, count: int) -> FloatArray:
    sides = rng.choice([0.1, 0.3, 0.6], (count, 1)) * rng.uniform(0.7, 1.3, (count, 2))
    corner = rng.uniform(0, 1 - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def diamond(box: FloatArray) -> FloatArray:
    left, top, right, bottom = box
    x, y = (left + right) / 2, (top + bottom) / 2
    return np.array([[x, top], [right, y], [x, bottom], [left, y]], dtype=np.float32)


def halves(box: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The left and the right part of a box's diamond, with a gap between them."""
    left, top, right, bottom = box
    x, y, gap = (left + right) / 2, (top + bottom) / 2, (right - left) / 40
    one = np.array([[x - gap, top], [x - gap, bottom], [left, y]], dtype=np.float32)
    other = np.array([[x + gap, top], [right, y], [x + gap, bottom]], dtype=np.float32)
    return one, other


def ellipse(box: FloatArray, size: tuple[int, int]) -> Mask:
    height, width = size
    left, top, right, bottom = np.round(box * (width, height, width, height)).astype(int).tolist()
    y, x = np.mgrid[top:bottom, left:right] + 0.5
    inside = ((x - (left + right) / 2) / max((right - left) / 2, 1)) ** 2 + (
        (y - (top + bottom) / 2) / max((bottom - top) / 2, 1)
    ) ** 2 <= 0.7
    return Mask(left, top, inside)


def oracle(pairs: list[Pair], *, masks: bool) -> dict[str, float]:
    """pycocotools, given polygons and dense masks."""
    images, targets, found = [], [], []
    for number, (prediction, target) in enumerate(pairs, 1):
        height, width = prediction.image_size
        images.append({"id": number, "height": height, "width": width})
        factor = (width, height, width, height)
        for index, box in enumerate(target.boxes.astype(np.float64) * factor):
            left, top, right, bottom = box.tolist()
            entry: dict[str, Any] = {
                "id": len(targets) + 1,
                "image_id": number,
                "category_id": int(target.labels[index]) + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": int(target.crowd[index]),
            }
            if masks:
                assert target.polygons is not None
                segments = [
                    (segment.astype(np.float64) * (width, height)).ravel().tolist()
                    for segment in target.polygons[index]
                ]
                entry["segmentation"] = coco_masks.merge(coco_masks.frPyObjects(segments, height, width))
                entry["area"] = float(coco_masks.area(entry["segmentation"]))
            targets.append(entry)
        for index, box in enumerate(prediction.boxes.astype(np.float64) * factor):
            left, top, right, bottom = box.tolist()
            entry = {
                "image_id": number,
                "category_id": int(prediction.labels[index]) + 1,
                "score": float(prediction.scores[index]),
            }
            if masks:
                assert prediction.masks is not None
                mask = prediction.masks[index]
                full = np.zeros((height, width), dtype=np.uint8, order="F")
                rows, columns = mask.pixels.shape
                full[mask.top : mask.top + rows, mask.left : mask.left + columns] = mask.pixels
                entry["segmentation"] = coco_masks.encode(full)
            else:
                entry["bbox"] = [left, top, right - left, bottom - top]
            found.append(entry)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES, 1)]
        coco.dataset = {"images": images, "categories": categories, "annotations": targets}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "segm" if masks else "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats.tolist(), strict=True))


def evaluate(pairs: list[Pair], *, masks: bool, metric_type: str = "coco_voc") -> dict[str, float]:
    evaluator = metrics.create(
        Task.SEGMENTATION if masks else Task.DETECTION, CLASSES, metric_type=metric_type
    )
    for prediction, target in pairs:
        evaluator.update(prediction, target)
    return evaluator.compute()


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("seed", range(6))
def test_metrics_equal_those_of_pycocotools(masks: bool, seed: int) -> None:
    pairs = random_pairs(seed, masks=masks)
    result = evaluate(pairs, masks=masks)
    expected = oracle(pairs, masks=masks)
    assert {name: result[name] for name in NAMES} == pytest.approx(expected, abs=1e-6)
    assert 0.05 < result["map"] < 0.95  # the scenes say something


def test_more_than_100_detections_per_image() -> None:
    pairs = random_pairs(9, masks=False, most_found=500)
    assert max(len(prediction.scores) for prediction, _ in pairs) > 300
    expected = oracle(pairs, masks=False)
    assert {name: evaluate(pairs, masks=False)[name] for name in NAMES} == pytest.approx(expected, abs=1e-6)


def test_tied_scores_are_ranked_as_in_pycocotools() -> None:
    pairs = random_pairs(11, masks=False)
    for prediction, _ in pairs:
        prediction.scores[:] = np.round(prediction.scores * 4) / 4
    result, expected = evaluate(pairs, masks=False), oracle(pairs, masks=False)
    assert {name: result[name] for name in NAMES} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_metrics_of_crowds_alone_are_undefined(masks: bool) -> None:
    pairs = random_pairs(2, masks=masks, crowds=1.0)
    result = evaluate(pairs, masks=masks)
    assert {name: result[name] for name in NAMES} == oracle(pairs, masks=masks) == dict.fromkeys(NAMES, -1.0)


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_metrics_without_matches_are_zero(masks: bool) -> None:
    nothing = Detections(
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
        np.zeros(0, np.float32),
        (50, 50),
        () if masks else None,
    )
    target = next(target for _, target in random_pairs(2, masks=masks, crowds=0.0) if len(target.labels))
    result = evaluate([(nothing, target)], masks=masks)
    assert result["map"] == result["mar_100"] == result["mean_average_precision"] == 0


def test_metrics_without_targets_are_undefined() -> None:
    pairs = random_pairs(2, masks=False)
    nothing = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    result = evaluate([(prediction, nothing) for prediction, _ in pairs], masks=False)
    assert all(result[name] == -1 for name in NAMES)
    assert result["precision"] == 0


def test_object_sizes_are_measured_in_pixels() -> None:
    """A box of a tenth of the image's sides is small at 100 pixels, medium at 500, large at 2000."""
    box = np.array([[0.1, 0.1, 0.2, 0.2]], dtype=np.float32)
    for side, name in ((100, "map_small"), (500, "map_medium"), (2000, "map_large")):
        prediction = Detections(box, np.array([0]), np.ones(1, dtype=np.float32), (side, side))
        result = evaluate([(prediction, Objects(box, np.array([0]), np.array([False])))], masks=False)
        sizes = {key: result[key] for key in ("map_small", "map_medium", "map_large")}
        assert sizes == {key: pytest.approx(1.0) if key == name else -1 for key in sizes}


def test_metric_type_selects_the_metrics() -> None:
    pairs = random_pairs(1, masks=False)
    voc, coco, both, none = (
        evaluate(pairs, masks=False, metric_type=kind) for kind in ("voc", "coco", "coco_voc", "none")
    )
    assert list(voc) == ["mean_average_precision", "precision", "recall"]
    assert coco["mean_average_precision"] == coco["map_50"]
    assert both == voc | {name: coco[name] for name in NAMES}
    assert voc["mean_average_precision"] != coco["map_50"]
    assert none == {}
