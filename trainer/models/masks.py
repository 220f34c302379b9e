"""Masks as polygons, as a network's small grids, and as pixels of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.annotations import FloatArray, IntArray, Mask, Objects
from trainer.models.geometry import Geometry
from trainer.polygons import overlap, regions, trace

_UNION_SIDE = 1024
_PIXELS_AT_ONCE = 1_000_000  # so that a large mask is never a floating-point array as a whole


def rasterise(polygons: Sequence[FloatArray], geometry: Geometry) -> NDArray[np.uint8]:
    """Normalised polygons of one object → uint8 [h, w] of 0 and 1 in tensor pixels.

    A pixel is 1 if its centre is inside the object, as `trainer.polygons.regions` reads its polygons. COCO's
    masks (`trainer.metrics.masks`) follow the same rule except for rounding at the edges. OpenCV's fillPoly
    also draws the outline, which would make each object a pixel wider and higher.
    """
    height, width = geometry.image_size
    factor = np.array([width * geometry.scale[0], height * geometry.scale[1]])
    canvas = np.zeros(geometry.tensor_size, dtype=np.uint8)

    def fill(target: NDArray[np.uint8], polygon: FloatArray) -> None:
        _fill(target, polygon.astype(np.float64) * factor + geometry.offset)

    for region in regions(polygons):
        if not region.holes:
            fill(canvas, region.outline)
            continue
        solid, empty = np.zeros_like(canvas), np.zeros_like(canvas)
        fill(solid, region.outline)
        for hole in region.holes:
            fill(empty, hole)
        canvas |= solid & ~empty
    return canvas


def rasterise_all(objects: Objects, indices: IntArray, geometry: Geometry) -> NDArray[np.uint8]:
    """The masks of some of an image's objects: uint8 [n, h, w] of 0 and 1 in tensor pixels."""
    assert objects.polygons is not None, "segmentation data hold polygons"
    masks = np.zeros((len(indices), *geometry.tensor_size), dtype=np.uint8)
    for mask, index in zip(masks, indices, strict=True):
        mask[:] = rasterise(objects.polygons[index], geometry)
    return masks


def without_overlap(polygons: Sequence[FloatArray]) -> list[FloatArray]:
    """Polygons of the same object that enclose its area by the even-odd rule, too.

    Only polygons across each other change: to the outlines of their pixels, 1024 along a side of their box.
    """
    if not overlap(polygons):
        return list(polygons)
    points = np.concatenate(polygons)
    low, size = points.min(axis=0), np.ptp(points, axis=0).clip(1e-7)
    square = (_UNION_SIDE, _UNION_SIDE)
    pixels = rasterise([(polygon - low) / size for polygon in polygons], Geometry(square, square, (1.0, 1.0)))
    outlines = [cv2.approxPolyDP(each.points.astype(np.float32), 1.0, True) for each in trace(pixels > 0)]
    return [
        (outline[:, 0] / _UNION_SIDE * size + low).astype(np.float32)
        for outline in outlines
        if len(outline) >= 3
    ]


def _fill(canvas: NDArray[np.uint8], polygon: NDArray[np.float64]) -> None:
    """Set the pixels whose centre is inside a polygon [n, 2] of (x, y) in pixels."""
    height, width = canvas.shape
    x, y = polygon.T - 0.5  # so that pixel centres have integer coordinates
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    # Each edge crosses the rows first … last − 1, where it separates the pixels on its left from the others.
    first = np.ceil(np.minimum(y, next_y)).clip(0, height).astype(np.int64)
    last = np.ceil(np.maximum(y, next_y)).clip(0, height).astype(np.int64)
    spans = last - first
    if not spans.any():
        return
    top, bottom = int(first[spans > 0].min()), int(last.max())
    edge = np.repeat(np.arange(len(x)), spans)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(spans) - spans, spans)
    crossing = x[edge] + (row - y[edge]) * ((next_x - x)[edge] / (next_y - y)[edge])
    column = np.ceil(crossing).clip(0, width).astype(np.int64)
    left, right = int(column.min()), int(column.max())
    crossings = np.zeros((bottom - top, right - left + 1), dtype=np.uint8)
    np.add.at(crossings.reshape(-1), (row - top) * crossings.shape[1] + column - left, np.uint8(1))
    # 1 where a row is crossed an odd number of times up to the pixel; overflow of the sum does not matter
    canvas[top:bottom, left:right] |= np.cumsum(crossings, axis=1, dtype=np.uint8)[:, :-1] & 1


