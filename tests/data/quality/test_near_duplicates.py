"""Perceptual hashes and the search for near-duplicates."""

from __future__ import annotations

import io
import time

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as Pillow

from trainer.data.image_scan import scan
from trainer.data.quality import near_duplicates
from trainer.data.quality.near_duplicates import MAX_DISTANCE, find_similar, groups

Hashes = npt.NDArray[np.uint64]


def scene(seed: int, side: int = 240) -> Pillow.Image:
    """Soft blobs: structure at the scale that a photograph has."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Pillow.fromarray(coarse).resize((side, side * 3 // 4), Pillow.Resampling.BICUBIC)


def encoded(picture: Pillow.Image, kind: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def hash_of(content: bytes) -> Hashes:
    return np.array(scan(content).hash, dtype=np.uint64)


def distance(one: bytes, other: bytes) -> int:
    return int(np.bitwise_count(hash_of(one) ^ hash_of(other)).sum())


@pytest.mark.parametrize("seed", range(5))
def test_hash_hardly_changes_with_size_quality_and_brightness(seed: int) -> None:
    picture = scene(seed)
    original = encoded(picture)
    small = encoded(picture.resize((97, 73), Pillow.Resampling.BICUBIC))
    coarse = encoded(picture, "JPEG", quality=30)
    dark = encoded(picture.point(lambda value: round(value * 0.6)))
    for copy in (small, coarse, dark):
        assert distance(original, copy) <= MAX_DISTANCE


def test_hashes_of_other_images_differ() -> None:
    hashes = np.stack([hash_of(encoded(scene(seed))) for seed in range(40)])
    one, other = np.triu_indices(40, 1)
    assert np.bitwise_count(hashes[one] ^ hashes[other]).sum(axis=1).min() > 2 * MAX_DISTANCE


def test_hash_is_that_of_the_upright_image() -> None:
    picture = scene(1)
    exif = Pillow.Exif()
    exif[0x0112] = 6  # the stored pixels lie on their left side
    turned = io.BytesIO()
    picture.transpose(Pillow.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    assert distance(encoded(picture), turned.getvalue()) <= 2  # rounding
    assert scan(turned.getvalue()).size == picture.size


def test_an_image_without_contrast_matches_nothing() -> None:
    blank = encoded(Pillow.new("RGB", (50, 40), (200, 10, 10)))
    assert scan(blank).hash == (0, 0)
    assert not len(find_similar(np.stack([hash_of(blank)] * 3)).pairs)


def brute_force(hashes: Hashes) -> set[tuple[int, int]]:
    one, other = np.triu_indices(len(hashes), 1)
    near = np.bitwise_count(hashes[one] ^ hashes[other]).sum(axis=1) <= MAX_DISTANCE
    return set(zip(one[near].tolist(), other[near].tolist(), strict=True))


def test_search_finds_every_near_pair() -> None:
    """Against comparing all with all; where hashes are equal the first stands for the others."""
    generator = np.random.default_rng(0)
    hashes = generator.integers(1, 2**63, (400, 2), dtype=np.uint64)
    for place in range(100):  # copies with 1 to 9 bits turned
        bits = generator.choice(128, 1 + place % 9, replace=False)
        for bit in bits.tolist():
            hashes[300 + place, bit // 64] = hashes[place, bit // 64] ^ np.uint64(1 << (bit % 64))
            hashes[place, bit // 64] = hashes[300 + place, bit // 64]
        hashes[300 + place] = hashes[place]
        for bit in bits.tolist():
            hashes[300 + place, bit // 64] ^= np.uint64(1 << (bit % 64))
    found = find_similar(hashes)
    assert found.is_complete
    assert set(map(tuple, found.pairs.tolist())) == brute_force(hashes)
    assert len(found.pairs) > 50
    assert (np.diff(found.distances) >= 0).all()


def test_search_among_100_000_images_or_duplicates_takes_seconds() -> None:
    hashes = np.random.default_rng(0).integers(1, 2**63, (100_000, 2), dtype=np.uint64)
    hashes[90_000:90_100] = hashes[:100]
    started = time.process_time()
    assert len(find_similar(hashes).pairs) == 100
    same = find_similar(np.full((100_000, 2), 7, dtype=np.uint64))
    assert len(groups(same.pairs)) == 1
    assert time.process_time() - started < 20


def test_search_stops_at_the_maximum_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MAX_PAIRS", 50)
    # 300 hashes that differ in one bit or two from each other
    hashes = np.stack([np.array([1 << bit, 5], dtype=np.uint64) for bit in range(8, 56)])
    assert not find_similar(hashes).is_complete


def test_groups_join_connected_pairs() -> None:
    assert groups(np.array([[1, 5], [5, 7], [2, 3]])) == [[1, 5, 7], [2, 3]]
