"""Scales samples of more than 8 bits, integers and floats, to 0 … 255 by the range that their file uses."""

from __future__ import annotations

import math
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import TiffImagePlugin

Samples: TypeAlias = npt.NDArray[Any]
"""Integers or floats of more than 8 bits, [H, W] or [H, W, 3]."""

_MAX_SAMPLE_VALUE = 281
"""TIFF's tag MaxSampleValue."""
_ROUNDING = 0.1
"""Fraction by which floats may exceed a range, as resampling makes them, and still count as within it."""
_DARKEST = 16
"""Floats of 0 to 255 with no sample above this would be a black image, so they have another range."""
_HEADER_BYTES = 4096
_JPEG2000_SIZE = b"\xff\x4f\xff\x51"
_JPEG2000_DEPTH = 42
"""Bytes from the start of a codestream, where its size segment is, to the depth of the first channel."""
_LOW_BYTES = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
"""How Pillow's raw modes end that take the high bytes of 16-bit samples → that take the low bytes."""


class SampleRange(NamedTuple):
    """The range of an image's samples that becomes 0 … 255.

    Attributes:
        low, high: the samples that become 0 and 255; samples beyond them are clipped.
        smallest, largest: of the image's samples.
        is_known: the file declares the range, or the samples fill a usual one; otherwise it is a guess.
    """

    low: float
    high: float
    smallest: float
    largest: float
    is_known: bool


def range_of(samples: Samples, declared_bits: int | None = None) -> SampleRange:
    """Choose the range of an image's samples.

    - Integers: 0 to 2^bits - 1. The number of bits is the smallest even one, from 8, that holds the largest
      sample, but no less than the declared one.
    - Floats: 0 to 1, or -1 to 1, if all samples are within; 0 to the largest if that is below 16, which would
      be black out of 255; otherwise 0 to 255, or as for integers.
    - Either with samples well below 0: from the smallest to the largest.

    Infinite samples and NaN do not count.

    Args:
        declared_bits: bits that the file says its samples use.
    """
    is_float = samples.dtype.kind == "f"
    finite = samples[np.isfinite(samples)] if is_float else samples
    if finite.size == 0:
        return SampleRange(0, 1, 0, 0, True)
    smallest, largest = float(finite.min()), float(finite.max())
    if is_float and largest <= 1 + _ROUNDING and smallest >= -_ROUNDING:
        return SampleRange(0, 1, smallest, largest, True)
    if is_float and largest <= 1 + _ROUNDING and smallest >= -1 - _ROUNDING:
        return SampleRange(-1, 1, smallest, largest, False)
    if smallest < -_ROUNDING * max(largest, 0):
        return SampleRange(smallest, max(largest, smallest + 1), smallest, largest, False)
    if is_float and 0 < largest < _DARKEST:
        return SampleRange(0, largest, smallest, largest, False)
    used_bits = max(8, math.ceil(largest / (1 + _ROUNDING) if is_float else largest).bit_length())
    used_bits += used_bits % 2
    bits = max(used_bits, declared_bits or 0)
    usual_bits = (8,) if is_float else (16, 8 * samples.dtype.itemsize)
    is_known = declared_bits is not None or bits in usual_bits or largest <= 0
    return SampleRange(0, 2**bits - 1, smallest, largest, is_known)


def to_8_bits(samples: Samples, chosen: SampleRange) -> npt.NDArray[np.uint8]:
    """Scale samples linearly, so that `low` becomes 0 and `high` 255; NaN becomes 0."""
    if samples.dtype == np.uint16:  # by a table, for speed and memory
        return _scaled(np.arange(65536), chosen)[samples]
    return _scaled(samples, chosen)


def _scaled(samples: Samples, chosen: SampleRange) -> npt.NDArray[np.uint8]:
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are clipped, and NaN replaced
        values = samples.astype(np.float32)
        values -= chosen.low  # in place: an image may have a hundred million samples
        values *= 255 / (chosen.high - chosen.low)
        values += 0.5
    np.nan_to_num(values, copy=False, nan=0)
    return values.clip(0, 255, out=values).astype(np.uint8)


