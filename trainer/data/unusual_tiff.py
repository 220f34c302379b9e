"""Reads TIFFs that Pillow does not read, such as 64-bit floats and colours as floats, with tifffile."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from PIL import TiffImagePlugin

from trainer.data.sample_range import Samples, range_of

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of TIFF and BigTIFF files."""
_ORIENTATION = 274
_WHITE_IS_ZERO = 0


class UnusualTiffError(ValueError):
    """A TIFF that cannot be read; the message completes "a TIFF that …"."""


def is_misread_by_pillow(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether Pillow opens a TIFF but decodes it to wrong pixels.

    That is so for more than 8 bits per sample if colours are stored one after the other, if white is 0, or if
    32-bit integers have no sign.
    """
    tags = image.tag_v2
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    are_unsigned = max(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))) == 1
    is_planar = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2
    is_white_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
    return bits > 8 and (is_planar or is_white_zero or (bits == 32 and are_unsigned))


def size_of(file: IO[bytes]) -> tuple[int, int, int]:
    """Read (width, height) in pixels, as stored, and the EXIF orientation of the first page.

    Raises:
        UnusualTiffError: it is not a TIFF that can be read.
    """
    with _first_page(file) as page:
        tag = page.tags.get(_ORIENTATION)
        width, height = int(page.imagewidth), int(page.imagelength)
        if width < 1 or height < 1:
            raise UnusualTiffError(f"has no pixels: its size is {width} × {height}")
        return width, height, 1 if tag is None else int(tag.value)


def read_samples(file: IO[bytes]) -> Samples:
    """Decode the first page: [H, W] or [H, W, 3], as stored. Further channels, such as alpha, are dropped.

    Raises:
        UnusualTiffError: it is not a TIFF that can be read.
    """
    with _first_page(file) as page:
        channels = int(page.samplesperpixel)
        if channels > 4 or page.axes not in ("YX", "YXS", "SYX"):
            raise UnusualTiffError(f"has {channels} channels, where 1 (grey) or 3 (RGB) can be read")
        _require_all_segments(page, file.seek(0, os.SEEK_END))
        try:
            samples = np.asarray(page.asarray())
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            compression = f"{page.dtype} compressed by {page.compression.name}"
            raise UnusualTiffError(f"holds {compression}; save it uncompressed or with deflate") from None
        if samples.size != page.imagelength * page.imagewidth * channels:
            raise UnusualTiffError("is damaged: it does not hold the pixels that its header says")
        if samples.dtype.kind not in "uif":
            raise UnusualTiffError(f"holds {samples.dtype}, where integers or floats can be read")
        if page.axes == "SYX":
            samples = np.moveaxis(samples, 0, -1)
        if samples.shape[:2] != (page.imagelength, page.imagewidth):
            raise UnusualTiffError("is damaged: its pixels are not of the size that it states")
        if samples.ndim == 3:
            samples = samples[..., :3] if channels >= 3 else samples[..., 0]
        if page.photometric == _WHITE_IS_ZERO and samples.dtype.kind == "u":
            samples = samples.dtype.type(range_of(samples).high) - samples
        return samples.astype(np.float32) if samples.dtype == np.float16 else samples


def _require_all_segments(page: Any, file_size: int) -> None:
    """Reject a page some of whose strips or tiles are not in the file: tifffile would take them as zeros."""
    starts, lengths = page.dataoffsets, page.databytecounts
    is_complete = len(starts) == len(lengths) == math.prod(page.chunked)
    if not is_complete or any(
        length <= 0 or start + length > file_size for start, length in zip(starts, lengths, strict=True)
    ):
        raise UnusualTiffError("is truncated or damaged: it ends before its pixels do")


@contextmanager
def _first_page(file: IO[bytes]) -> Iterator[Any]:
    try:
        import tifffile
    except ImportError:
        raise UnusualTiffError("another package reads: pip install tifffile") from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # damage becomes an error, not a log entry
    file.seek(0)
    try:
        with tifffile.TiffFile(file) as tiff:
            try:
                first = tiff.pages.first
            except IndexError:
                raise UnusualTiffError("is truncated: the file ends before its first page") from None
            yield first
    except tifffile.TiffFileError as error:
        raise UnusualTiffError(f"is damaged: {error}") from error
