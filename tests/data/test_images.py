"""Decoding images: modes, formats, EXIF orientation, damage and size limits."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from trainer.data.image_formats import has_heif
from trainer.data.image_scan import scan
from trainer.data.images import ImageError, decode, probe, thumbnail
from trainer.data.quick_decoding import decode_quickly


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


@pytest.fixture
def photo() -> Image.Image:
    """A smooth picture without symmetry, 60 x 40."""
    y, x = np.mgrid[0:40, 0:60]
    pixels = np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels)


def test_result_is_a_writable_rgb_array(photo: Image.Image) -> None:
    image = decode(encoded(photo, "PNG"))
    assert image.shape == (40, 60, 3)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    np.testing.assert_array_equal(image, np.asarray(photo))


@pytest.mark.parametrize(
    "suffix",
    ["jpg", "jpeg", "png", "jpe", "jfif", "bmp", "tif", "tiff", "gif", "webp", "avif", "jp2", "heic", "heif"],
)
def test_files_of_every_suffix(suffix: str, photo: Image.Image, tmp_path: Path) -> None:
    has_heif()
    path = tmp_path / f"사진 1.{suffix}"
    photo.save(path)
    assert np.abs(decode(path).astype(int) - np.asarray(photo)).mean() < 12
    assert decode(str(path)).shape == (40, 60, 3)
    assert probe(path) == scan(path).size == (60, 40)


@pytest.mark.parametrize(
    ("mode", "image_format"),
    [
        ("1", "PNG"), ("1", "TIFF"), ("L", "PNG"), ("L", "JPEG"), ("LA", "PNG"), ("LA", "TIFF"), ("P", "PNG"),
        ("P", "GIF"), ("P", "BMP"), ("RGB", "BMP"), ("RGBA", "PNG"), ("RGBA", "TIFF"), ("RGBA", "WEBP"),
        ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("YCbCr", "TIFF"),
    ],
)  # fmt: skip
def test_all_modes_decode_to_rgb(mode: str, image_format: str, photo: Image.Image) -> None:
    converted = photo.convert(mode)
    image = decode(encoded(converted, image_format))
    expected = np.asarray(converted.convert("RGB")).astype(int)
    assert np.abs(image - expected).mean() < 4


def test_transparency_is_dropped_not_blended() -> None:
    clear_red = Image.new("RGBA", (4, 4), (200, 10, 20, 0))
    assert (decode(encoded(clear_red, "PNG")) == (200, 10, 20)).all()


@pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255])])
def test_palette_with_transparency_keeps_its_colours(transparency: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    decoded = decode(encoded(image, "PNG", transparency=transparency))
    assert decoded.tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]


def test_grey_with_a_transparent_value() -> None:
    image = encoded(Image.new("L", (2, 2), 9), "PNG", transparency=9)
    assert (decode(image) == 9).all()


def test_decode_converts_lab_to_rgb() -> None:
    profile, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    orange = Image.new("RGB", (4, 4), (230, 120, 30))
    converted = ImageCms.profileToProfile(orange, profile, lab, outputMode="LAB")
    assert converted is not None
    assert np.abs(decode(encoded(converted, "TIFF")).astype(int) - (230, 120, 30)).max() <= 4


def test_first_page_of_several(photo: Image.Image) -> None:
    pages = encoded(photo, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9), "blue")] * 2)
    np.testing.assert_array_equal(decode(pages), np.asarray(photo))
    assert probe(pages) == (60, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("image_format", "options"),
    [("JPEG", {"quality": 100}), ("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_exif_orientation(
    orientation: int, image_format: str, options: dict[str, Any], photo: Image.Image
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo, image_format, exif=exif, **options)
    # The definition of the tag (EXIF 2.32): which side of the scene row 0 and column 0 of the pixels are.
    pixels = np.asarray(photo)
    upright = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.swapaxes(0, 1), 6: np.rot90(pixels, -1), 7: np.rot90(pixels, 2).swapaxes(0, 1),
        8: np.rot90(pixels, 1),
    }[orientation]  # fmt: skip
    image = decode(data)
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 3
    assert probe(data) == scan(data).size == (upright.shape[1], upright.shape[0])


def test_orientation_outside_the_standard_is_ignored(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    assert decode(encoded(photo, "JPEG", exif=exif)).shape == (40, 60, 3)


def test_damaged_exif_is_ignored_quietly(photo: Image.Image) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for exif in (
            b"Exif\x00\x00garbage",
            b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff" + b"\x12\x01" * 20,
        ):
            data = encoded(photo, "JPEG", exif=exif)
            assert decode(data).shape == (40, 60, 3)
            assert probe(data) == scan(data).size == (60, 40)


def test_exif_behind_the_pixels_of_a_png(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    plain = encoded(photo, "PNG")
    data = plain[:-12] + chunk + plain[-12:]  # the last 12 bytes are the end chunk
    assert decode(data).shape == (60, 40, 3)
    assert probe(data) == scan(data).size == (40, 60)


@pytest.mark.parametrize("read", [decode, scan])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "TIFF"])
def test_truncated_files_are_errors(image_format: str, read: Any, photo: Image.Image) -> None:
    data = encoded(photo.resize((300, 200)), image_format)
    with pytest.raises(ImageError, match=r"truncated|damaged"):
        read(data[: len(data) // 2])


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "TIFF", "WEBP", "JPEG2000", "AVIF", "HEIF"])
def test_checks_find_what_does_not_decode(image_format: str, photo: Image.Image) -> None:
    has_heif()  # registers the format
    generator = np.random.default_rng(0)
    good, failed = encoded(photo, image_format, **_COMPRESSED.get(image_format, {})), 0
    for _ in range(60):
        data = bytearray(good)
        data[generator.integers(len(good) // 4, len(good))] ^= int(generator.integers(1, 256))
        outcomes = set()
        for read in (decode, scan, partial(thumbnail, side=16)):
            try:
                read(bytes(data))
                outcomes.add("")
            except ImageError as error:
                outcomes.add(str(error))
        assert len(outcomes) == 1
        failed += outcomes != {""}
    assert failed or image_format in ("GIF", "JPEG2000", "AVIF", "WEBP"), "these hide some damage"


_COMPRESSED: dict[str, dict[str, Any]] = {"TIFF": {"compression": "tiff_lzw"}}


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lacks_only_its_end_marker_decodes(
    mode: str, options: dict[str, Any], photo: Image.Image, tmp_path: Path
) -> None:
    whole = encoded(photo.convert(mode).resize((300, 200)), "JPEG", **options)
    path = tmp_path / "1.jpg"
    for rest in (b"", b"\xff", b"\0\0\0\0", b"\xff\xd9 and more"):
        data = whole[:-2] + rest
        path.write_bytes(data)
        for read in (
            decode,
            scan,
            lambda data: decode(data, short_side=50),
            lambda data: thumbnail(data, 50),
        ):
            np.testing.assert_array_equal(np.asarray(read(data)[0]), np.asarray(read(whole)[0]))
        np.testing.assert_array_equal(decode_quickly(path), decode(whole))
    for end in (-12, -len(whole) // 3):
        path.write_bytes(whole[:end])
        for read in (decode, scan, partial(thumbnail, side=50), decode_quickly):
            with pytest.raises(ImageError, match="truncated"):
                read(path)


@pytest.mark.parametrize("read", [decode, scan, probe])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"not an image", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "damaged|not an image"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not an image that can be read, but PostScript",
        ),
        (b"\n<!DOCTYPE html><title>Log in</title>", "not an image that can be read, but an HTML page"),
        (b"%PDF-1.7", "not an image that can be read, but a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        (
            b"unknown",
            r"not an image in a supported format \(JPEG, PNG, .*WebP, AVIF, JPEG 2000, PGM/PPM, HEIC\)",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC/HEIF image that is damaged"),
        (b"\0\0\0\x18ftypMiHE\0\0\0\0mif1heic", "a HEIC/HEIF image that is damaged"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "not an image in a supported format"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "not an image that can be read, but a video"),
        (b"RIFF\x24\0\0\0AVI LIST", "not an image that can be read, but a video"),
    ],
)
def test_other_files_are_errors(data: bytes, message: str, read: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.jpg"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(ImageError, match=message):
            read(source)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_upright(orientation: int, photo: Image.Image) -> None:
    has_heif()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.open(io.BytesIO(encoded(photo, "PNG", exif=exif)))
    data = encoded(stored, "HEIF", quality=95)  # as a property of the image, which HEIF demands
    upright = ImageOps.exif_transpose(stored)
    assert np.abs(decode(data).astype(int) - np.asarray(upright)).mean() < 4
    assert probe(data) == scan(data).size == upright.size


def test_heic_without_its_reader_is_refused_by_name(
    photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_heif()
    path = tmp_path / "IMG_1.jpg"
    path.write_bytes(encoded(photo, "HEIF"))
    monkeypatch.setattr("trainer.data.image_formats.has_heif", lambda: False)
    for read in (decode, scan, probe):
        with pytest.raises(ImageError, match=r"a HEIC/HEIF image, .*pip install 'image-trainer\[heif\]'"):
            read(path)


def test_missing_files_and_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        decode(tmp_path / "no.jpg")
    with pytest.raises(ImageError, match="cannot be read"):
        decode(tmp_path)


@pytest.mark.parametrize("read", [decode, scan, probe])
def test_too_many_pixels_is_seen_in_the_header(read: Any) -> None:
    with pytest.raises(ImageError, match=r"60 x 40 = 2,400, at most 2,399"):
        read(encoded(Image.new("L", (60, 40)), "PNG"), max_pixels=2399)
    assert read(encoded(Image.new("L", (60, 40)), "PNG"), max_pixels=2400) is not None


@pytest.mark.parametrize("side", [9_800, 10_100, 14_000, 30_000])
def test_huge_headers_neither_warn_nor_decode(side: int) -> None:
    header = bytearray(encoded(Image.new("1", (1, 1)), "PNG"))
    header[16:24] = side.to_bytes(4, "big") * 2
    chunk = bytes(header[12:29])
    header[29:33] = zlib.crc32(chunk).to_bytes(4, "big")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if side * side <= 100_000_000:
            assert probe(bytes(header)) == (side, side)
        else:
            with pytest.raises(ImageError, match="too many pixels"):
                decode(bytes(header))


def test_damage_never_surfaces_as_anything_but_image_error(photo: Image.Image) -> None:
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"exif": exif},
        "PNG": {"exif": exif},
        "TIFF": {"exif": exif, "compression": "tiff_lzw"},
        "BMP": {},
        "GIF": {},
        "WEBP": {},
        "JPEG2000": {},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image_format, extra in options.items():
            good = np.frombuffer(encoded(photo, image_format, **extra), dtype=np.uint8)
            for _ in range(150):
                data = good.copy()
                places = generator.integers(0, len(data) if generator.random() < 0.5 else 120, 4)
                data[places.clip(0, len(data) - 1)] = generator.integers(0, 256, 4)
                for read in (decode, scan, probe):
                    with contextlib.suppress(ImageError):
                        read(data.tobytes())


def test_decoding_is_thread_safe(photo: Image.Image) -> None:
    data = [encoded(photo, image_format) for image_format in ("JPEG", "PNG", "TIFF", "GIF")] * 10
    filters = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert all(image.shape == (40, 60, 3) for image in pool.map(decode, data))
    assert warnings.filters == filters


def test_scan_agrees_with_pillow_on_real_photos(shared_data: Path) -> None:
    for path in sorted((shared_data / "microcontrollers" / "images").iterdir())[:5]:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            assert scan(path).size == probe(path) == upright.size
            assert decode(path).shape[:2] == upright.size[::-1]


def test_tiff_without_a_width_is_damaged() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "TIFF")
    content = file.getvalue().replace(b"\x00\x01\x04\x00", b"\xaa\xaa\x04\x00", 1)  # the tag of the width
    with pytest.raises(ImageError):
        decode(content)
