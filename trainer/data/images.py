"""Image files into upright RGB arrays: one decoder for training, scoring and serving."""

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
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import ExifTags, ImageCms, TiffImagePlugin, UnidentifiedImageError
from PIL import Image as Pillow

from trainer.annotations import Image
from trainer.errors import TrainerError

Source: TypeAlias = bytes | str | os.PathLike[str]
"""An image file's content, or its path."""

MAX_PIXELS = 100_000_000
_HASHED_FROM = 64
"""Pixels a side, at least, that a perceptual hash is made of where the image has as many."""
_LEAST_CONTRAST = 4
"""Between the darkest and the lightest of 81 grey means from 0 to 255."""

# Only plain raster formats: some of Pillow's other readers (EPS) start programs on the file's content.
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "TIFF", "GIF", "WEBP", "AVIF", "JPEG2000", "PPM")

# What Pillow's readers raise on damaged files, beside OSError; MemoryError comes from absurd tables.
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

_TRANSPOSE = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
"""EXIF orientation → what makes the stored pixels upright (EXIF 2.32, tag 0x0112)."""

_QUARTER_TURNS = {1: 0, 3: 2, 6: 3, 8: 1}
"""EXIF orientation → quarter turns to the left that make the stored pixels upright."""

_REDUCED = {8: 64, 4: 32, 2: 16}
"""OpenCV's flags for a JPEG at 1/8, 1/4 and 1/2 of its width and height."""

_pillow_warnings = threading.Lock()


class ImageError(TrainerError):
    """A file that is no image, is damaged, or is too large; the message says which, without the path."""


class TooManyPixelsError(ImageError):
    """An image of more pixels than are allowed; none of them was decoded."""


