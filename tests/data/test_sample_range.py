"""Samples of more than 8 bits: which range becomes 0 to 255, in every kind of file that holds them."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from trainer.data.image_scan import scan
from trainer.data.images import ImageError, decode, probe, thumbnail

RAMP = np.tile(np.linspace(0, 1, 48), (32, 1))
"""Values from 0 to 1, [32, 48]."""
COLOURS = np.stack([RAMP, RAMP / 2, 1 - RAMP], axis=-1)


def png(values: np.ndarray, extra: bytes = b"") -> bytes:
    """A PNG of 16 bits per sample, with grey or colours; `extra` follows its header."""
    pixels = values if values.ndim == 2 else cv2.cvtColor(values, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    return data[:33] + extra + data[33:]


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **({"photometric": "rgb"} if values.ndim == 3 else {}) | options)
    return stream.getvalue()


def pillow(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def row(values: list[float], kind: str) -> np.ndarray:
    return np.array([values], dtype=kind)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(
    "write", [png, tiff, lambda values: tiff(values, compression="zlib", predictor=True)]
)
@pytest.mark.parametrize("values", [RAMP, COLOURS], ids=["grey", "rgb"])
def test_integers_are_scaled_by_the_bits_that_they_use(
    bits: int, write: Callable[[np.ndarray], bytes], values: np.ndarray
) -> None:
    data = write(np.round(values * (2**bits - 1)).astype(np.uint16))
    expected = np.round(values * 255)
    expected = expected if expected.ndim == 3 else np.stack([expected] * 3, axis=-1)
    assert np.abs(decode(data) - expected).max() <= 1
    assert decode(data).max() == 255
    sample_range = scan(data).sample_range
    assert sample_range is not None
    assert sample_range.high == 2**bits - 1
    assert sample_range.is_known == (bits == 16)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(row([0, 257, 32896, 64000, 65535], "u2")), [0, 1, 128, 249, 255]),
        (png(row([0, 900], "u2"), chunk(b"sBIT", b"\x0c")), [0, 56]),  # 900 / 4095
        (png(row([0, 900], "u2"), chunk(b"gAMA", b"\0\1\x86\xa0") + chunk(b"sBIT", b"\x10")), [0, 4]),
        (png(row([0, 65535], "u2"), chunk(b"sBIT", b"\x0c")), [0, 255]),  # scaled to 16 bits, as PNG demands
        (png(row([0, 900], "u2")), [0, 224]),  # 10 bits
        (png(row([0, 0], "u2")), [0, 0]),
        (tiff(row([0, 900], "u2"), extratags=[(281, "H", 1, 4095, True)]), [0, 56]),  # MaxSampleValue
        (tiff(row([0, 32896, 65535], "u2"), byteorder=">"), [0, 128, 255]),
        (tiff(row([0, 32896, 65535], "u2"), photometric="miniswhite"), [255, 127, 0]),
        (tiff(row([0, 2048, 4095], "u2"), photometric="miniswhite"), [255, 127, 0]),
        (tiff(row([0, 2**31, 2**32 - 1], "u4")), [0, 128, 255]),
        (tiff(row([0, 4095], "u8")), [0, 255]),
        (tiff(row([-5, 0, 70000, 2**18 - 1], "i4")), [0, 0, 68, 255]),
        (tiff(row([-1000, 0, 3000], "i2")), [0, 64, 255]),
        (b"P5 2 1 1000\n\x00\x00\x03\xe8", [0, 255]),
        (b"P5 2 1 1000\n\x00\x00\x00\x64", [0, 26]),
        (b"P5 2 1 65535\n\x00\x00\x0f\xff", [0, 255]),
    ],
    ids=str,
)
def test_integers(data: bytes, expected: list[int]) -> None:
    assert decode(data)[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([-0.02, 0.5, 1.03], [0, 128, 255]),  # as resampling overshoots
        ([-1, 0, 1], [0, 128, 255]),
        ([0, 100, 255], [0, 100, 255]),
        ([0, 16, 17], [0, 16, 17]),
        ([0, 0.3, 1.2], [0, 64, 255]),
        ([0, 3, 15], [0, 51, 255]),
        ([0, 2048, 4095], [0, 128, 255]),
        ([0, 100, 300], [0, 25, 75]),  # 10 bits
        ([0, 128, 270], [0, 128, 255]),  # 8 bits, overshot
        ([-1000, 0, 3000], [0, 64, 255]),
        ([-20, -10], [0, 255]),
        ([np.nan, 0, 1], [0, 0, 255]),
        ([-np.inf, 0.5, np.inf], [0, 128, 255]),
        ([np.nan, np.nan], [0, 0]),
        ([0, 0], [0, 0]),
    ],
    ids=str,
)
def test_floats(kind: str, values: list[float], expected: list[int]) -> None:
    assert decode(tiff(row(values, kind)))[0, :, 0].tolist() == expected
    colours = np.repeat(row(values, kind)[..., None], 3, axis=-1)
    assert decode(tiff(colours))[0].tolist() == [[value] * 3 for value in expected]


def other_files() -> Iterator[tuple[str, bytes]]:
    """Files with 12-bit colours from 0 to 4095, or their floats, as every kind of TIFF and other formats."""
    deep = np.round(COLOURS * 4095).astype(np.uint16)
    planes = np.ascontiguousarray(np.moveaxis(deep, -1, 0))
    with_alpha = np.concatenate([deep, np.full_like(deep[..., :1], 65535)], axis=-1)
    yield "png with alpha", cv2.imencode(".png", cv2.cvtColor(with_alpha, cv2.COLOR_RGBA2BGRA))[1].tobytes()
    yield "tiff with lzw", cv2.imencode(".tif", cv2.cvtColor(deep, cv2.COLOR_RGB2BGR))[1].tobytes()
    yield "tiff in tiles", tiff(deep, tile=(16, 16))
    yield "tiff in planes", tiff(planes, planarconfig="separate")
    yield "big-endian tiff", tiff(deep, byteorder=">")
    yield "bigtiff", tiff(deep, bigtiff=True)
    yield "tiff of floats in planes", tiff(planes.astype(np.float32), planarconfig="separate")
    yield "tiff of floats with more", tiff(np.concatenate([COLOURS, COLOURS[..., :1]], axis=-1))


@pytest.mark.parametrize(("data"), [pytest.param(data, id=name) for name, data in other_files()])
def test_colours_keep_their_depth(data: bytes) -> None:
    assert np.abs(decode(data) - np.round(COLOURS * 255)).max() <= 1
    assert scan(data).size == probe(data) == (48, 32)
    assert thumbnail(data, 24).shape == (16, 24, 3)


def test_grey_with_alpha_keeps_its_depth() -> None:
    pixels = np.stack([np.round(RAMP * 4095), RAMP * 0], axis=-1).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 48, 32, 16, 4, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    assert np.abs(decode(data)[..., 0] - np.round(RAMP * 255)).max() <= 1


@pytest.mark.parametrize("kind", ["f8", "f4", "u2"])
@pytest.mark.parametrize("values", [RAMP, COLOURS], ids=["grey", "rgb"])
def test_deep_images_are_upright(values: np.ndarray, kind: str) -> None:
    deep = (values * (4095 if kind == "u2" else 1)).astype(kind)
    data = tiff(deep, extratags=[(274, "H", 1, 6, True)])
    assert decode(data).shape == (48, 32, 3)
    assert decode(data)[0, 0, 0] == 0
    assert scan(data).size == probe(data) == (32, 48)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff(np.zeros((9, 9, 5), "u2"), photometric="minisblack", planarconfig="contig"), "has 5 channels"),
        (tiff(np.zeros((9, 9), "c8")), "holds complex64"),
    ],
    ids=["channels", "complex"],
)
def test_tiffs_that_are_not_read_say_why(data: bytes, message: str) -> None:
    for read in (decode, scan):
        with pytest.raises(ImageError, match=f"a TIFF that {message}"):
            read(data)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}], ids=str)
def test_truncated_tiffs_are_errors(options: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    for values in (COLOURS, RAMP):
        data = tiff(values, **options)
        for read in (decode, scan):
            with pytest.raises(ImageError, match=r"truncated|damaged"):
                read(data[: -len(data) // 4])
    assert capfd.readouterr().err == ""


def test_damage_in_tiffs_is_an_image_error() -> None:
    generator = np.random.default_rng(0)
    goods = [tiff(RAMP), tiff(COLOURS, compression="zlib"), tiff((COLOURS * 4095).astype("u2"))]
    for good in goods:
        for _ in range(60):
            data = bytearray(good)
            for place in generator.integers(0, 300, 4):
                data[place] = int(generator.integers(256))
            for read in (decode, scan, probe):
                with contextlib.suppress(ImageError):
                    read(bytes(data))


def test_a_tiff_without_its_end_is_truncated(caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 48), dtype=np.uint8)
    data = pillow(Image.fromarray(noise), "TIFF", compression="tiff_lzw")  # its first page is at the end
    for read in (decode, scan):
        with pytest.raises(ImageError, match="a TIFF that is truncated: the file ends before its first page"):
            read(data[: len(data) // 2])
    assert not caplog.records


def test_floats_of_an_unusual_range_are_told() -> None:
    for largest, is_known in ((1.0, True), (1.2, False), (15.0, False), (200.0, True)):
        sample_range = scan(tiff(row([0, largest], "f4"))).sample_range
        assert sample_range is not None
        assert sample_range.is_known == is_known


def test_large_tiffs_are_rejected_by_their_header() -> None:
    with pytest.raises(ImageError, match="48 x 32 = 1,536, at most 1,500"):
        decode(tiff(RAMP), max_pixels=1500)


@pytest.mark.parametrize("tag", [256, 257])  # width, height
def test_tiff_without_pixels_is_rejected(tag: int) -> None:
    data = pillow(Image.new("RGB", (9, 7)), "TIFF")
    entries = [struct.pack("<HHI", tag, kind, 1) for kind in (3, 4)]  # as a short or a long integer
    start = max(data.find(entry) for entry in entries) + len(entries[0])
    for read in (decode, probe):
        with pytest.raises(ImageError, match=r"a TIFF that has no pixels: its size is (0 × 7|9 × 0)"):
            read(data[:start] + bytes(4) + data[start + 4 :])


def test_tiff_with_damaged_bits_per_sample_is_rejected() -> None:
    data = pillow(Image.new("RGB", (9, 7)), "TIFF")
    eight, damaged = struct.pack("<3H", 8, 8, 8), struct.pack("<3H", 1, 0, 1)
    with pytest.raises(ImageError, match="a TIFF that is damaged: it does not hold the pixels that"):
        decode(data.replace(eight, damaged, 1))


def test_jpeg_2000_is_scaled_by_its_own_depth_or_the_bits_it_uses() -> None:
    data = pillow(Image.fromarray(np.round(RAMP * 4095).astype(np.uint16)), "JPEG2000", no_jp2=True)
    assert np.abs(decode(data)[..., 0] - np.round(RAMP * 255)).max() <= 1
    assert scan(data).sample_range == (0, 4095, 0, 4095, False)
    of_12_bits = data[:42] + bytes([11]) + data[43:]  # in the size segment
    sample_range = scan(of_12_bits).sample_range
    assert sample_range is not None
    assert (sample_range.high, sample_range.is_known) == (65535, True), "the reader scales it to 16 bits"


def test_8_bits_have_no_range() -> None:
    for image_format in ("PNG", "JPEG", "TIFF", "GIF", "BMP"):
        assert scan(pillow(Image.new("L", (9, 9), 7), image_format)).sample_range is None
