"""Turns masks into the polygons of the schema: outer contours along pixel edges, simplified."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from trainer.annotations import FloatArray, Mask

_Points = npt.NDArray[np.float64]


def mask_polygons(
    mask: Mask, image_size: tuple[int, int], box: FloatArray, maximum_points: int
) -> list[list[float]]:
    """The segments of an object, largest first, each `[x1, y1, x2, y2, …]` normalised to [0, 1].

    The schema has no holes, so they are filled. An empty mask becomes its box.

    Args:
        mask: the object's mask, in pixels of the image.
        image_size: (height, width) in pixels.
        box: the object's box, normalised xyxy [4].
        maximum_points: maximum number of points per segment, at least 3; no segment has fewer than 3.
    """
    height, width = image_size
    contours = sorted(_contours(mask), key=cv2.contourArea, reverse=True)
    segments = [_simplify(contour, maximum_points) / (width, height) for contour in contours]
    if not segments:
        left, top, right, bottom = (float(side) for side in box)
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        segments = [_at_most(corners, maximum_points)]
    # 1e-6 of an image is far less than a pixel; more digits would double the size of the answer.
    return [segment.clip(0, 1).round(6).ravel().tolist() for segment in segments]


def _contours(mask: Mask) -> list[FloatArray]:
    """Outer contours in pixels, float32 [points, 2], along pixel edges: pixel i spans [i, i + 1].

    cv2.findContours follows pixel centres and thereby cuts half a pixel off each side. On a grid of half
    pixels, where each pixel also covers its corners, it follows the edges.
    """
    rows, columns = mask.pixels.shape
    grid = np.zeros((2 * rows + 1, 2 * columns + 1), dtype=np.uint8)
    for row in range(3):
        for column in range(3):
            grid[row : row + 2 * rows : 2, column : column + 2 * columns : 2] |= mask.pixels
    contours, _ = cv2.findContours(grid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corner = np.array([mask.left, mask.top], dtype=np.float32)
    return [(contour[:, 0] / 2 + corner).astype(np.float32) for contour in contours]


def _simplify(contour: FloatArray, maximum_points: int) -> _Points:
    """Reduce a contour to a maximum number of points, by Douglas-Peucker with the lowest tolerance."""
    if len(contour) <= maximum_points:
        return contour.astype(np.float64)
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
