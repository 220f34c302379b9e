"""Turns masks into the polygons of the schema: outlines along pixel edges, of holes too, simplified."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, FloatArray, IntArray, Mask
from trainer.polygons import Outline, are_holes, trace

_MAX_SIMPLIFIED = 256
"""Most outlines of a mask that has to be simplified: they are compared with each other. All 2,516 outlines of
a mask of 200 × 200 random pixels took seconds."""

_Points = npt.NDArray[np.float64]


def mask_polygons(
    mask: Mask, image_size: tuple[int, int], box: FloatArray, maximum_points: int
) -> list[list[float]]:
    """The segments of an object, largest first, each `[x1, y1, x2, y2, …]` normalised to [0, 1].

    A hole is a segment inside another one, and runs the other way round. With enough points,
    `trainer.polygons.regions` reads the segments as the same pixels. An empty mask becomes its box.

    Args:
        mask: the object's mask, in pixels of the image.
        image_size: (height, width) in pixels.
        box: the object's box, normalised xyxy [4].
        maximum_points: maximum number of points per segment, at least 3; no segment has fewer than 3.
    """
    height, width = image_size
    corner = np.array([mask.left, mask.top])
    segments = [(points + corner) / (width, height) for points in _segments(mask.pixels, maximum_points)]
    if not segments:
        left, top, right, bottom = (float(side) for side in box)
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        segments = [_at_most(corners, maximum_points)]
    # 1e-6 of an image is far less than a pixel; more digits would double the size of the answer.
    return [segment.clip(0, 1).round(6).ravel().tolist() for segment in segments]


class _Segment(NamedTuple):
    """An outline, simplified to `points`; `shrunk_by` pixels to stay apart from the others."""

    outline: Outline
    points: _Points
    shrunk_by: int = 0


def _segments(pixels: BoolArray, maximum_points: int) -> list[_Points]:
    """Outlines of a mask in its pixels, simplified, largest first.

    Simplified outlines may cross, which would change what is a hole and what is not: the smaller one shrinks
    until it is read as what it is, or is left out if nothing remains of it. Of a mask of noise, such as an
    untrained network's, the smallest outlines are left out, too.
    """
    outlines = sorted(trace(pixels), key=lambda outline: -abs(_signed_area(outline.points)))
    if all(len(outline.points) <= maximum_points for outline in outlines):
        return [outline.points.astype(np.float64) for outline in outlines]
    segments = _simplified(outlines[:_MAX_SIMPLIFIED], maximum_points)
    while len(segments) > 1:
        misread = are_holes([segment.points for segment in segments])
        misread ^= [segment.outline.is_hole for segment in segments]
        if not misread.any():
            break
        # Those inside a larger one may be misread only because of it.
        changed = _outermost([segments[i].outline for i in np.flatnonzero(misread)])
        changed = np.flatnonzero(misread)[changed].tolist()
        rest = [part for i in changed for part in _shrunk(segments[i], maximum_points)]
        segments = _largest_first([s for i, s in enumerate(segments) if i not in set(changed)] + rest)
    return [segment.points for segment in segments]


def _outermost(outlines: list[Outline]) -> IntArray:
    """The indices of those outlines, given largest first, whose box is not inside that of a larger one."""
    low = np.array([outline.points.min(axis=0) for outline in outlines])
    high = np.array([outline.points.max(axis=0) for outline in outlines])
    inside = np.tri(len(outlines), k=-1, dtype=np.bool_)
    for axis in (0, 1):
        inside &= low[:, None, axis] >= low[:, axis]
        inside &= high[:, None, axis] <= high[:, axis]
    return np.flatnonzero(~inside.any(axis=1))


def _simplified(outlines: list[Outline], maximum_points: int, shrunk_by: int = 0) -> list[_Segment]:
    return [_Segment(outline, _simplify(outline.points, maximum_points), shrunk_by) for outline in outlines]


def _largest_first(segments: list[_Segment]) -> list[_Segment]:
    return sorted(segments, key=lambda segment: -abs(_signed_area(segment.outline.points)))


def _shrunk(segment: _Segment, maximum_points: int) -> list[_Segment]:
    """The segment without a margin of pixels, twice as wide as before: in parts, or nothing."""
    by = max(1, 2 * segment.shrunk_by)
    origin = segment.outline.points.min(axis=0)
    filled = np.pad(_filled(segment.outline.points - origin), 1)
    kernel = np.ones((3, 3), dtype=np.uint8)
    rest = cv2.erode(filled, kernel, iterations=by - segment.shrunk_by)[1:-1, 1:-1]
    parts = [Outline(part.points + origin, segment.outline.is_hole) for part in trace(rest.astype(np.bool_))]
    return _simplified(parts, maximum_points, by)


def _filled(outline: IntArray) -> npt.NDArray[np.uint8]:
    """The pixels inside an outline along their edges, uint8 [h, w] of 0 and 1."""
    x, y = outline.T
    changes = np.zeros((y.max() + 1, x.max() + 1), dtype=np.int32)
    up, down = (x[1::2], y[1::2]), (np.roll(x, -1)[1::2], np.roll(y, -1)[1::2])  # ends of its vertical edges
    np.add.at(changes, (up[1], up[0]), 1)
    np.add.at(changes, (down[1], down[0]), -1)
    inside = changes.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] & 1
    return inside.astype(np.uint8)


def _signed_area(outline: IntArray) -> float:
    """The number of pixels inside an outline, negative if it runs like a hole's."""
    x, y = outline.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def _simplify(outline: IntArray, maximum_points: int) -> _Points:
    """Reduce an outline to a maximum number of points, by Douglas-Peucker with the lowest tolerance."""
    if len(outline) <= maximum_points:
        return outline.astype(np.float64)
    contour = _without_notches(outline)
    low, high = 0.0, 0.5
    while len(_within(contour, high)) > maximum_points:
        low, high = high, 2 * high
    for _ in range(6):
        middle = (low + high) / 2
        few_enough = len(_within(contour, middle)) <= maximum_points
        low, high = (low, middle) if few_enough else (middle, high)
    simplified = _within(contour, high)
    # The count can jump from above the maximum to a line; then drop points one at a time.
    return simplified if len(simplified) >= 3 else _at_most(_within(contour, low), maximum_points)


def _without_notches(outline: IntArray) -> FloatArray:
    """Cut half a pixel off an outline's inner corners, float32 [points, 2], so that fewer steps are left."""
    before, after = outline - np.roll(outline, 1, axis=0), np.roll(outline, -1, axis=0) - outline
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    is_inner = turns < 0 if _signed_area(outline) > 0 else turns > 0
    ends = np.stack([outline - np.sign(before) / 2, outline + np.sign(after) / 2], axis=1)
    ends[~is_inner] = outline[~is_inner, None]
    return np.delete(ends.reshape(-1, 2), 2 * np.flatnonzero(~is_inner), axis=0).astype(np.float32)


def _within(contour: FloatArray, tolerance: float) -> _Points:
    """Simplify a contour by Douglas-Peucker; it deviates by at most `tolerance` pixels."""
    return cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0].astype(np.float64)


def _at_most(points: _Points, maximum_points: int) -> _Points:
    """Drop the points that span the smallest area with their neighbours (Visvalingam), down to 3."""
    while len(points) > max(3, maximum_points):
        before, after = np.roll(points, 1, axis=0) - points, np.roll(points, -1, axis=0) - points
        areas = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0])
        points = np.delete(points, int(areas.argmin()), axis=0)
    return points
