"""Tiling: the network sees parts of an image enlarged, in which it detects small objects.

An image's views are the whole image and, with `tile_grid_size`, its tiles row by row. Each of n columns is
W / (r + (1 − r) · n) wide, so that neighbours overlap by the fraction r, `tile_overlap_ratio`, of
their width, and all of them cover the width W. The same holds for rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, Detections, FloatArray, Image, Mask, Prediction
from trainer.scoring import ScoringParameters


class View(NamedTuple):
    """A part of an image, in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def grid(parameters: ScoringParameters) -> npt.NDArray[np.float64]:
    """The tiles as normalised xyxy, float64 [rows · columns, 4], row by row; [0, 4] without tiling."""
    if parameters.tile_grid_size is None:
        return np.zeros((0, 4))
    columns, rows = map(int, parameters.tile_grid_size.split("x"))
    x, y = (_edges(count, parameters.tile_overlap_ratio) for count in (columns, rows))
    return np.array([(left, top, right, bottom) for top, bottom in y for left, right in x])


def _edges(count: int, overlap: float) -> list[tuple[float, float]]:
    """The start and end of each tile in a row, as fractions of the row."""
    size = 1 / (overlap + (1 - overlap) * count)
    # Multiplied out, so that without overlap a tile ends exactly where the next one starts.
    starts = np.arange(count) * (1 - overlap)
    ends = (starts + 1) * size
    ends[-1] = 1
    return list(zip(starts * size, ends, strict=True))


def views(image_size: tuple[int, int], parameters: ScoringParameters) -> list[View]:
    """The views of an image of (height, width) pixels: first the whole image, then each tile of the grid.

    Edges are rounded to the nearest pixel, without leaving out any. In an image with fewer pixels than tiles,
    tiles repeat pixels, so that all images have the same number of tiles.
    """
    height, width = image_size
    edges = np.rint(grid(parameters) * (width, height, width, height)).astype(int)
    edges[:, :2] = np.minimum(edges[:, :2], (width - 1, height - 1))
    edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + 1)
    return [View(0, 0, width, height), *(View(*tile) for tile in edges.tolist())]


def cut(image: Image, view: View) -> Image:
    """The pixels of a view: the image itself if the view is the whole image, else a copy."""
    part = image[view.top : view.bottom, view.left : view.right]
    return image if part.shape == image.shape else part.copy()


def merge(found: Sequence[tuple[View, Prediction]], parameters: ScoringParameters) -> Prediction:
    """Merge the predictions for an image's views, in any order.

    Boxes are visited by descending score, as in NMS. A box is dropped if its IoU with a better box of the
    same class from another view exceeds `tile_predictions_nms_threshold`; at equal scores the earlier of
    `views` wins. Boxes of one view never suppress each other: the network has already separated these
    objects by its own NMS with its own threshold. At most `box_detections_per_image` boxes remain.
    """
    if len(found) == 1:
        return found[0][1]
    height, width = image_size = max(view.bottom for view, _ in found), max(view.right for view, _ in found)
    whole = View(0, 0, width, height)
    parts: list[Detections] = []
    for view, prediction in sorted(found, key=lambda each: (each[0] != whole, each[0].top, each[0].left)):
        assert isinstance(prediction, Detections), "a classifier has no tiles"
        parts.append(prediction if view == whole else _moved(prediction, view, image_size))
    boxes = np.concatenate([part.boxes for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    origins = np.repeat(np.arange(len(parts)), [len(part.labels) for part in parts])
    kept: list[int] = []
    remaining = np.argsort(-scores, kind="stable")
    while len(remaining) and len(kept) < parameters.box_detections_per_image:
        best, others = remaining[0], remaining[1:]
        kept.append(int(best))
        same = (labels[others] == labels[best]) & (origins[others] != origins[best])
        same &= _overlap(boxes[best], boxes[others], parameters.tile_predictions_nms_threshold)
        remaining = others[~same]
    masks = None
    if parts[0].masks is not None:
        of_all = [mask for part in parts for mask in part.masks or ()]
        masks = tuple(of_all[index] for index in kept)
    return Detections(boxes[kept], labels[kept], scores[kept], image_size, masks)


def _moved(found: Detections, view: View, image_size: tuple[int, int]) -> Detections:
    """Move a view's detections to the whole image of (height, width) pixels."""
    height, width = image_size
    size = np.array([view.right - view.left, view.bottom - view.top] * 2)
    boxes = (found.boxes * size + np.array([view.left, view.top] * 2)) / (width, height, width, height)
    masks = found.masks and tuple(
        Mask(mask.left + view.left, mask.top + view.top, mask.pixels) for mask in found.masks
    )
    return Detections(
        boxes.clip(0, 1).astype(np.float32).reshape(-1, 4), found.labels, found.scores, image_size, masks
    )


def _overlap(box: FloatArray, others: FloatArray, threshold: float) -> BoolArray:
    """Whether each of the boxes [n, 4] has an IoU with `box` [4] above the threshold, bool [n]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = sides.clip(0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    over: BoolArray = shared > threshold * (areas + (box[2:] - box[:2]).prod() - shared)
    return over
