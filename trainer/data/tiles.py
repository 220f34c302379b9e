"""Tiles of training images as further examples, with the objects in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.annotations import Example, Examples, FloatArray, IntArray, Objects, Target
from trainer.data.datasets import LazyTargets
from trainer.models import tiling
from trainer.models.clipping import Float64Array, bounding_box, clip_segments
from trainer.scoring import ScoringParameters

MIN_FRACTION = 0.25
"""A tile has an object if it holds at least this fraction of its box.

A network that learns to find smaller parts would do harm: their IoU with the whole object is below the
default of `tile_predictions_nms_threshold`, so both would be predicted.
"""


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
            pieces = clip_segments(target.polygons[index], tile)
            boxes[index] = bounding_box(pieces)
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


def _to_tile(points: Float64Array, tile: Float64Array) -> FloatArray:
    """Transform points [n, 2] from the image to the tile, both normalised."""
    return ((points - tile[:2]) / (tile[2:] - tile[:2])).clip(0, 1).astype(np.float32)
