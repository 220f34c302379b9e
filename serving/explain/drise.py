"""D-RISE (Petsiuk et al. 2021, arXiv 2006.03204): which parts of an image a detector needs to find a box.

The reference explains only classifiers; explanations of boxes are an addition of this project.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage

from trainer.annotations import Detections, FloatArray, Image

Detect = Callable[[Sequence[Image]], Sequence[Detections]]
"""Images → detections in each, including those with low scores."""

# The paper's grid and its probability that a cell stays visible.
_CELLS = 16
_VISIBLE = 0.5
_SEED = 0
_BATCH = 8
_MAX_SIDE = 224


def saliency(
    detect: Detect, image: Image, boxes: FloatArray, labels: npt.NDArray[np.int64], n_masks: int
) -> FloatArray:
    """How much each part of the image contributes to each box.

    Random parts of the image are blackened. The strength of a box under a mask is the highest IoU · score
    among the detections of its class. The saliency of a pixel is the covariance of that strength with the
    pixel's visibility. The masks are the same for every image, so results are reproducible.

    Args:
        image: uint8 [H, W, 3], about as large as the detector resizes it.
        boxes: float32 [n, 4], normalised xyxy.
        labels: int64 [n].
        n_masks: number of random masks. Each costs a forward pass; more of them reduce the noise.

    Returns:
        float32 [n, h, w] over the whole image, h and w at most 224.
    """
    size = map_size(image)
    product = np.zeros((len(boxes), *size))
    visibility, strength = np.zeros(size), np.zeros(len(boxes))
    for masks in _batches(n_masks, size):
        detections = detect([_masked(image, mask) for mask in masks])
        strengths = np.stack([_strengths(boxes, labels, each) for each in detections])
        product += np.einsum("mn,mhw->nhw", strengths, masks)
        visibility += masks.sum(axis=0)
        strength += strengths.sum(axis=0)
    covariance = product / n_masks - np.multiply.outer(strength / n_masks, visibility / n_masks)
    return np.asarray(covariance, np.float32)


def map_size(image: Image) -> tuple[int, int]:
    """(height, width) of the saliency maps of an image."""
    factor = min(1.0, _MAX_SIDE / max(image.shape[:2]))
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return height, width


def _batches(count: int, size: tuple[int, int]) -> Iterator[FloatArray]:
    """Random masks, float32 [at most 8, h, w] in [0, 1]: smooth, shifted by a random part of a cell."""
    generator = np.random.default_rng(_SEED)
    height, width = size
    cell = (-(-height // _CELLS), -(-width // _CELLS))
    whole = ((_CELLS + 1) * cell[1], (_CELLS + 1) * cell[0])
    for start in range(0, count, _BATCH):
        masks = np.empty((min(_BATCH, count - start), height, width), np.float32)
        for mask in masks:
            grid = generator.random((_CELLS + 1, _CELLS + 1)) < _VISIBLE
            smooth = PILImage.fromarray(grid.astype(np.float32)).resize(whole, PILImage.Resampling.BILINEAR)
            top, left = generator.integers(cell[0]), generator.integers(cell[1])
            mask[:] = np.asarray(smooth)[top : top + height, left : left + width]
        yield masks


def _masked(image: Image, mask: FloatArray) -> Image:
    size = (image.shape[1], image.shape[0])
    full = np.asarray(PILImage.fromarray(mask).resize(size, PILImage.Resampling.BILINEAR))
    return np.asarray(image * full[..., None], np.uint8)


def _strengths(
    boxes: FloatArray, labels: npt.NDArray[np.int64], detections: Detections
) -> npt.NDArray[np.float64]:
    """float64 [n]: each box's highest IoU · score among the detections of its class."""
    if len(detections.labels) == 0:
        return np.zeros(len(boxes))
    overlap = _ious(boxes.astype(np.float64), detections.boxes.astype(np.float64))
    is_same_class = labels[:, None] == detections.labels[None]
    best: npt.NDArray[np.float64] = (overlap * detections.scores[None] * is_same_class).max(axis=1)
    return best


def _ious(boxes: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[n, 4] and [m, 4], xyxy → [n, m]."""
    corners = np.maximum(boxes[:, None, :2], others[None, :, :2])
    ends = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = (ends - corners).clip(0).prod(axis=2)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=1) for each in (boxes, others)]
    union = areas[0][:, None] + areas[1][None] - intersection
    result: npt.NDArray[np.float64] = intersection / np.maximum(union, 1e-12)
    return result