def load_samples(
    image: Pillow.Image, file: IO[bytes], open_again: Callable[[], Pillow.Image]
) -> tuple[Samples | None, int | None]:
    """Load the pixels of an opened image, and return them in full depth if they have more than 8 bits.

    Args:
        file: what the image was opened from.
        open_again: opens another image from it.

    Returns:
        The samples, not upright yet, and how many of their bits the file says that it uses. None, None for an
        image of 8 bits or fewer per sample.
    """
    is_grey = image.mode in ("F", "I") or image.mode.startswith("I;16")
    low_tiles = _tiles_of_low_bytes(image)
    if not is_grey and low_tiles is None:
        image.load()
        return None, None
    bits = _declared_bits(image, file)
    image.load()
    pixels = np.asarray(image)
    if low_tiles is None:
        return pixels, bits
    # Pillow has no mode for colours of 16 bits: it reads their high bytes. Decode the low bytes separately.
    with open_again() as second:
        second.tile = low_tiles  # type: ignore[attr-defined]
        second.load()
        low = np.asarray(second)
    if low_tiles[0].args == "RGBA":  # grey with alpha, its four bytes read as four channels
        return low[..., 0].astype(np.uint16) * 256 + low[..., 1], bits
    return pixels[..., :3].astype(np.uint16) * 256 + low[..., :3], bits


def _tiles_of_low_bytes(image: Pillow.Image) -> list[Any] | None:
    """The parts of a PNG or TIFF of 16-bit colours, with raw modes that read low bytes; None for others."""
    if image.format not in ("PNG", "TIFF") or image.mode not in ("RGB", "RGBA"):
        return None
    tiles = []
    for tile in getattr(image, "tile", []):
        raw_mode = tile.args if isinstance(tile.args, str) else tile.args[0]
        if raw_mode == "LA;16B":
            low_mode = "RGBA"
        elif raw_mode[-3:] in _LOW_BYTES and not raw_mode.startswith("RGBa"):  # not multiplied by alpha
            low_mode = raw_mode[:-3] + _LOW_BYTES[raw_mode[-3:]]
        else:
            return None
        arguments = low_mode if isinstance(tile.args, str) else (low_mode, *tile.args[1:])
        tiles.append(tile._replace(args=arguments))
    return tiles or None


def _declared_bits(image: Pillow.Image, file: IO[bytes]) -> int | None:
    """How many bits of each sample the format or the file says are used; before the pixels are read."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        largest = image.tag_v2.get(_MAX_SAMPLE_VALUE)
        if isinstance(largest, tuple):
            largest = max(largest)
        if isinstance(largest, int) and largest > 255:
            return largest.bit_length()
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))
        return int(bits[0]) if 8 < bits[0] < 16 else None
    if image.format == "PNG":
        return _significant_bits(file)
    # The readers of these scale to 16 bits by themselves.
    if image.format == "JPEG2000":
        is_scaled = _jpeg2000_depth(file) < 16
    elif image.format == "PPM":
        is_scaled = not isinstance(image.tile[0].args, str)  # type: ignore[attr-defined]
    else:
        is_scaled = image.format == "HEIF"
    return 16 if is_scaled else None


def _significant_bits(file: IO[bytes]) -> int | None:
    """The largest number in a PNG's sBIT chunk; None if it has none before its pixels."""
    with _rewound(file):
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name == b"sBIT":
                return max(file.read(min(length, 4)), default=None)
            if name == b"IDAT":
                break
            file.seek(length + 4, os.SEEK_CUR)
    return None


def _jpeg2000_depth(file: IO[bytes]) -> int:
    """Bits per sample of the first channel; 16 if the header is not where it should be."""
    with _rewound(file):
        header = file.read(_HEADER_BYTES)
    start = header.find(_JPEG2000_SIZE)
    depth = header[start + _JPEG2000_DEPTH :][:1] if start >= 0 else b""
    return depth[0] % 128 + 1 if depth else 16


@contextmanager
def _rewound(file: IO[bytes]) -> Iterator[None]:
    """Move to the start of a file, and afterwards back to where it was."""
    position = file.tell()
    file.seek(0)
    try:
        yield
    finally:
        file.seek(position)
