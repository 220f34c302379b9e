"""Masks between polygons, a network's small grids, and the pixels of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from trainer.annotations import FloatArray, Mask
from trainer.models.family import Geometry


def rasterise(polygons: Sequence[FloatArray], geometry: Geometry) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Normalised polygons of one object → uint8 [h, w] of 0 and 1 in tensor pixels."""
    height, width = geometry.image_size
    factor = np.array([width * geometry.scale[0], height * geometry.scale[1]])
    canvas = np.zeros(geometry.tensor_size, dtype=np.uint8)
    # A pixel is filled where its centre lies inside: shift by half a pixel, with 4 fractional bits.
    points = [
        np.rint((polygon * factor + geometry.offset - 0.5) * 16).astype(np.int32) for polygon in polygons
    ]
    cv2.fillPoly(canvas, points, (1,), shift=4)
    return canvas


def paste(box: FloatArray, mask: FloatArray, image_size: tuple[int, int], threshold: float) -> Mask:
    """A mask head's probabilities [m, m] over a normalised box → the pixels of the image it covers.

    Sampled bilinearly at the pixel centres, as in He et al. 2017, with the border padded by zeros.
    """
    height, width = image_size
    x1, y1, x2, y2 = (float(v) for v in box * np.array([width, height, width, height], dtype=np.float32))
    left, top = max(0, int(np.floor(x1))), max(0, int(np.floor(y1)))
    right, bottom = min(width, max(left + 1, int(np.ceil(x2)))), min(height, max(top + 1, int(np.ceil(y2))))
    size = mask.shape[0]
    columns = ((np.arange(left, right) + 0.5 - x1) / max(x2 - x1, 1e-6) * size - 0.5).astype(np.float32)
    rows = ((np.arange(top, bottom) + 0.5 - y1) / max(y2 - y1, 1e-6) * size - 0.5).astype(np.float32)
    grid_x, grid_y = np.meshgrid(columns, rows)
    sampled = cv2.remap(mask, grid_x, grid_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return Mask(left, top, sampled >= threshold)
