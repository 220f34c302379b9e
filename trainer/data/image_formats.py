"""The image formats that are read, and what a file of another format is."""

from __future__ import annotations

import functools
import importlib

from PIL import Image as Pillow

# Only plain raster formats: some of Pillow's other readers (EPS) run programs on the file's content.
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "TIFF", "GIF", "WEBP", "AVIF", "JPEG2000", "PPM")
_HEIF_PLUGINS = ("pillow_heif", "pi_heif")
_HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_NAMES = {"DIB": None, "MPO": None, "WEBP": "WebP", "JPEG2000": "JPEG 2000", "PPM": "PGM/PPM", "HEIF": "HEIC"}
"""Format → what users call it; None for those that belong to another one."""

_OTHER_FILES = (
    (b"%PDF", "a PDF"),
    (b"8BPS", "a Photoshop file (PSD)"),
    (b"%!PS", "PostScript"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\0\0\x01\0", "an icon (ICO)"),
    (b"v/1\x01", "an OpenEXR image"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"version https://git-lfs", "a pointer of Git LFS; run `git lfs pull`"),
)
"""First bytes → what a file is."""


@functools.cache
def plain_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that it reads itself, as far as it was built with them."""
    Pillow.init()
    return tuple(name for name in _FORMATS if name in Pillow.OPEN)


def format_names() -> str:
    """The formats that can be read here, as users call them."""
    readable = (*plain_formats(), "HEIF") if has_heif() else plain_formats()
    return ", ".join(name for format in readable if (name := _NAMES.get(format, format)))


@functools.cache
def suffixes() -> frozenset[str]:
    """File name suffixes of images: lower case, with the dot.

    HEIC/HEIF is among them even if its package is missing: better an error that names the package than images
    that are left out.
    """
    readable, registered = plain_formats(), Pillow.registered_extensions()
    return _HEIF_SUFFIXES | {suffix for suffix, name in registered.items() if name in readable}


@functools.cache
def has_heif() -> bool:
    """Whether an installed package reads HEIC/HEIF images; registers it with Pillow."""
    for name in _HEIF_PLUGINS:
        try:
            plugin = importlib.import_module(name)
        except ImportError:
            continue
        # Without thumbnails: they would be decoded instead of the image.
        plugin.register_heif_opener(thumbnails=False)
        return True
    return False


def is_heif(head: bytes) -> bool:
    """Whether a file with these first bytes is a HEIC/HEIF image."""
    brands = _brands(head)
    return any(brand in _HEIF_BRANDS for brand in brands) and not {b"avif", b"avis"} & brands


def heif_hint() -> str:
    """How HEIC/HEIF images can be read."""
    return "pip install 'image-trainer[heif]' reads HEIC/HEIF images; or convert them to JPEG"


def _brands(head: bytes) -> set[bytes]:
    """The brands of a file in ISO's base media format, as HEIC, AVIF and MP4 are; empty for other files."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[start : start + 4] for start in range(16, end - 3, 4))}


def describe_other(head: bytes) -> str:
    """What a file that is no supported image is, by its first bytes; "" if they do not show it."""
    for start, description in _OTHER_FILES:
        if head.startswith(start):
            return description
    if head[128:132] == b"DICM":
        return "a DICOM file"
    if brands := _brands(head):
        return (
            "a camera's raw file" if b"crx " in brands else "" if {b"avif", b"avis"} & brands else "a video"
        )
    if head.startswith(b"\x1aE\xdf\xa3") or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "a video"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if b"<svg" in text:
        return "an SVG drawing"
    if text.startswith((b"<?xml", b"<error")):
        return "XML"
    if text.startswith((b"{", b"[")):
        return "JSON"
    return ""
