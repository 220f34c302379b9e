"""Decodes image files into upright RGB arrays, the same way for checks, training, scoring and serving."""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from PIL import ExifTags, ImageCms, TiffImagePlugin, UnidentifiedImageError
from PIL import Image as Pillow

from trainer.annotations import Image
from trainer.data import image_formats, unusual_tiff
from trainer.data.sample_range import SampleRange, Samples, load_samples, range_of, to_8_bits
from trainer.data.unusual_tiff import UnusualTiffError
from trainer.errors import TrainerError
from trainer.files import describe_lookalike

Source: TypeAlias = bytes | str | os.PathLike[str]
"""The content of an image file, or its path."""

MAX_PIXELS = 100_000_000
"""Larger images are rejected before they are decoded."""

_HEAD_BYTES = 512
"""How much of a file is read to identify it, if it is no image."""

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

_UPRIGHT = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
"""EXIF orientation → transposition that makes the stored pixels upright (EXIF 2.32, tag 0x0112)."""

_END_OF_JPEG = b"\xff\xd9"
_OTHER_SCAN_DATA = bytes.fromhex("a55a3cc36996") * 12

_pillow_warnings = threading.RLock()


class ImageError(TrainerError):
    """A file that is not an image, is damaged or is too large; the message says which, without the path."""


class TooManyPixelsError(ImageError):
    """An image with more pixels than allowed; it was not decoded."""


class TruncatedImageError(ImageError):
    """A file that ends before its image does."""


class _OtherTiffError(ImageError):
    """A TIFF that Pillow does not read."""


@dataclass(frozen=True)
class LoadedImage:
    """An image whose pixels are decoded, not upright yet.

    Attributes:
        pixels: as Pillow decodes them, perhaps reduced by `draft`; an array if they have more than 8 bits.
        size: (width, height) in pixels, upright and in full.
        to_upright: transposition that makes `pixels` upright; None if they are.
        declared_bits: how many bits of each sample the file says that it uses; None if it does not.
    """

    pixels: Pillow.Image | Samples
    size: tuple[int, int]
    to_upright: Pillow.Transpose | None
    declared_bits: int | None

    @cached_property
    def sample_range(self) -> SampleRange | None:
        """The range of the samples that becomes 0 to 255; None for samples of 8 bits or fewer."""
        return None if isinstance(self.pixels, Pillow.Image) else range_of(self.pixels, self.declared_bits)

    def rgb(self) -> Pillow.Image:
        """The pixels in 8-bit RGB, not upright yet."""
        if isinstance(self.pixels, Pillow.Image):
            return _to_rgb(self.pixels)
        assert self.sample_range is not None, "samples have one"
        return Pillow.fromarray(to_8_bits(self.pixels, self.sample_range)).convert("RGB")

    def upright(self, image: Pillow.Image) -> Pillow.Image:
        """Make an image upright that was made from the pixels."""
        return image if self.to_upright is None else image.transpose(self.to_upright)


