"""What remains of an image's objects once a library has moved them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from trainer.annotations import FloatArray, IntArray, Objects
from trainer.models.clipping import bounding_box, clip_segments
from trainer.polygons import trace

Polygons = Sequence[Sequence[FloatArray]]

_WHOLE = np.array([0.0, 0.0, 1.0, 1.0])
_ROUNDING = 1e-6


def place(
    objects: Objects, indices: IntArray, boxes: FloatArray, polygons: Polygons | None, size: tuple[int, int]
) -> Objects:
    """The objects in an augmented image: cut at its edges, without those of which less than a pixel is left.

    Args:
        objects: before the augmentation.
        indices: which of them a library has kept.
        boxes: of these, normalised, [n, 4].
        polygons: of these; the box of an object with polygons is that around the rest of them.
        size: (height, width) of the augmented image in pixels.
    """
    boxes = boxes.astype(np.float32).reshape(-1, 4).clip(0, 1)
    cut: list[tuple[FloatArray, ...]] = []
    for row, segments in enumerate(polygons or ()):
        box, pieces = _cut(segments)
        boxes[row] = box
        cut.append(pieces)
    least = 1 - 1e-3  # of a pixel; a whole one may be a little less in float32
    kept = np.flatnonzero(((boxes[:, 2:] - boxes[:, :2]) * size[::-1] >= least).all(axis=1))
    chosen = indices[kept]
    return Objects(
        boxes=boxes[kept],
        labels=objects.labels[chosen],
        crowd=objects.crowd[chosen],
        polygons=None if polygons is None else tuple(cut[row] for row in kept.tolist()),
    )


def _cut(segments: Sequence[FloatArray]) -> tuple[npt.NDArray[np.floating], tuple[FloatArray, ...]]:
    """The box of what is inside the image of an object, and its segments there, both normalised."""
    points = np.concatenate([np.zeros((0, 2), dtype=np.float32), *segments])
    if not len(points):
        return np.zeros(4), ()
    if points.min() >= -_ROUNDING and points.max() <= 1 + _ROUNDING:  # most are, and stay as they are
        box = np.concatenate([points.min(axis=0), points.max(axis=0)])
        return box.clip(0, 1), tuple(part.clip(0, 1).astype(np.float32) for part in segments)
    pieces = clip_segments(segments, _WHOLE)
    return bounding_box(pieces).clip(0, 1), tuple(piece.clip(0, 1).astype(np.float32) for piece in pieces)


def points_of(objects: Objects, indices: IntArray) -> tuple[FloatArray, list[list[int]]]:
    """The points of some objects' polygons, normalised [points, 2], and how many each segment has."""
    assert objects.polygons is not None, "segmentation data hold polygons"
    chosen = [objects.polygons[index] for index in indices.tolist()]
    points = [part for segments in chosen for part in segments]
    counts = [[len(part) for part in segments] for segments in chosen]
    return np.concatenate([np.zeros((0, 2), dtype=np.float32), *points]), counts


def polygons_of(points: FloatArray, counts: Iterable[Iterable[int]]) -> list[list[FloatArray]]:
    """Points as `points_of` returns them → each object's segments."""
    start = 0
    polygons = []
    for of_object in counts:
        segments = []
        for count in of_object:
            segments.append(points[start : start + count])
            start += count
        polygons.append(segments)
    return polygons


def traced(mask: npt.NDArray[np.uint8]) -> list[FloatArray]:
    """The outlines of a mask's pixels, [h, w] of 0 and others, as normalised segments."""
    left, top, columns, rows = cv2.boundingRect(mask)
    part = mask[top : top + rows, left : left + columns] > 0
    height, width = mask.shape
    corner, whole = np.array([left, top]), np.array([width, height])
    return [((outline.points + corner) / whole).astype(np.float32) for outline in trace(part)]
