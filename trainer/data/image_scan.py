"""Scans images: one cheap pass over a file checks that it decodes and yields size and perceptual hash."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow

from trainer.data.images import (
    MAX_PIXELS,
    UPRIGHT,
    Source,
    load_pixels,
    open_image,
    orientation_of,
    to_rgb,
    upright_size,
)

_MIN_HASH_SIDE = 64
"""Images are reduced to no fewer pixels per side before they are hashed."""
_MIN_CONTRAST = 4
"""Minimum range of the 81 grey means (0 to 255) for an image to have a hash."""


class Scan(NamedTuple):
    """The result of scanning an image.

    The hash is dHash (N. Krawetz, "Kind of Like That", 2013) along both axes: the image is reduced to 9 x 9
    grey pixels; 64 bits tell which pixels are darker than their right neighbour, 64 more which are darker
    than the pixel below. It hardly changes with size, compression, brightness or contrast.

    Attributes:
        size: upright (width, height) in pixels.
        hash: two numbers of 64 bits; (0, 0) for images without contrast.
    """

    size: tuple[int, int]
    hash: tuple[int, int]


def scan(source: Source, *, max_pixels: int = MAX_PIXELS) -> Scan:
    """Read an image to its last byte, as cheaply as its format allows.

    Raises:
        ImageError: as in `images.decode`.
    """
    with open_image(source, max_pixels) as image:
        size = upright_size(image)
        # A JPEG at 1/8 scale takes a fraction of the time, though all of it is still read.
        image.draft("L", (_MIN_HASH_SIDE, _MIN_HASH_SIDE))
        load_pixels(image)
        method = UPRIGHT.get(orientation_of(image))
        plain = image if image.mode in ("L", "RGB") else to_rgb(image)
        # Without reducing_gap, which would shift the edges of the 9 x 9 pixels.
        grey = plain.resize((9, 9), Pillow.Resampling.BOX).convert("L")
        return Scan(size, _difference_hash(grey if method is None else grey.transpose(method)))


def _difference_hash(grey: Pillow.Image) -> tuple[int, int]:
    """The hash of an image of 9 x 9 grey pixels."""
    pixels = np.asarray(grey, dtype=np.int16)
    if int(pixels.max()) - int(pixels.min()) < _MIN_CONTRAST:
        return 0, 0
    across = pixels[:8, :8] < pixels[:8, 1:]
    down = pixels[:8, :8] < pixels[1:, :8]
    return int.from_bytes(np.packbits(across).tobytes()), int.from_bytes(np.packbits(down).tobytes())