def decode(source: Source, *, max_pixels: int = MAX_PIXELS, short_side: int | None = None) -> Image:
    """Decode an image: uint8 [H, W, 3], RGB, EXIF orientation applied, the first page of several.

    Transparency is dropped and the colour under it kept, as the reference's own reader does. Samples of more
    than 8 bits are scaled by the range that the file uses; see `sample_range.range_of`.

    Args:
        max_pixels: images with more pixels are rejected before they are decoded.
        short_side: decode a JPEG at 1/2, 1/4 or 1/8 of its width and height (rounded up) if its short side
            then still has this many pixels. That takes a fraction of the time; each pixel is about the mean
            of the pixels it replaces.

    Raises:
        ImageError: the file is missing, empty, not an image, truncated, damaged or too large.
    """

    def draft(image: Pillow.Image) -> None:
        if short_side is not None and (scale := min(image.size) // short_side) > 1:
            # Pillow takes its smallest scale that keeps this size.
            image.draft(None, (image.width // scale, image.height // scale))

    with load(source, max_pixels, draft) as loaded:
        return np.array(loaded.upright(loaded.rgb()), dtype=np.uint8)


def probe(source: Source, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read the upright (width, height) in pixels from an image's header.

    Raises:
        ImageError: as in `decode`, but damage after the header goes unnoticed.
    """
    try:
        with open_image(source, max_pixels) as (image, _):
            return _upright_size(image)
    except _OtherTiffError:
        with _as_image_errors(max_pixels), _opened(source) as file:
            width, height, orientation = unusual_tiff.size_of(file)
            return (height, width) if orientation >= 5 else (width, height)


def thumbnail(source: Source, side: int, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode an image scaled down so that no side exceeds `side` pixels; cheap for large JPEGs.

    Raises:
        ImageError: as in `decode`.
    """
    with load(source, max_pixels, lambda image: image.draft("RGB", (2 * side, 2 * side))) as loaded:
        rgb = loaded.rgb()
        rgb.thumbnail((side, side), Pillow.Resampling.BICUBIC, reducing_gap=2.0)
        return np.array(loaded.upright(rgb), dtype=np.uint8)


@contextmanager
def load(
    source: Source, max_pixels: int, draft: Callable[[Pillow.Image], object] | None = None
) -> Iterator[LoadedImage]:
    """Decode an image's pixels; all that checks, trains or scores decodes by this.

    Args:
        draft: called with an opened JPEG, to have Pillow decode it at a smaller scale or in grey.

    Raises:
        ImageError: as in `decode`, also for errors of Pillow's in the block.
    """
    with _as_image_errors(max_pixels):
        try:
            with open_image(source, max_pixels) as (image, file):
                loaded = _load(image, file, draft)
        except _OtherTiffError:
            with _opened(source) as file:
                loaded = _load_unusual_tiff(file, max_pixels)
        except TruncatedImageError:
            content = _with_end_marker(source)
            if content is None:
                raise
            with open_image(content, max_pixels) as (image, file):
                loaded = _load(image, file, draft)
        yield loaded


@contextmanager
def open_image(source: Source, max_pixels: int) -> Iterator[tuple[Pillow.Image, IO[bytes]]]:
    """Open an image, read its header and check its size; yields the image and the file that it reads.

    Raises:
        ImageError: as in `decode`, also for errors of Pillow's in the block.
    """
    with _as_image_errors(max_pixels, source), _opened(source) as file:
        if file.seek(0, os.SEEK_END) == 0:
            raise ImageError("the image is empty (0 bytes)")
        with _identify(file) as image:
            _check_size(*image.size, max_pixels)
            yield image, file


def orientation_of(image: Pillow.Image) -> int:
    """EXIF orientation, 1 to 8; 1 if there is none or the EXIF block is damaged, as in image viewers.

    The pixels of a PNG must be loaded: its EXIF block may follow them, so Pillow would load them here, and
    damage in them would pass for damage of EXIF.
    """
    try:
        with _quiet():
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, *_DAMAGED):
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _opened(source: Source) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _upright_size(image: Pillow.Image) -> tuple[int, int]:
    """(width, height) of an opened image after its EXIF orientation."""
    width, height = image.size
    orientation = orientation_of(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Some releases of Pillow already rotate `size`, so read the tags.
        width, height = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
    return (height, width) if orientation >= 5 else (width, height)


def _load(
    image: Pillow.Image, file: IO[bytes], draft: Callable[[Pillow.Image], object] | None
) -> LoadedImage:
    stored_size = image.size
    is_jpeg = image.format in ("JPEG", "MPO")
    if is_jpeg and draft is not None:
        draft(image)
    # TIFF's loader reads metadata again.
    with _quiet() if isinstance(image, TiffImagePlugin.TiffImageFile) else nullcontext():
        samples, declared_bits = load_samples(image, file, lambda: _identify(file))
    # Only now: Pillow makes TIFFs upright itself when it loads them, and then drops the tag.
    orientation = orientation_of(image)
    width, height = stored_size if is_jpeg else image.size
    size = (height, width) if orientation >= 5 else (width, height)
    pixels = image if samples is None else samples
    return LoadedImage(pixels, size, _UPRIGHT.get(orientation), declared_bits)


def _load_unusual_tiff(file: IO[bytes], max_pixels: int) -> LoadedImage:
    width, height, orientation = unusual_tiff.size_of(file)
    _check_size(width, height, max_pixels)
    size = (height, width) if orientation >= 5 else (width, height)
    return LoadedImage(unusual_tiff.read_samples(file), size, _UPRIGHT.get(orientation), None)


def _identify(file: IO[bytes]) -> Pillow.Image:
    """Open an image with the reader of its format, whatever the file's name is."""
    file.seek(0)
    try:
        with _quiet():
            image = Pillow.open(file, formats=image_formats.plain_formats())
        if isinstance(image, TiffImagePlugin.TiffImageFile) and unusual_tiff.is_misread_by_pillow(image):
            raise _OtherTiffError("a TIFF that Pillow misreads")
        return image
    except UnidentifiedImageError:
        file.seek(0)
        head = file.read(_HEAD_BYTES)
    if head.startswith(unusual_tiff.TIFF_STARTS):
        raise _OtherTiffError("a TIFF that Pillow does not read")
    if not image_formats.is_heif(head):
        if other := image_formats.describe_other(head):
            raise ImageError(f"not an image that can be read, but {other}")
        readable = image_formats.format_names()
        raise ImageError(f"not an image in a supported format ({readable}), or damaged in its header")
    if not image_formats.has_heif():
        raise ImageError(f"a HEIC/HEIF image, which needs another package; {image_formats.heif_hint()}")
    file.seek(0)
    try:
        with _quiet():
            return Pillow.open(file, formats=["HEIF"])
    except UnidentifiedImageError:
        raise ImageError("a HEIC/HEIF image that is damaged or in a coding that cannot be read") from None


@contextmanager
def _as_image_errors(max_pixels: int, source: Source = b"") -> Iterator[None]:
    """Turn what Pillow raises into ImageError."""
    try:
        yield
    except Pillow.DecompressionBombError as error:
        # Pillow checks a limit of its own, above MAX_PIXELS, before it reports the size.
        got = "".join(re.findall(r"\d+ pixels", str(error))[:1])
        raise _too_many_pixels(got, max_pixels) from None
    except FileNotFoundError:
        raise ImageError(missing_image("" if isinstance(source, bytes) else source)) from None
    except OSError as error:
        # Errors of the operating system have a number, those of decoders do not.
        if error.errno is not None:
            raise ImageError(f"the image cannot be read: {error.strerror}") from error
        raise _damage(error) from error
    except UnusualTiffError as error:
        raise ImageError(f"a TIFF that {error}") from error
    except _DAMAGED as error:
        raise _damage(error) from error


def missing_image(path: str | os.PathLike[str]) -> str:
    """Say that an image file does not exist, and which one was probably meant."""
    lookalike = describe_lookalike(path)
    return "the image file does not exist" + (f"; {lookalike}" if lookalike else "")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the image is damaged: its header says that it has {width} x {height} pixels")
    if width * height > max_pixels:
        raise _too_many_pixels(f"{width} x {height} = {width * height:,}", max_pixels)


def _too_many_pixels(got: str, max_pixels: int) -> TooManyPixelsError:
    rule = f"at most {max_pixels:,} are allowed; scale it down"
    return TooManyPixelsError(f"the image has too many pixels: {got}, {rule}")


def _damage(error: Exception) -> ImageError:
    text = str(error) or type(error).__name__
    if "truncated" in text.lower():
        return TruncatedImageError("the image is truncated: the file ends before the image does")
    return ImageError(f"the image is damaged: {text}")


def _with_end_marker(source: Source) -> bytes | None:
    """The content of a JPEG that lacks nothing but its end marker, with that marker; None for other files.

    The decoder does not say whether it had all of the pixels when the file ended. It had them if they are
    the same whatever follows.
    """
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    content = content.rstrip(b"\xff")  # of a marker that was cut in two
    completed = content + _END_OF_JPEG
    pixels = []
    for candidate in (completed, content + _OTHER_SCAN_DATA + _END_OF_JPEG):
        try:
            with Pillow.open(io.BytesIO(candidate), formats=["JPEG"]) as image:
                pixels.append(image.tobytes())
        except (OSError, *_DAMAGED):
            return None
    return completed if pixels[0] == pixels[1] else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings of suspicious metadata and sizes, which are harmless or become an ImageError.

    The lock keeps threads from restoring each other's filters.
    """
    with _pillow_warnings, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _to_rgb(image: Pillow.Image) -> Pillow.Image:
    """Convert a loaded image of 8 bits per sample or fewer, in any of Pillow's modes, to RGB."""
    if image.mode == "RGB":
        return image  # convert would copy it
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
