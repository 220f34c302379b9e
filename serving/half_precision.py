"""How far a model's answers in half precision are from those in float32, on images made for it."""

from __future__ import annotations

import numpy as np

from serving.answers import Answer
from serving.scorer import Scorer
from trainer.annotations import FloatArray, Image

_IMAGES, _SIZE = 4, (320, 480)
_BOXES = 100  # of an image that are compared, those with the highest scores


def difference(scorer: Scorer) -> str:
    """Score images in a scorer's precision and in float32, and say how far apart the answers are.

    The images are coloured rectangles, not those that the model is for: `trainer evaluate --precision`
    measures it on data.
    """
    task = scorer.spec.task
    requested = {"box_score_threshold": 0.0, "box_detections_per_image": _BOXES} if task.has_boxes else {}
    parameters = scorer.parameters(requested)
    exact = scorer.replica()
    exact.precision = "float32"
    images = _images()
    halves, wholes = (each.score_images(images, parameters) for each in (scorer, exact))
    pairs = list(zip(halves, wholes, strict=True))
    if not task.has_boxes:
        largest = max(np.abs(np.subtract(half["probs"], whole["probs"])).max() for half, whole in pairs)
        return f"probabilities differ by up to {largest:.1g}"
    scores = max(_score_difference(*pair) for pair in pairs)
    shifts = np.concatenate([_shifts(*pair) for pair in pairs])
    shift = np.median(shifts) if len(shifts) else 0.0
    return f"scores differ by up to {scores:.1g}, and boxes by {shift:.2%} of the image's side (median)"


def _score_difference(half: Answer, whole: Answer) -> float:
    """The largest difference of two answers' scores, box by box in descending order."""
    one, other = ([box["score"] for box in answer["boxes"]] for answer in (half, whole))
    count = min(len(one), len(other))
    return float(np.abs(np.subtract(one[:count], other[:count])).max(initial=0))


def _shifts(half: Answer, whole: Answer) -> FloatArray:
    """How far each box's corners are from those of the nearest box of its class, as fractions [n]."""
    shifts = [np.zeros(0, dtype=np.float32)]
    for label in {box["label"] for box in half["boxes"]}:
        corners, targets = (_corners(answer, label) for answer in (half, whole))
        if len(targets):
            shifts.append(np.abs(corners[:, None] - targets).max(axis=2).min(axis=1))
    return np.concatenate(shifts)


def _corners(answer: Answer, label: str) -> FloatArray:
    """The boxes of a class, normalised xyxy, float32 [n, 4]."""
    sides = ("topX", "topY", "bottomX", "bottomY")
    boxes = [[box["box"][side] for side in sides] for box in answer["boxes"] if box["label"] == label]
    return np.array(boxes, dtype=np.float32).reshape(-1, 4)


def _images() -> list[Image]:
    generator = np.random.default_rng(0)
    images = []
    for _ in range(_IMAGES):
        image = generator.integers(90, 140, (*_SIZE, 3), dtype=np.uint8)
        for _ in range(5):
            y, x = (int(generator.integers(0, side - 60)) for side in _SIZE)
            height, width = generator.integers(40, 160, 2)
            image[y : y + height, x : x + width] = generator.integers(0, 255, 3)
        images.append(image)
    return images
