"""Decoding JPEGs by OpenCV for training: the pixels of `decode` in less time."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from trainer.data import quick_decoding
from trainer.data.images import ImageError, decode
from trainer.data.quick_decoding import decode_quickly


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Edges and texture without symmetry, of odd sizes."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 255, (21, 31, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(coarse, (403, 301), interpolation=cv2.INTER_CUBIC))


@pytest.mark.parametrize("short_side", [None, 301, 150, 75, 37, 1])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"quality": 40}, {"progressive": True}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"},
        {"keep_rgb": True}, {"restart_marker_rows": 1},
    ],
    ids=str,
)  # fmt: skip
def test_the_pixels_are_those_of_decode(
    options: dict[str, Any], short_side: int | None, photo: Image.Image, tmp_path: Path
) -> None:
    photo.save(tmp_path / "1.jpg", **options)
    quick = quick_decoding._decode_by_opencv(tmp_path / "1.jpg", short_side)
    assert quick is not None
    exact = decode(tmp_path / "1.jpg", short_side=short_side)
    assert quick.shape == exact.shape
    # 0 where both were built with one library
    assert np.abs(quick.astype(int) - exact).max() <= 2
    assert quick.flags.writeable
    assert quick.flags.c_contiguous


@pytest.mark.parametrize("orientation", [*range(1, 9), 99])
def test_decoded_images_are_upright(orientation: int, photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "1.jpg", exif=exif)
    quick, exact = decode_quickly(tmp_path / "1.jpg"), decode(tmp_path / "1.jpg")
    assert quick.shape == exact.shape
    assert np.abs(quick.astype(int) - exact).max() <= 2


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "jpg"), ("CMYK", "jpg"), ("RGB", "png"), ("RGBA", "webp"), ("P", "gif")]
)
def test_files_other_than_rgb_jpegs_are_left_to_pillow(
    mode: str, suffix: str, photo: Image.Image, tmp_path: Path
) -> None:
    path = tmp_path / f"1.{suffix}"
    photo.convert(mode).save(path)
    assert quick_decoding._decode_by_opencv(path, None) is None
    np.testing.assert_array_equal(decode_quickly(path), decode(path))


def test_truncated_files_raise_the_error_of_decode(photo: Image.Image, tmp_path: Path) -> None:
    stream = io.BytesIO()
    photo.save(stream, "JPEG")
    whole, end = stream.getvalue(), b"\xff\xd9"
    path = tmp_path / "1.jpg"
    for content in (b"", whole[:20], whole[:20] + end, whole[: len(whole) // 2], b"\xff\xd8\xff" + end):
        path.write_bytes(content)
        with pytest.raises(ImageError) as expected:
            decode(path)
        with pytest.raises(ImageError) as found:
            decode_quickly(path)
        assert str(found.value) == str(expected.value)
    path.write_bytes(whole + b"trailing")
    np.testing.assert_array_equal(decode_quickly(path), decode(path))
    with pytest.raises(ImageError, match="does not exist"):
        decode_quickly(tmp_path / "2.jpg")


def test_damage_within_a_file_gives_an_image_or_an_error_of_decode(
    photo: Image.Image, tmp_path: Path
) -> None:
    stream = io.BytesIO()
    photo.save(stream, "JPEG")
    generator, path = np.random.default_rng(0), tmp_path / "1.jpg"
    for _ in range(100):
        content = bytearray(stream.getvalue())
        for place in generator.integers(2, len(content) - 2, 3):
            content[place] = int(generator.integers(256))
        path.write_bytes(content)
        try:
            shape = decode(path).shape
        except ImageError:
            with contextlib.suppress(ImageError):
                assert decode_quickly(path).ndim == 3
        else:
            assert decode_quickly(path).shape == shape


def test_too_many_pixels(photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo.save(tmp_path / "1.jpg")
    monkeypatch.setattr(quick_decoding, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="too many pixels"):
        decode_quickly(tmp_path / "1.jpg")
