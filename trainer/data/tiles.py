"""The tiles of training images: each an example of its own, with the objects that are in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from trainer.annotations import Example, Examples, FloatArray, IntArray, Objects, Target
from trainer.models import tiling
from trainer.scoring import ScoringParameters

Float64Array: TypeAlias = npt.NDArray[np.float64]

SMALLEST_PART = 0.25
"""An object counts in a tile that holds at least this part of its box.

A network that finds smaller parts would do harm: their IoU with the whole object is under the default of
`tile_predictions_nms_threshold`, so that both would be answered.
"""
_THINNEST = 1e-6  # of a tile's width or height; what is thinner is left of an edge on the tile's border


class TiledExamples:
    """Examples, followed by those of their tiles that hold an object other than a crowd.

    Which tiles these are is known from the truths alone. A tile's edges in the decoded image are rounded to
    pixels, those in its truth are not: there they may lie half a pixel apart.
    """

    def __init__(self, examples: Examples, parameters: ScoringParameters) -> None:
        self._examples = examples
        self._parameters = parameters
        self._targets = _Targets(examples.targets, tiling.grid(parameters))

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> Example:
        if index < len(self._examples):
            return self._examples[index]
        number, tile = self._targets.tile(index)
        image = self._examples[number].image
        view = tiling.views((image.shape[0], image.shape[1]), self._parameters)[1 + tile]
        return Example(tiling.cut(image, view), self._targets[index])

    @property
    def targets(self) -> Sequence[Target]:
        return self._targets


class _Targets(Sequence[Target]):
    """The truths of the images, then of their tiles that hold something, made as they are asked for."""

    def __init__(self, images: Sequence[Target], grid: Float64Array) -> None:
        self._images = images
        self._grid = grid
        held = [_held(target, grid) for target in images]
        self._image_of = np.repeat(np.arange(len(held)), [len(tiles) for tiles in held])
        self._tile_of = np.concatenate([np.zeros(0, dtype=np.int64), *held])

    def __len__(self) -> int:
        return len(self._images) + len(self._tile_of)

    def tile(self, index: int) -> tuple[int, int]:
        """The image that a tile is of, and the tile's place in the grid."""
        number = index - len(self._images)
        return int(self._image_of[number]), int(self._tile_of[number])

    @overload
    def __getitem__(self, index: int) -> Target: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Target]: ...
    def __getitem__(self, index: int | slice) -> Target | Sequence[Target]:
        positions = range(len(self))[index]
        if isinstance(positions, range):
            return [self[position] for position in positions]
        if positions < len(self._images):
            return self._images[positions]
        image, tile = self.tile(positions)
        target = self._images[image]
        assert isinstance(target, Objects), "only tasks with boxes have tiles"
        return clip(target, self._grid[tile])


def _held(target: Target, grid: Float64Array) -> IntArray:
    """The tiles that hold an object other than a crowd, as rows of the grid."""
    assert isinstance(target, Objects), "only tasks with boxes have tiles"
    objects = target.boxes[~target.crowd]
    sizes = (objects[:, 2:] - objects[:, :2]).prod(axis=1)
    parts = _areas(_within(objects[:, None], grid))  # [n, tiles]
    tiles = np.flatnonzero(_large_enough(parts, sizes[:, None]).any(axis=0))
    if target.polygons is None:
        return tiles
    # A box may reach into a tile where its polygons do not.
    return np.array([tile for tile in tiles if not clip(target, grid[tile]).crowd.all()], dtype=np.int64)


def clip(target: Objects, tile: Float64Array) -> Objects:
    """The objects that are in a tile, in its coordinates.

    An object is there if the tile holds at least SMALLEST_PART of its box, a crowd if it holds any of it.
    Polygons are cut off at the tile's edges, into several where need be; their box is that around what is
    left of them.

    Args:
        tile: normalised xyxy [4] in the image.
    """
    boxes = _within(target.boxes.astype(np.float64), tile)
    sizes = (target.boxes[:, 2:] - target.boxes[:, :2]).prod(axis=1)
    polygons: dict[int, tuple[FloatArray, ...]] = {}
    if target.polygons is not None:
        for index in np.flatnonzero(_areas(boxes) > 0).tolist():
            pieces = [piece for segment in target.polygons[index] for piece in _cut_out(segment, tile)]
            boxes[index] = _bounds(pieces)
            polygons[index] = tuple(_placed(piece, tile) for piece in pieces)
    areas = _areas(boxes)
    kept = np.flatnonzero(np.where(target.crowd, areas > 0, _large_enough(areas, sizes)))
    return Objects(
        boxes=_placed(boxes[kept].reshape(-1, 2), tile).reshape(-1, 4),
        labels=target.labels[kept],
        crowd=target.crowd[kept],
        polygons=None if target.polygons is None else tuple(polygons[index] for index in kept.tolist()),
    )


