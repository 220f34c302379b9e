"""Scans images: one cheap pass over a file checks that it decodes and yields size and perceptual hash."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow

from trainer.data.images import MAX_PIXELS, Source, load
from trainer.data.sample_range import SampleRange

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
        sample_range: the range that was scaled to 0 … 255; None for samples of 8 bits or fewer.
    """

    size: tuple[int, int]
    hash: tuple[int, int]
    sample_range: SampleRange | None = None


def scan(source: Source, *, max_pixels: int = MAX_PIXELS) -> Scan:
    """Read an image to its last byte, as cheaply as its format allows.

    Raises:
        ImageError: as in `images.decode`.
    """
    # A JPEG at 1/8 scale takes a fraction of the time, though all of it is still read.
    with load(source, max_pixels, lambda image: image.draft("L", (_MIN_HASH_SIDE,) * 2)) as loaded:
        pixels = loaded.pixels
        is_plain = isinstance(pixels, Pillow.Image) and pixels.mode in ("L", "RGB")
        plain = pixels if isinstance(pixels, Pillow.Image) and is_plain else loaded.rgb()
        # Without reducing_gap, which would shift the edges of the 9 x 9 pixels.
        grey = plain.resize((9, 9), Pillow.Resampling.BOX).convert("L")
        return Scan(loaded.size, _difference_hash(loaded.upright(grey)), loaded.sample_range)


def _difference_hash(grey: Pillow.Image) -> tuple[int, int]:
    """The hash of an image of 9 x 9 grey pixels."""
    pixels = np.asarray(grey, dtype=np.int16)
    if int(pixels.max()) - int(pixels.min()) < _MIN_CONTRAST:
        return 0, 0
    across = pixels[:8, :8] < pixels[:8, 1:]
    down = pixels[:8, :8] < pixels[1:, :8]
    return int.from_bytes(np.packbits(across).tobytes()), int.from_bytes(np.packbits(down).tobytes())
