"""D-RISE (Petsiuk et al. 2021, arXiv 2006.03204): which parts of an image a detector needs to find a box.

The reference explains classifiers alone; that models of boxes are explained is our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage

from trainer.annotations import Detections, FloatArray, Image

Detect = Callable[[Sequence[Image]], Sequence[Detections]]
"""Images → what is found in each, also with low scores."""

# The paper's grid and probability of a cell to be seen.
_CELLS = 16
_SEEN = 0.5
_SEED = 0
_AT_ONCE = 8
_LONGEST_SIDE = 224


def saliency(
    detect: Detect, image: Image, boxes: FloatArray, labels: npt.NDArray[np.int64], n_masks: int
) -> FloatArray:
    """How much each part of the image helps to find each box.

    Random parts of the image are blackened. A box counts as found by its highest IoU · score among boxes of
    its class; the saliency of a pixel is the covariance of that with the pixel's being seen. The masks are
    the same for every image, so that answers repeat.

    Args:
        image: uint8 [H, W, 3], of about the size that the detector resizes it to.
        boxes: float32 [n, 4], normalised xyxy.
        labels: int64 [n].
        n_masks: the more, the less noise; each is a run of the detector.

    Returns:
        float32 [n, h, w] over the whole image, h and w at most 224.
    """
    size = map_size(image)
    total = np.zeros((len(boxes), *size))
    seen, found = np.zeros(size), np.zeros(len(boxes))
    for masks in _batches(n_masks, size):
        detections = detect([_masked(image, mask) for mask in masks])
        weights = np.stack([_found_again(boxes, labels, each) for each in detections])
        total += np.einsum("mn,mhw->nhw", weights, masks)
        seen += masks.sum(axis=0)
        found += weights.sum(axis=0)
    covariance = total / n_masks - np.multiply.outer(found / n_masks, seen / n_masks)
    return np.asarray(covariance, np.float32)


def map_size(image: Image) -> tuple[int, int]:
    """(height, width) of the maps for an image."""
    factor = min(1.0, _LONGEST_SIDE / max(image.shape[:2]))
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return height, width


def _batches(count: int, size: tuple[int, int]) -> Iterator[FloatArray]:
    """Random masks, float32 [at most 8, h, w] in [0, 1]: smooth, and shifted by part of a cell."""
    generator = np.random.default_rng(_SEED)
    height, width = size
    cell = (-(-height // _CELLS), -(-width // _CELLS))
    whole = ((_CELLS + 1) * cell[1], (_CELLS + 1) * cell[0])
    for start in range(0, count, _AT_ONCE):
        masks = np.empty((min(_AT_ONCE, count - start), height, width), np.float32)
        for mask in masks:
            grid = generator.random((_CELLS + 1, _CELLS + 1)) < _SEEN
            smooth = PILImage.fromarray(grid.astype(np.float32)).resize(whole, PILImage.Resampling.BILINEAR)
            top, left = generator.integers(cell[0]), generator.integers(cell[1])
            mask[:] = np.asarray(smooth)[top : top + height, left : left + width]
        yield masks


def _masked(image: Image, mask: FloatArray) -> Image:
    size = (image.shape[1], image.shape[0])
    full = np.asarray(PILImage.fromarray(mask).resize(size, PILImage.Resampling.BILINEAR))
    return np.asarray(image * full[..., None], np.uint8)


def _found_again(
    boxes: FloatArray, labels: npt.NDArray[np.int64], detections: Detections
) -> npt.NDArray[np.float64]:
    """float64 [n]: each box's highest IoU · score among the detections of its class."""
    if len(detections.labels) == 0:
        return np.zeros(len(boxes))
    overlap = _ious(boxes.astype(np.float64), detections.boxes.astype(np.float64))
    same = labels[:, None] == detections.labels[None]
    best: npt.NDArray[np.float64] = (overlap * detections.scores[None] * same).max(axis=1)
    return best


def _ious(boxes: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[n, 4] and [m, 4], xyxy → [n, m]."""
    corners = np.maximum(boxes[:, None, :2], others[None, :, :2])
    ends = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (ends - corners).clip(0).prod(axis=2)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=1) for each in (boxes, others)]
    union = areas[0][:, None] + areas[1][None] - shared
    result: npt.NDArray[np.float64] = shared / np.maximum(union, 1e-12)
    return result