def _within(boxes: npt.NDArray[np.floating], tiles: Float64Array) -> Float64Array:
    """The boxes' parts in the tiles, xyxy; where there is none, of no width or height."""
    return np.concatenate(
        [side.clip(tiles[..., :2], tiles[..., 2:]) for side in (boxes[..., :2], boxes[..., 2:])], axis=-1
    )


def _areas(boxes: Float64Array) -> Float64Array:
    areas: Float64Array = (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)
    return areas


def _large_enough(parts: Float64Array, wholes: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    # Boxes are float32: a hair less than the limit is the limit.
    return (parts > 0) & (parts >= (SMALLEST_PART - 1e-5) * wholes)


def _bounds(pieces: Sequence[Float64Array]) -> Float64Array:
    """The box around polygons, zeros if there is none."""
    if not pieces:
        return np.zeros(4)
    points = np.concatenate(pieces)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _placed(points: Float64Array, tile: Float64Array) -> FloatArray:
    """(x, y) in the image [n, 2] → in the tile, both normalised."""
    return ((points - tile[:2]) / (tile[2:] - tile[:2])).clip(0, 1).astype(np.float32)


def _cut_out(polygon: FloatArray, tile: Float64Array) -> list[Float64Array]:
    """The pieces of a polygon [n, 2] within a tile, in the image's coordinates."""
    pieces = [polygon.astype(np.float64)]
    for axis, limit, side in ((0, tile[0], 1), (0, tile[2], -1), (1, tile[1], 1), (1, tile[3], -1)):
        pieces = [part for piece in pieces for part in _cut_off(piece, axis, limit, side)]
    thinnest = _THINNEST * (tile[2:] - tile[:2])
    return [piece for piece in pieces if (np.ptp(piece, axis=0) > thinnest).all()]


def _cut_off(polygon: Float64Array, axis: int, limit: float, side: int) -> list[Float64Array]:
    """The pieces of a polygon on one side of a line: its coordinate ≥ limit, or for side −1 ≤ limit.

    As Sutherland and Hodgman (1974) walk along the outline, but a concave polygon comes apart: sorted along
    the line, every second stretch between two of the outline's crossings is inside (the even-odd rule).
    """
    inside = side * (polygon[:, axis] - limit) >= 0
    if inside.all() or not inside.any():
        return [polygon] if inside.all() else []
    # Begin where the outline comes in; then its last point is outside.
    begin = int(np.flatnonzero(inside & ~np.roll(inside, 1))[0])
    polygon, inside = np.roll(polygon, -begin, axis=0), np.roll(inside, -begin)
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
    # Stretch k comes in at crossing 2k and goes out at 2k + 1; the line joins two and two of them.
    order = np.argsort(crossings, kind="stable").reshape(-1, 2)
    joined = np.empty(order.size, dtype=np.int64)
    joined[order] = order[:, ::-1]
    pieces = []
    left = set(range(len(stretches)))
    while left:
        start = at = 2 * min(left)
        piece: list[Float64Array] = []
        while not piece or at != start:
            left.discard(at // 2)
            piece.append(stretches[at // 2][:: -1 if at % 2 else 1])
            at = int(joined[at ^ 1])
        pieces.append(np.concatenate(piece))
    return pieces


def _crossing(start: Float64Array, end: Float64Array, axis: int, limit: float) -> Float64Array:
    """Where the line from one point to another, on different sides of the limit, crosses it."""
    share = (limit - start[axis]) / (end[axis] - start[axis])
    point: Float64Array = start + share * (end - start)
    point[axis] = limit
    return point
