"""Clips the polygons of objects to a rectangle, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from trainer.annotations import FloatArray
from trainer.models.geometry import Geometry
from trainer.models.masks import rasterise, without_overlap
from trainer.polygons import are_holes, without_equal_pairs

Float64Array: TypeAlias = npt.NDArray[np.float64]

_BOX_SIDE = 1024
_BOX_GEOMETRY = Geometry((_BOX_SIDE, _BOX_SIDE), (_BOX_SIDE, _BOX_SIDE), (1.0, 1.0))
_MIN_THICKNESS = 1e-6
"""Fraction of the rectangle's width or height; thinner pieces are remains of an edge on its border."""


def clip_segments(segments: Sequence[FloatArray], rectangle: Float64Array) -> list[Float64Array]:
    """Clip an object's segments so that holes stay holes, and what is united stays united.

    Args:
        rectangle: xyxy [4] in the segments' coordinates.
    """
    segments = without_overlap(segments)
    pieces = [piece for segment in segments for piece in _clip_polygon(segment, rectangle)]
    # In a rectangle inside a hole, both the hole and the outline around it become the whole rectangle.
    return without_equal_pairs(pieces)


def bounding_box(pieces: Sequence[Float64Array]) -> Float64Array:
    """The box around polygons; zeros if there are none."""
    if not pieces:
        return np.zeros(4)
    points = np.concatenate(pieces)
    low, high = points.min(axis=0), points.max(axis=0)
    if len(pieces) > 1 and are_holes(pieces).any():
        # A hole that reaches the edge may leave less than the outlines' box.
        pixels = rasterise([((p - low) / (high - low)).astype(np.float32) for p in pieces], _BOX_GEOMETRY)
        x, y, columns, rows = cv2.boundingRect(pixels)
        first, last = np.array([x, y]), np.array([x + columns, y + rows])
        step = (high - low) / _BOX_SIDE
        # A side within a pixel of the outlines' box is theirs.
        low, high = (
            np.where(first > 1, low + step * first, low),
            np.where(last < _BOX_SIDE - 1, low + step * last, high),
        )
    return np.concatenate([low, high])


def _clip_polygon(polygon: FloatArray, rectangle: Float64Array) -> list[Float64Array]:
    """Clip a polygon [n, 2] to a rectangle: its pieces."""
    pieces = [polygon.astype(np.float64)]
    for axis, limit, side in (
        (0, rectangle[0], 1),
        (0, rectangle[2], -1),
        (1, rectangle[1], 1),
        (1, rectangle[3], -1),
    ):
        pieces = [part for piece in pieces for part in _clip_at_line(piece, axis, limit, side)]
    min_thickness = _MIN_THICKNESS * (rectangle[2:] - rectangle[:2])
    return [piece for piece in pieces if (np.ptp(piece, axis=0) > min_thickness).all()]


def _clip_at_line(polygon: Float64Array, axis: int, limit: float, side: int) -> list[Float64Array]:
    """Clip a polygon at a line: keep coordinates > limit, or < limit if `side` is −1.

    This walks along the outline like Sutherland and Hodgman (1974), but splits concave polygons: if the
    outline's crossings are sorted along the line, every second stretch between them is inside (even-odd
    rule).
    """
    inside = side * (polygon[:, axis] - limit) > 0
    if inside.all() or not inside.any():
        return [polygon] if inside.all() else []
    # Start where the outline enters; its last point is then outside.
    start_point = int(np.flatnonzero(inside & ~np.roll(inside, 1))[0])
    polygon, inside = np.roll(polygon, -start_point, axis=0), np.roll(inside, -start_point)
    firsts, lasts = (
        np.flatnonzero(inside & ~np.roll(inside, 1)),
        np.flatnonzero(inside & ~np.roll(inside, -1)),
    )
    stretches: list[Float64Array] = []
    crossings: list[float] = []
    for first, last in zip(firsts, lasts, strict=True):
        into = _crossing(polygon[first - 1], polygon[first], axis, limit)
        out_of = _crossing(polygon[last], polygon[last + 1], axis, limit)
        stretches.append(np.stack([into, *polygon[first : last + 1], out_of]))
        crossings += [into[1 - axis], out_of[1 - axis]]
    # Stretch k enters at crossing 2k and leaves at 2k + 1; the line joins neighbouring crossings in pairs.
    order = np.argsort(crossings, kind="stable").reshape(-1, 2)
    joined = np.empty(order.size, dtype=np.int64)
    joined[order] = order[:, ::-1]
    pieces = []
    remaining = set(range(len(stretches)))
    while remaining:
        start_crossing = crossing = 2 * min(remaining)
        piece: list[Float64Array] = []
        while not piece or crossing != start_crossing:
            remaining.discard(crossing // 2)
            piece.append(stretches[crossing // 2][:: -1 if crossing % 2 else 1])
            crossing = int(joined[crossing ^ 1])
        pieces.append(np.concatenate(piece))
    return pieces


def _crossing(start: Float64Array, end: Float64Array, axis: int, limit: float) -> Float64Array:
    """The point where a line between two points on different sides of the limit crosses it."""
    fraction = (limit - start[axis]) / (end[axis] - start[axis])
    point: Float64Array = start + fraction * (end - start)
    point[axis] = limit
    return point