def paste(box: FloatArray, mask: FloatArray, image_size: tuple[int, int], threshold: float) -> Mask:
    """A mask head's probabilities [m, m] over a normalised box → the pixels of the image that it covers.

    They are sampled bilinearly at the pixel centres, with zeros outside, as in He et al. 2017.
    """
    height, width = image_size
    x1, y1, x2, y2 = (float(v) for v in box * np.array([width, height, width, height], dtype=np.float32))
    left, top = max(0, int(np.floor(x1))), max(0, int(np.floor(y1)))
    right, bottom = min(width, max(left + 1, int(np.ceil(x2)))), min(height, max(top + 1, int(np.ceil(y2))))
    size = mask.shape[0]
    columns = ((np.arange(left, right) + 0.5 - x1) / max(x2 - x1, 1e-6) * size - 0.5).astype(np.float32)
    rows = ((np.arange(top, bottom) + 0.5 - y1) / max(y2 - y1, 1e-6) * size - 0.5).astype(np.float32)
    grid_x, grid_y = np.meshgrid(columns, rows)
    sampled = cv2.remap(mask, grid_x, grid_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return Mask(left, top, sampled >= threshold)


def paste_prototypes(
    box: FloatArray, coefficients: FloatArray, prototypes: FloatArray, geometry: Geometry, threshold: float
) -> Mask:
    """The pixels in a box where the object's mask, a weighted sum of prototypes, is at least `threshold`.

    The sum is sampled bilinearly at the centres of the image's pixels, before the sigmoid, as in ultralytics
    (Bolya et al. 2019, YOLACT). A threshold of 0 gives the whole box.

    Args:
        box: normalised xyxy [4] in the image.
        coefficients: weights of the prototypes, [k]; k is 32 for YOLO.
        prototypes: [k, h', w'] over the tensor that the network saw.
        threshold: minimum probability, in [0, 1].
    """
    height, width = geometry.image_size
    x1, y1, x2, y2 = (float(v) for v in box * np.array([width, height, width, height], dtype=np.float32))
    # Every pixel that the box touches, and at least one.
    left, top = min(width - 1, int(x1)), min(height - 1, int(y1))
    right, bottom = max(left + 1, math.ceil(x2)), max(top + 1, math.ceil(y2))
    columns = _grid_positions(left, right, 0, geometry, prototypes.shape[2])
    rows = _grid_positions(top, bottom, 1, geometry, prototypes.shape[1])
    seen_columns = slice(int(columns[0]), int(columns[-1]) + 2)
    seen_rows = slice(int(rows[0]), int(rows[-1]) + 2)
    logits = np.tensordot(coefficients, prototypes[:, seen_rows, seen_columns], axes=1)
    wide = _interpolate(logits.T, columns - seen_columns.start).T
    limit = logit(threshold)
    pixels = np.empty((bottom - top, right - left), dtype=np.bool_)
    step = max(1, _PIXELS_AT_ONCE // (right - left))
    for start in range(0, len(pixels), step):
        part = slice(start, start + step)
        pixels[part] = _interpolate(wide, rows[part] - seen_rows.start) >= limit
    return Mask(left, top, pixels)


def logit(probability: float) -> float:
    """The inverse of the sigmoid; ∓∞ for 0 and 1."""
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))


def _grid_positions(start: int, stop: int, axis: int, geometry: Geometry, cells: int) -> FloatArray:
    """Fractional cell indices, in [0, cells − 1], of the centres of pixels start … stop − 1.

    Args:
        axis: 0 for columns, 1 for rows.
    """
    tensor = (np.arange(start, stop) + 0.5) * geometry.scale[axis] + geometry.offset[axis]
    positions = tensor * cells / geometry.tensor_size[1 - axis] - 0.5
    return positions.clip(0, cells - 1).astype(np.float32)


def _interpolate(values: FloatArray, positions: FloatArray) -> FloatArray:
    """Interpolate the rows of `values` [n, m] at fractional positions [k], each in [0, n − 1] → [k, m]."""
    lower = positions.astype(np.int64)
    upper = np.minimum(lower + 1, len(values) - 1)
    weight = (positions - lower).astype(np.float32)[:, None]
    result: FloatArray = values[lower] * (1 - weight) + values[upper] * weight
    return result
