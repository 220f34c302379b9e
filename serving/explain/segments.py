"""Regions of an image at several scales, overlapping, as XRAI ranks them."""

from __future__ import annotations

import numpy as np
from PIL import Image as PILImage
from scipy.ndimage import distance_transform_edt, find_objects
from skimage.segmentation import felzenszwalb

from trainer.annotations import BoolArray, Image

# The paper's values; images of about 224 pixels a side are what they are meant for.
_SCALES = (50, 100, 150, 250, 500, 1200)
_SIGMA = 0.8
_FEWEST_PIXELS = 150
_DILATION = 5
_LONGEST_SIDE = 224


def regions(image: Image) -> BoolArray:
    """Felzenszwalb's segments at each scale, grown by five pixels, so that they hold the edges beside them.

    Args:
        image: uint8 [H, W, 3].

    Returns:
        bool [m, h, w], where h and w are at most 224 and of the image's shape.
    """
    factor = min(1.0, _LONGEST_SIDE / max(image.shape[:2]))
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    small = np.asarray(PILImage.fromarray(image).resize((width, height), PILImage.Resampling.BILINEAR))
    values = small.astype(np.float32) / 127.5 - 1
    masks = []
    for scale in _SCALES:
        labels = felzenszwalb(values, scale=scale, sigma=_SIGMA, min_size=_FEWEST_PIXELS)
        masks += [_dilated(labels == label, place) for label, place in enumerate(find_objects(labels + 1))]
    return np.stack(masks)


def _dilated(mask: BoolArray, place: tuple[slice, slice]) -> BoolArray:
    """The mask and all within five pixels; `place` is its bounding box."""
    window = tuple(slice(max(0, side.start - _DILATION), side.stop + _DILATION) for side in place)
    grown = np.zeros_like(mask)
    grown[window] = distance_transform_edt(~mask[window]) <= _DILATION
    return grown
