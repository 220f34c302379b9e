"""The regions of an image that XRAI ranks: segments at several scales, overlapping."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects
from skimage.segmentation import felzenszwalb
from skimage.transform import resize

from trainer.annotations import BoolArray, Image

# The paper's values, and the image size that they are meant for.
_SCALES = (50, 100, 150, 250, 500, 1200)
_SIGMA = 0.8
_MIN_PIXELS = 150
_DILATION = 5
_SIDE = 224


def regions(image: Image) -> BoolArray:
    """Felzenszwalb's segments at each scale, dilated by five pixels to include the edges around them.

    Args:
        image: uint8 [s, s, 3].

    Returns:
        bool [m, g, g], where g is the smaller of s and 224.
    """
    side = len(image)
    grid = min(side, _SIDE)
    low, high = float(image.min()), float(image.max())
    values = (image.astype(np.float64) - low) / max(high - low, 1.0) * 2 - 1
    if side != _SIDE:
        values = resize(values, (_SIDE, _SIDE), order=3, anti_aliasing=True)  # type: ignore[no-untyped-call]
    # Each grid cell takes the label of the pixel at its centre.
    centres = (np.arange(grid) + 0.5) * _SIDE / grid
    cells = np.ix_(centres.astype(np.int64), centres.astype(np.int64))
    masks = []
    for scale in _SCALES:
        labels = felzenszwalb(values, scale=scale, sigma=_SIGMA, min_size=_MIN_PIXELS)[cells]
        for label, place in enumerate(find_objects(labels + 1)):
            if place is not None:
                masks.append(_dilated(labels == label, place, _DILATION * grid / side))
    return np.stack(masks)


def _dilated(mask: BoolArray, place: tuple[slice, slice], distance: float) -> BoolArray:
    """The mask with everything within a distance in cells; `place` is its bounding box."""
    margin = math.ceil(distance)
    window = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in place)
    dilated = np.zeros_like(mask)
    dilated[window] = distance_transform_edt(~mask[window]) <= distance
    return dilated
