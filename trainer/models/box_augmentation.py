"""Augmentation that takes boxes and polygons along: crop around the boxes, expansion, flip."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from trainer.annotations import Image, Objects


def augment(image: Image, truth: Objects, generator: np.random.Generator) -> tuple[Image, Objects]:
    """Crop or expand (p = .5), then flip (p = .5)."""
    if generator.random() < 0.5:
        change = _crop if generator.random() < 0.5 else _expand
        image, truth = change(image, truth, generator)
    if generator.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
        truth = _moved(truth, np.array([-1.0, 1.0]), np.array([1.0, 0.0]))
    return image, truth


def _crop(image: Image, truth: Objects, generator: np.random.Generator) -> tuple[Image, Objects]:
    """Cut away a random part of the margin around all the boxes, so that no object is cut."""
    if not len(truth.boxes):
        return image, truth
    height, width = image.shape[:2]
    left, top = generator.uniform(0, truth.boxes[:, :2].min(axis=0))
    right, bottom = generator.uniform(truth.boxes[:, 2:].max(axis=0), 1)
    x1, y1, x2, y2 = (
        int(left * width),
        int(top * height),
        math.ceil(right * width),
        math.ceil(bottom * height),
    )
    scale = np.array([width / (x2 - x1), height / (y2 - y1)])
    return image[y1:y2, x1:x2], _moved(truth, scale, np.array([-x1 / (x2 - x1), -y1 / (y2 - y1)]))


def _expand(image: Image, truth: Objects, generator: np.random.Generator) -> tuple[Image, Objects]:
    """Place the image at random on a canvas up to twice as large, in the ImageNet mean colour."""
    height, width = image.shape[:2]
    factor = generator.uniform(1, 2)
    size = (int(height * factor), int(width * factor))
    top, left = generator.integers(0, size[0] - height + 1), generator.integers(0, size[1] - width + 1)
    canvas = np.full((*size, 3), (124, 116, 104), dtype=np.uint8)
    canvas[top : top + height, left : left + width] = image
    scale = np.array([width / size[1], height / size[0]])
    return canvas, _moved(truth, scale, np.array([left / size[1], top / size[0]]))


def _moved(truth: Objects, scale: npt.NDArray[np.float64], shift: npt.NDArray[np.float64]) -> Objects:
    """Objects under (x, y) → (x, y) · scale + shift, in normalised coordinates; a negative scale mirrors."""
    corners = truth.boxes.reshape(-1, 2, 2) * scale + shift
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).clip(0, 1).astype(np.float32)
    polygons = truth.polygons and tuple(
        tuple((polygon * scale + shift).astype(np.float32) for polygon in segments)
        for segments in truth.polygons
    )
    return Objects(boxes, truth.labels, truth.crowd, polygons)
