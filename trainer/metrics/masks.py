"""Masks as run lengths in COCO's compressed form, which is small and quick to compare.

Polygons are rasterised by COCO's rule (`rleFrPoly` of the COCO API): (0, 0) is the outer corner of the image,
so a polygon around the whole image covers every pixel, and a mask holds about the pixels whose centres are
inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from faster_coco_eval import mask as coco_masks

from trainer.annotations import BoolArray, FloatArray, Mask
from trainer.polygons import Region, regions

Rle: TypeAlias = dict[str, Any]
"""{"size": [height, width], "counts": bytes}: lengths of alternating runs of 0 and 1, down each column."""


def from_polygons(polygons: Sequence[FloatArray], size: tuple[int, int]) -> Rle:
    """Rasterise one object's segments, as `trainer.polygons.regions` reads them.

    Args:
        polygons: at least one, each [points, 2] of (x, y) in [0, 1].
        size: (height, width) of the image in pixels.

    Raises:
        ValueError: there is no polygon, or one has fewer than 3 points.
    """
    if not polygons or any(len(polygon) < 3 for polygon in polygons):
        raise ValueError("an object's segments must be polygons of at least 3 points")
    return _plain(coco_masks.merge([_region(region, size) for region in regions(polygons)]), size)


def _region(region: Region, size: tuple[int, int]) -> Any:
    """Rasterise an outline without its holes."""
    height, width = size
    outline, *holes = (
        np.asarray(points, dtype=np.float64) * (width, height) for points in (region.outline, *region.holes)
    )
    if not holes:
        return coco_masks.frPyObjects([outline.ravel().tolist()], height, width)[0]
    # One polygon around the outline and around a hole is what the outline has and the hole has not; its way
    # there and back cancels out.
    rings = [np.concatenate([outline, outline[:1], hole, hole[:1]]).ravel().tolist() for hole in holes]
    return coco_masks.merge(coco_masks.frPyObjects(rings, height, width), intersect=1)


def from_crop(mask: Mask, size: tuple[int, int]) -> Rle:
    """Encode a cropped mask at its place in the image; time and memory depend on the crop only.

    Args:
        size: (height, width) of the image in pixels.

    Raises:
        ValueError: the crop is not inside the image.
    """
    height, width = size
    rows, columns = mask.pixels.shape
    if min(mask.left, mask.top) < 0 or mask.left + columns > width or mask.top + rows > height:
        raise ValueError(
            f"a mask of {columns} x {rows} pixels at ({mask.left}, {mask.top}) must be inside its image "
            f"of {width} x {height}"
        )
    # A row of background above and below, so that every run starts and ends within its column.
    padded = np.zeros((columns, rows + 2), dtype=np.int8)
    padded[:, 1:-1] = mask.pixels.T
    column, row = np.nonzero(np.diff(padded, axis=1))
    edges = (mask.left + column.astype(np.int64)) * height + mask.top + row
    # A run that reaches the bottom edge and one that starts at the top of the next column are one run, so
    # remove the end and the start between them, which coincide.
    inner = np.flatnonzero(edges[1:] == edges[:-1])
    edges = np.delete(edges, np.concatenate([inner, inner + 1]))
    counts = np.diff(edges, prepend=0, append=height * width)
    if counts[-1] == 0:  # the last run of 1 ends with the image
        counts = counts[:-1]
    return _plain(
        coco_masks.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width), size
    )


def areas(masks: Sequence[Rle]) -> npt.NDArray[np.float64]:
    """Number of pixels of each mask [n]."""
    return np.array(coco_masks.area(list(masks)) if masks else [], dtype=np.float64)


def overlaps(masks: Sequence[Rle], targets: Sequence[Rle], crowd: BoolArray) -> npt.NDArray[np.float64]:
    """IoU of each mask with each target [n, m]; for crowds, intersection over the mask's own area.

    Empty masks overlap nothing.
    """
    if not masks or not targets:
        return np.zeros((len(masks), len(targets)))
    found = coco_masks.iou(list(masks), list(targets), [int(flag) for flag in crowd])
    return np.asarray(found, dtype=np.float64).reshape(len(masks), len(targets))


def _plain(rle: Rle, size: tuple[int, int]) -> Rle:
    counts = rle["counts"]
    return {"size": list(size), "counts": counts.encode() if isinstance(counts, str) else counts}
