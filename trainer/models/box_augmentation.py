"""Augmentation of images with their boxes and polygons: crop around the boxes, expansion, scaling, flip."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from trainer.annotations import FloatArray, Image, Objects
from trainer.models.geometry import Geometry
from trainer.models.masks import rasterise

JITTER = (0.1, 2.0)
"""The scales of large-scale jitter."""
_MEAN_COLOUR = (124, 116, 104)  # ImageNet's, which normalises to zero


def augment(image: Image, objects: Objects, generator: np.random.Generator) -> tuple[Image, Objects]:
    """Crop or expand (p = .5), then flip (p = .5)."""
    if generator.random() < 0.5:
        change = _crop if generator.random() < 0.5 else _expand
        image, objects = change(image, objects, generator)
    return flip(image, objects, generator)


def flip(image: Image, objects: Objects, generator: np.random.Generator) -> tuple[Image, Objects]:
    """Mirror left and right (p = .5)."""
    if generator.random() < 0.5:
        image = np.asarray(cv2.flip(image, 1), dtype=np.uint8)
        objects = _moved(objects, np.array([-1.0, 1.0]), np.array([1.0, 0.0]))
    return image, objects


def jitter_scale(
    image: Image, objects: Objects, size: tuple[int, int], generator: np.random.Generator
) -> tuple[Image, Objects]:
    """Large-scale jitter: resize to ×0.1–×2 of `size`; then crop to it, or place on a canvas of that size.

    The scale and the position of the crop or on the canvas are uniform. An object is dropped if less than a
    pixel's width or height of it remains; the box of a cropped object shrinks to the rest of its polygons.
    Source: Ghiasi et al. 2021, who place the image in the canvas's corner.

    Args:
        size: (height, width) in pixels of the image that the network sees, and of the result.
    """
    scale = generator.uniform(*JITTER)
    height, width = (max(1, round(length * scale)) for length in size)
    interpolation = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=interpolation)
    # The resized image's corner on the canvas; negative where it is cropped.
    top, left = (
        int(generator.integers(min(0, room), max(0, room), endpoint=True))
        for room in (size[0] - height, size[1] - width)
    )
    canvas = np.full((*size, 3), _MEAN_COLOUR, dtype=np.uint8)
    part = resized[max(0, -top) : size[0] - top, max(0, -left) : size[1] - left]
    y, x = max(0, top), max(0, left)
    canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
    factor, offset = np.array([width / size[1], height / size[0]]), np.array([left / size[1], top / size[0]])
    return canvas, _visible(_moved(objects, factor, offset), size)


def _visible(objects: Objects, size: tuple[int, int]) -> Objects:
    """The objects of which at least a pixel is left in an image of (height, width) pixels."""
    boxes = objects.boxes.copy()
    if objects.polygons is not None:
        geometry = Geometry(size, size, (1.0, 1.0))
        for i in np.flatnonzero(((boxes <= 0) | (boxes >= 1)).any(axis=1)):
            bounds = _bounds(rasterise(objects.polygons[i], geometry))
            boxes[i, :2] = np.maximum(boxes[i, :2], bounds[:2])
            boxes[i, 2:] = np.minimum(boxes[i, 2:], bounds[2:])
    kept = np.flatnonzero(((boxes[:, 2:] - boxes[:, :2]) * size[::-1] >= 1).all(axis=1))
    polygons = objects.polygons and tuple(objects.polygons[i] for i in kept)
    return Objects(boxes[kept], objects.labels[kept], objects.crowd[kept], polygons)


def _bounds(mask: npt.NDArray[np.uint8]) -> FloatArray:
    """The normalised box around a mask's pixels; zeros if it has none."""
    height, width = mask.shape
    left, top, columns, rows = cv2.boundingRect(mask)
    box = [left / width, top / height, (left + columns) / width, (top + rows) / height]
    return np.array(box, dtype=np.float32)


def _crop(image: Image, objects: Objects, generator: np.random.Generator) -> tuple[Image, Objects]:
    """Crop a random part of the margin around all boxes, so that no object is cut."""
    if not len(objects.boxes):
        return image, objects
    height, width = image.shape[:2]
    left, top = generator.uniform(0, objects.boxes[:, :2].min(axis=0))
    right, bottom = generator.uniform(objects.boxes[:, 2:].max(axis=0), 1)
    x1, y1 = int(left * width), int(top * height)
    x2, y2 = math.ceil(right * width), math.ceil(bottom * height)
    scale = np.array([width / (x2 - x1), height / (y2 - y1)])
    return image[y1:y2, x1:x2], _moved(objects, scale, np.array([-x1 / (x2 - x1), -y1 / (y2 - y1)]))


def _expand(image: Image, objects: Objects, generator: np.random.Generator) -> tuple[Image, Objects]:
    """Place the image at random on a canvas up to twice as large, in the ImageNet mean colour."""
    height, width = image.shape[:2]
    factor = generator.uniform(1, 2)
    size = (int(height * factor), int(width * factor))
    top, left = generator.integers(0, size[0] - height + 1), generator.integers(0, size[1] - width + 1)
    bottom, right = size[0] - height - top, size[1] - width - left
    # Takes a tenth of the time of filling an array with a colour.
    border = (int(top), int(bottom), int(left), int(right), cv2.BORDER_CONSTANT)
    canvas = np.asarray(cv2.copyMakeBorder(image, *border, value=_MEAN_COLOUR), dtype=np.uint8)
    scale = np.array([width / size[1], height / size[0]])
    return canvas, _moved(objects, scale, np.array([left / size[1], top / size[0]]))


def _moved(objects: Objects, scale: npt.NDArray[np.float64], shift: npt.NDArray[np.float64]) -> Objects:
    """Transform objects by (x, y) · scale + shift, in normalised coordinates; a negative scale mirrors."""
    corners = objects.boxes.reshape(-1, 2, 2) * scale + shift
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).clip(0, 1).astype(np.float32)
    polygons = objects.polygons and tuple(
        tuple((polygon * scale + shift).astype(np.float32) for polygon in segments)
        for segments in objects.polygons
    )
    return Objects(boxes, objects.labels, objects.crowd, polygons)
