"""Decodes image files into upright RGB arrays, the same way for training, scoring and serving."""

from __future__ import annotations

import functools
import io
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
from PIL import ExifTags, ImageCms, TiffImagePlugin, UnidentifiedImageError
from PIL import Image as Pillow

from trainer.annotations import Image
from trainer.errors import TrainerError

Source: TypeAlias = bytes | str | os.PathLike[str]
"""The content of an image file, or its path."""

MAX_PIXELS = 100_000_000
"""Larger images are rejected before they are decoded."""

# Only plain raster formats: some of Pillow's other readers (EPS) run programs on the file's content.
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "TIFF", "GIF", "WEBP", "AVIF", "JPEG2000", "PPM")

# What Pillow's readers raise on damaged files, besides OSError; MemoryError comes from absurd tables.
_DAMAGED = (
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    AttributeError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)

UPRIGHT = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
"""EXIF orientation → transposition that makes the stored pixels upright (EXIF 2.32, tag 0x0112)."""

_pillow_warnings = threading.Lock()


class ImageError(TrainerError):
    """A file that is not an image, is damaged or is too large; the message says which, without the path."""


class TooManyPixelsError(ImageError):
    """An image with more pixels than allowed; it was not decoded."""


def decode(source: Source, *, max_pixels: int = MAX_PIXELS, short_side: int | None = None) -> Image:
    """Decode an image: uint8 [H, W, 3], RGB, EXIF orientation applied, the first page of several.

    Transparency is dropped and the colour under it kept, as the reference's own reader does. 16-bit and
    integer greys are divided by 257; floats are read as 0 to 1, or as 0 to 255 if any is above 1.

    Args:
        max_pixels: images with more pixels are rejected before they are decoded.
        short_side: decode a JPEG at 1/2, 1/4 or 1/8 of its width and height (rounded up) if its short side
            then still has this many pixels. That takes a fraction of the time; each pixel is about the mean
            of the pixels it replaces.

    Raises:
        ImageError: the file is missing, empty, not an image, truncated, damaged or too large.
    """
    with open_image(source, max_pixels) as image:
        if short_side is not None and (scale := min(image.size) // short_side) > 1:
            # Pillow takes its smallest scale that keeps this size; other formats stay as they are.
            image.draft(None, (image.width // scale, image.height // scale))
        load_pixels(image)
        # Only now: Pillow makes TIFFs upright itself when it loads them, and then drops the tag.
        method = UPRIGHT.get(orientation_of(image))
        rgb = to_rgb(image)
        if method is not None:
            rgb = rgb.transpose(method)
        return np.array(rgb, dtype=np.uint8)


@functools.cache
def suffixes() -> frozenset[str]:
    """File name suffixes of the formats that `decode` reads: lower case, with the dot."""
    formats = _formats()
    return frozenset(suffix for suffix, name in Pillow.registered_extensions().items() if name in formats)


def probe(source: Source, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read the upright (width, height) in pixels from an image's header.

    Raises:
        ImageError: as in `decode`, but damage after the header goes unnoticed.
    """
    with open_image(source, max_pixels) as image:
        return upright_size(image)


def thumbnail(source: Source, side: int, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode an image scaled down so that no side exceeds `side` pixels; cheap for large JPEGs.

    Raises:
        ImageError: as in `decode`.
    """
    with open_image(source, max_pixels) as image:
        image.draft("RGB", (2 * side, 2 * side))
        load_pixels(image)
        method = UPRIGHT.get(orientation_of(image))
        rgb = to_rgb(image)
        rgb.thumbnail((side, side), Pillow.Resampling.BICUBIC, reducing_gap=2.0)
        return np.array(rgb if method is None else rgb.transpose(method), dtype=np.uint8)


@contextmanager
def open_image(source: Source, max_pixels: int) -> Iterator[Pillow.Image]:
    """Open an image, read its header and check its size; Pillow's errors become ImageError.

    Raises:
        ImageError: as in `decode`.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                raise ImageError("the image is empty (0 bytes)")
            file.seek(0)
            with _quiet():
                image = Pillow.open(file, formats=_formats())
            with image:
                width, height = image.size
                if width * height > max_pixels:
                    raise _too_many_pixels(f"{width} x {height} = {width * height:,}", max_pixels)
                yield image
    except UnidentifiedImageError:
        raise ImageError(
            "not an image in a supported format (jpg, png, bmp, tiff), or damaged in its header"
        ) from None
    except Pillow.DecompressionBombError as error:
        # Pillow checks a limit of its own, above MAX_PIXELS, before it reports the size.
        got = "".join(re.findall(r"\d+ pixels", str(error))[:1])
        raise _too_many_pixels(got, max_pixels) from None
    except FileNotFoundError:
        raise ImageError("the image file does not exist") from None
    except OSError as error:
        # Errors of the operating system have a number, those of decoders do not.
        reason = f"cannot be read: {error.strerror}" if error.errno is not None else _damage(error)
        raise ImageError(f"the image {reason}") from error
    except _DAMAGED as error:
        raise ImageError(f"the image {_damage(error)}") from error


def _too_many_pixels(got: str, max_pixels: int) -> TooManyPixelsError:
    rule = f"at most {max_pixels:,} are allowed; scale it down"
    return TooManyPixelsError(f"the image has too many pixels: {got}, {rule}")


def _damage(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if "truncated" in text.lower():
        return "is truncated: the file ends before the image does"
    return f"is damaged: {text}"


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats in _FORMATS that this Pillow was built with."""
    Pillow.init()
    return tuple(name for name in _FORMATS if name in Pillow.OPEN)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings of suspicious metadata and sizes, which are harmless or become an ImageError.

    The lock keeps threads from restoring each other's filters.
    """
    with _pillow_warnings, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def load_pixels(image: Pillow.Image) -> None:
    """Decode the pixels of an opened image."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        with _quiet():  # the loader reads metadata again
            image.load()
    else:
        image.load()


def orientation_of(image: Pillow.Image) -> int:
    """EXIF orientation, 1 to 8; 1 if there is none or the EXIF block is damaged, as in image viewers."""
    try:
        with _quiet():
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, *_DAMAGED):
        return 1
    return value if isinstance(value, int) and value in UPRIGHT else 1


def upright_size(image: Pillow.Image) -> tuple[int, int]:
    """(width, height) of an opened image after its EXIF orientation."""
    width, height = image.size
    orientation = orientation_of(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Some releases of Pillow already rotate `size`, so read the tags.
        width, height = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
    return (height, width) if orientation >= 5 else (width, height)


def to_rgb(image: Pillow.Image) -> Pillow.Image:
    """Convert an image in any of Pillow's modes to 8-bit RGB."""
    if image.mode == "RGB":
        return image  # convert would copy it
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Pillow.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        floats = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0)
        scale = 255 if floats.max() <= 1 else 1
        return Pillow.fromarray((floats * scale).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None, "it is None only when converting in place"
        return converted
    # With a transparent palette entry, Pillow would warn and change its colour.
    image.info.pop("transparency", None)
    if image.mode == "La":
        image = image.convert("LA")
    elif image.mode == "RGBa":
        image = image.convert("RGBA")
    return image.convert("RGB")
