"""Tiles of training images as further examples, with the objects in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from trainer.annotations import Example, Examples, FloatArray, IntArray, Objects, Target
from trainer.data.datasets import LazyTargets
from trainer.models import tiling
from trainer.models.geometry import Geometry
from trainer.models.masks import rasterise, without_overlap
from trainer.polygons import are_holes, without_equal_pairs
from trainer.scoring import ScoringParameters

Float64Array: TypeAlias = npt.NDArray[np.float64]

MIN_FRACTION = 0.25
"""A tile has an object if it holds at least this fraction of its box.

A network that learns to find smaller parts would do harm: their IoU with the whole object is below the
default of `tile_predictions_nms_threshold`, so both would be predicted.
"""
_BOX_SIDE = 1024
_BOX_GEOMETRY = Geometry((_BOX_SIDE, _BOX_SIDE), (_BOX_SIDE, _BOX_SIDE), (1.0, 1.0))
_MIN_THICKNESS = 1e-6
"""Fraction of a tile's width or height; thinner pieces of polygons are remains of an edge on its border."""


class TiledExamples:
    """Examples, followed by their tiles that hold an object other than a crowd.

    Which tiles these are follows from the targets alone. In the decoded image, a tile's edges are rounded to
    pixels; in its target they are not, so the two may be half a pixel apart.
    """

    def __init__(self, examples: Examples, parameters: ScoringParameters) -> None:
        self._examples = examples
        self._parameters = parameters
        self._grid = tiling.grid(parameters)
        self._image_targets = examples.targets
        occupied = [_occupied_tiles(target, self._grid) for target in self._image_targets]
        self._image_of = np.repeat(np.arange(len(occupied)), [len(tiles) for tiles in occupied])
        self._tile_of = np.concatenate([np.zeros(0, dtype=np.int64), *occupied])

    def __len__(self) -> int:
        return len(self._examples) + len(self._tile_of)

    def __getitem__(self, index: int) -> Example:
        if index < len(self._examples):
            return self._examples[index]
        number, tile = self._tile(index)
        image = self._examples[number].image
        view = tiling.views((image.shape[0], image.shape[1]), self._parameters)[1 + tile]
        return Example(tiling.cut(image, view), self._target(index))

    @property
    def targets(self) -> Sequence[Target]:
        """The targets of the images, then of their tiles."""
        return LazyTargets(len(self), self._target)

    def _tile(self, index: int) -> tuple[int, int]:
        """The index of a tile's image, and the tile's index in the grid."""
        number = index - len(self._examples)
        return int(self._image_of[number]), int(self._tile_of[number])

    def _target(self, index: int) -> Target:
        if index < len(self._examples):
            return self._image_targets[index]
        image, tile = self._tile(index)
        target = self._image_targets[image]
        assert isinstance(target, Objects), "only tasks with boxes have tiles"
        return clip(target, self._grid[tile])


def _occupied_tiles(target: Target, grid: Float64Array) -> IntArray:
    """The tiles that hold an object other than a crowd, as indices of the grid."""
    assert isinstance(target, Objects), "only tasks with boxes have tiles"
    objects = target.boxes[~target.crowd]
    sizes = (objects[:, 2:] - objects[:, :2]).prod(axis=1)
    visible = _areas(_intersection(objects[:, None], grid))  # [n, tiles]
    tiles = np.flatnonzero(_large_enough(visible, sizes[:, None]).any(axis=0))
    if target.polygons is None:
        return tiles
    # A box may reach into a tile where its polygons do not.
    return np.array([tile for tile in tiles if not clip(target, grid[tile]).crowd.all()], dtype=np.int64)


def clip(target: Objects, tile: Float64Array) -> Objects:
    """Clip the objects of an image to a tile, in the tile's coordinates.

    An object is kept if the tile holds at least MIN_FRACTION of its box, a crowd if it holds any of it.
    Polygons are clipped at the tile's edges, if necessary into several; their box is the box around the rest.

    Args:
        tile: normalised xyxy [4] in the image.
    """
    boxes = _intersection(target.boxes.astype(np.float64), tile)
    sizes = (target.boxes[:, 2:] - target.boxes[:, :2]).prod(axis=1)
    polygons: dict[int, tuple[FloatArray, ...]] = {}
    if target.polygons is not None:
        for index in np.flatnonzero(_areas(boxes) > 0).tolist():
            pieces = _clip_segments(target.polygons[index], tile)
            boxes[index] = _bounding_box(pieces)
            polygons[index] = tuple(_to_tile(piece, tile) for piece in pieces)
    areas = _areas(boxes)
    kept = np.flatnonzero(np.where(target.crowd, areas > 0, _large_enough(areas, sizes)))
    return Objects(
        boxes=_to_tile(boxes[kept].reshape(-1, 2), tile).reshape(-1, 4),
        labels=target.labels[kept],
        crowd=target.crowd[kept],
        polygons=None if target.polygons is None else tuple(polygons[index] for index in kept.tolist()),
    )


def _intersection(boxes: npt.NDArray[np.floating], tiles: Float64Array) -> Float64Array:
    """The intersections of boxes and tiles, xyxy; of zero width or height where they are disjoint."""
    return np.concatenate(
        [side.clip(tiles[..., :2], tiles[..., 2:]) for side in (boxes[..., :2], boxes[..., 2:])], axis=-1
    )


def _areas(boxes: Float64Array) -> Float64Array:
    areas: Float64Array = (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)
    return areas


def _large_enough(visible: Float64Array, wholes: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    # Boxes are float32, so allow for rounding.
    return (visible > 0) & (visible >= (MIN_FRACTION - 1e-5) * wholes)


def _bounding_box(pieces: Sequence[Float64Array]) -> Float64Array:
    """The box around polygons; zeros if there are none."""
    if not pieces:
        return np.zeros(4)
    points = np.concatenate(pieces)
    low, high = points.min(axis=0), points.max(axis=0)
    if len(pieces) > 1 and are_holes(pieces).any():
        # A hole that reaches the tile's edge may leave less than the outlines' box.
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


def _clip_segments(segments: Sequence[FloatArray], tile: Float64Array) -> list[Float64Array]:
    """Clip an object's segments to a tile so that holes stay holes, and what is united stays united."""
    segments = without_overlap(segments)
    pieces = [piece for segment in segments for piece in _clip_polygon(segment, tile)]
    # In a tile inside a hole, both the hole and the outline around it are the whole tile.
    return without_equal_pairs(pieces)


def _to_tile(points: Float64Array, tile: Float64Array) -> FloatArray:
    """Transform points [n, 2] from the image to the tile, both normalised."""
    return ((points - tile[:2]) / (tile[2:] - tile[:2])).clip(0, 1).astype(np.float32)


def _clip_polygon(polygon: FloatArray, tile: Float64Array) -> list[Float64Array]:
    """Clip a polygon [n, 2] to a tile: its pieces, in the image's coordinates."""
    pieces = [polygon.astype(np.float64)]
    for axis, limit, side in ((0, tile[0], 1), (0, tile[2], -1), (1, tile[1], 1), (1, tile[3], -1)):
        pieces = [part for piece in pieces for part in _clip_at_line(piece, axis, limit, side)]
    min_thickness = _MIN_THICKNESS * (tile[2:] - tile[:2])
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