def decode(source: Source, *, max_pixels: int = MAX_PIXELS, short_side: int | None = None) -> Image:
    """Decode an image: uint8 [H, W, 3], RGB, EXIF orientation applied, the first page of several.

    Transparency is dropped (the colour below it stays), as the reference's own reader does. Grey of 16 bits
    or of integers is divided by 257; floats are taken as 0 to 1, or as 0 to 255 if one is larger than 1.

    Args:
        short_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its width and height (rounded up) while its
            short side keeps this many pixels. That costs a fraction of the time; each pixel is about the
            mean of those that it stands for.

    Raises:
        ImageError: missing, empty, no image, truncated or damaged, or of more than `max_pixels` pixels
            (checked before the pixels are decoded).
    """
    with _opened(source, max_pixels) as image:
        if short_side is not None and (scale := min(image.size) // short_side) > 1:
            # Pillow takes the largest of its scales that keeps this size; other formats stay as they are.
            image.draft(None, (image.width // scale, image.height // scale))
        _load(image)
        # In this order: Pillow itself makes TIFFs upright as it loads them, and then drops the tag.
        method = _TRANSPOSE.get(_orientation(image))
        rgb = _rgb(image)
        if method is not None:
            rgb = rgb.transpose(method)
        return np.array(rgb, dtype=np.uint8)


def decode_quickly(path: str | os.PathLike[str], *, short_side: int | None = None) -> Image:
    """What `decode` gives, a JPEG by OpenCV in four fifths of the time: for training, which decodes most.

    Pillow and OpenCV have one library decode JPEGs, so that the pixels are the same; if one of them was
    built with another, they may differ by a level or two.

    Raises:
        ImageError: as `decode`; but of a JPEG that is damaged within, what can be read may be given.
    """
    image = _by_opencv(path, short_side)
    return decode(path, short_side=short_side) if image is None else image


def _by_opencv(path: str | os.PathLike[str], short_side: int | None) -> Image | None:
    """None: no JPEG of three colours, a mirrored one, or one to complain of, all of which is Pillow's."""
    import cv2  # where a packaged classifier is served it may be missing

    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return None
    # Some releases of OpenCV give the part that there is of a truncated file.
    if not (content.startswith(b"\xff\xd8\xff") and content.endswith(b"\xff\xd9")):
        return None
    with _opened(content, MAX_PIXELS) as header:
        if header.format != "JPEG" or header.mode != "RGB":
            return None
        scale = 1 if short_side is None else min(header.size) // short_side
        turns = _QUARTER_TURNS.get(_orientation(header))
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


@functools.cache
def suffixes() -> frozenset[str]:
    """The file name endings of the formats that `decode` reads: lower case, with their dot."""
    formats = _formats()
    return frozenset(suffix for suffix, name in Pillow.registered_extensions().items() if name in formats)


def probe(source: Source, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Upright (width, height) in pixels from the file's header.

    Raises:
        ImageError: as `decode`, except that damage behind the header goes unseen.
    """
    with _opened(source, max_pixels) as image:
        return _upright_size(image)


def verify(source: Source, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read an image to its last byte, as cheaply as its format allows; return its upright (width, height).

    Raises:
        ImageError: `decode` would raise it too.
    """
    return look(source, max_pixels=max_pixels).size


class Look(NamedTuple):
    """What one cheap pass over an image tells: its upright (width, height), and its perceptual hash.

    The hash is dHash (N. Krawetz, "Kind of Like That", 2013), along both axes: the image at 9 x 9 grey
    pixels, and a bit for each that is darker than its right neighbour, 64 bits, then for each that is darker
    than the one below, 64 more. It hardly changes with size, compression, brightness or contrast. Images
    without contrast have the hash (0, 0).
    """

    size: tuple[int, int]
    hash: tuple[int, int]


def look(source: Source, *, max_pixels: int = MAX_PIXELS) -> Look:
    """As `verify`, with the image's perceptual hash, which comes at little more cost.

    Raises:
        ImageError: `decode` would raise it too.
    """
    with _opened(source, max_pixels) as image:
        size = _upright_size(image)
        # A JPEG at 1/8 scale costs a fraction of the time, though its whole stream is still read.
        image.draft("L", (_HASHED_FROM, _HASHED_FROM))
        _load(image)
        method = _TRANSPOSE.get(_orientation(image))
        plain = image if image.mode in ("L", "RGB") else _rgb(image)
        # Not by way of reduced pixels (reducing_gap), which would shift the edges of the nine.
        grey = plain.resize((9, 9), Pillow.Resampling.BOX).convert("L")
        return Look(size, _difference_hash(grey if method is None else grey.transpose(method)))


def thumbnail(source: Source, side: int, *, max_pixels: int = MAX_PIXELS) -> Image:
    """What `decode` gives, scaled down so that no side is longer than `side` pixels; cheap for large JPEGs.

    Raises:
        ImageError: as `decode`.
    """
    with _opened(source, max_pixels) as image:
        image.draft("RGB", (2 * side, 2 * side))
        _load(image)
        method = _TRANSPOSE.get(_orientation(image))
        rgb = _rgb(image)
        rgb.thumbnail((side, side), Pillow.Resampling.BICUBIC, reducing_gap=2.0)
        return np.array(rgb if method is None else rgb.transpose(method), dtype=np.uint8)


def _difference_hash(grey: Pillow.Image) -> tuple[int, int]:
    """The two numbers of 64 bits of an image of 9 x 9 grey pixels."""
    pixels = np.asarray(grey, dtype=np.int16)
    if int(pixels.max()) - int(pixels.min()) < _LEAST_CONTRAST:
        return 0, 0
    across = pixels[:8, :8] < pixels[:8, 1:]
    down = pixels[:8, :8] < pixels[1:, :8]
    return int.from_bytes(np.packbits(across).tobytes()), int.from_bytes(np.packbits(down).tobytes())


@contextmanager
def _opened(source: Source, max_pixels: int) -> Iterator[Pillow.Image]:
    """An image whose header is read and whose size is fit to decode; Pillow's errors become ImageError."""
    try:
        if isinstance(source, bytes):
            if not source:
                raise ImageError("the image is empty (0 bytes)")
            file: io.BytesIO | io.BufferedReader = io.BytesIO(source)
        else:
            file = open(source, "rb")  # noqa: SIM115 (closed below, as the BytesIO is)
            if os.fstat(file.fileno()).st_size == 0:
                file.close()
                raise ImageError("the image is empty (0 bytes)")
        with file:
            with _quiet():
                image = Pillow.open(file, formats=_formats())
            with image:
                width, height = image.size
                if width * height > max_pixels:
                    raise TooManyPixelsError(
                        _too_large(f"{width} x {height} = {width * height:,}", max_pixels)
                    )
                yield image
    except UnidentifiedImageError:
        raise ImageError(
            "not an image in a supported format (jpg, png, bmp, tiff), or damaged in its header"
        ) from None
    except Pillow.DecompressionBombError as error:
        # Pillow's own limit, above MAX_PIXELS, is checked before the image can be asked for its size.
        raise TooManyPixelsError(
            _too_large("".join(re.findall(r"\d+ pixels", str(error))[:1]), max_pixels)
        ) from None
    except FileNotFoundError:
        raise ImageError("the image file does not exist") from None
    except OSError as error:
        # An error of the operating system carries a number, one of a decoder does not.
        reason = f"cannot be read: {error.strerror}" if error.errno is not None else _damage(error)
        raise ImageError(f"the image {reason}") from error
    except _DAMAGED as error:
        raise ImageError(f"the image {_damage(error)}") from error


def _too_large(got: str, max_pixels: int) -> str:
    return f"the image has too many pixels: {got}, at most {max_pixels:,} are allowed; scale it down"


def _damage(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if "truncated" in text.lower():
        return "is truncated: the file ends before the picture does"
    return f"is damaged: {text}"


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of _FORMATS that this Pillow was built with."""
    Pillow.init()
    return tuple(name for name in _FORMATS if name in Pillow.OPEN)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Pillow warns of odd metadata and sizes: it is either harmless or an ImageError of ours.

    The lock keeps threads from restoring each other's filters.
    """
    with _pillow_warnings, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _load(image: Pillow.Image) -> None:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        with _quiet():  # its loader reads metadata once more
            image.load()
    else:
        image.load()


def _orientation(image: Pillow.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or the EXIF block is damaged, as viewers do."""
    try:
        with _quiet():
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, *_DAMAGED):
        return 1
    return value if isinstance(value, int) and value in _TRANSPOSE else 1


def _upright_size(image: Pillow.Image) -> tuple[int, int]:
    width, height = image.size
    orientation = _orientation(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Some releases of Pillow turn `size` already, so ask the tags.
        width, height = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
    return (height, width) if orientation >= 5 else (width, height)


def _rgb(image: Pillow.Image) -> Pillow.Image:
    """Any of Pillow's modes → RGB of 8 bits."""
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
        assert converted is not None, "only None when converting in place"
        return converted
    # Left in, a transparent palette entry makes Pillow warn, and its colour change.
    image.info.pop("transparency", None)
    if image.mode == "La":
        image = image.convert("LA")
    elif image.mode == "RGBa":
        image = image.convert("RGBA")
    return image.convert("RGB")
