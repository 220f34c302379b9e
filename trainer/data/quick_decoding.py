"""Decodes JPEGs with OpenCV, faster than Pillow, for training."""

from __future__ import annotations

import os

import cv2
import numpy as np

from trainer.annotations import Image
from trainer.data.images import MAX_PIXELS, decode, open_image, orientation_of

_QUARTER_TURNS = {1: 0, 3: 2, 6: 3, 8: 1}
"""EXIF orientation → quarter turns to the left that make the stored pixels upright; without mirrored ones."""

_REDUCED = {8: 64, 4: 32, 2: 16}
"""OpenCV's flags for a JPEG at 1/8, 1/4 and 1/2 of its width and height."""


def decode_quickly(path: str | os.PathLike[str], *, short_side: int | None = None) -> Image:
    """Decode an image as `images.decode` does, but JPEGs by OpenCV, in four fifths of the time.

    Both libraries normally decode with libjpeg-turbo, to the same pixels; if one was built with another
    decoder, they may differ by a level or two.

    Args:
        short_side: as in `images.decode`.

    Raises:
        ImageError: as in `images.decode`, except that a JPEG damaged in the middle may be decoded in part.
    """
    image = _decode_by_opencv(path, short_side)
    return decode(path, short_side=short_side) if image is None else image


def _decode_by_opencv(path: str | os.PathLike[str], short_side: int | None) -> Image | None:
    """Decode an intact, not mirrored RGB JPEG; None for any other file, which is left to Pillow."""

    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return None
    # Some releases of OpenCV decode truncated files in part.
    if not (content.startswith(b"\xff\xd8\xff") and content.endswith(b"\xff\xd9")):
        return None
    with open_image(content, MAX_PIXELS) as (header, _):
        if header.format != "JPEG" or header.mode != "RGB":
            return None
        scale = 1 if short_side is None else min(header.size) // short_side
        turns = _QUARTER_TURNS.get(orientation_of(header))
    if turns is None:
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    flags |= next((reduced for least, reduced in _REDUCED.items() if scale >= least), 0)
    try:
        image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    except cv2.error:
        return None
    if image is None:
        return None
    return np.ascontiguousarray(np.rot90(image, turns), dtype=np.uint8)
