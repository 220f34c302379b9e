"""Run-length masks against pycocotools and plain arrays."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as oracle

from trainer.annotations import Mask
from trainer.metrics import masks

# pycocotools' decode has not caught up with NumPy 2
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def decoded(rle: masks.Rle) -> np.ndarray:
    return oracle.decode(rle).astype(bool)


@pytest.mark.parametrize("seed", range(60))
def test_a_crop_is_encoded_at_its_place(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 12, 2)
    rows, columns = rng.integers(0, height + 1), rng.integers(0, width + 1)
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    pixels = rng.random((rows, columns)) < rng.choice([0.0, 0.5, 0.9, 1.0])
    full = np.zeros((height, width), dtype=bool)
    full[top : top + rows, left : left + columns] = pixels
    rle = masks.from_crop(Mask(int(left), int(top), pixels), (int(height), int(width)))
    np.testing.assert_array_equal(decoded(rle), full)
    expected = oracle.encode(np.asfortranarray(full.astype(np.uint8)))
    assert rle == expected
    assert masks.areas([rle]).tolist() == [full.sum()]


@pytest.mark.parametrize("seed", range(30))
def test_polygons_are_rasterised_as_in_coco(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(5, 60, 2))
    segments = [rng.random((rng.integers(3, 9), 2)).astype(np.float32) for _ in range(rng.integers(1, 4))]
    lists = [(segment.astype(np.float64) * (width, height)).ravel().tolist() for segment in segments]
    expected = oracle.merge(oracle.frPyObjects(lists, height, width))
    assert masks.from_polygons(segments, (height, width)) == expected


def test_segments_inside_others_are_holes() -> None:
    rng = np.random.default_rng(5)
    outer, *holes = (
        center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        for center, radius in [((0.5, 0.5), 0.45), ((0.4, 0.5), 0.15), ((0.5, 0.6), 0.15), ((0.7, 0.4), 0.1)]
        for angles in [np.sort(rng.uniform(0, 2 * np.pi, 30))]
    )
    size = (120, 90)
    pixels = decoded(masks.from_polygons([outer], size))
    for hole in holes:  # the first two lie across each other
        pixels &= ~decoded(masks.from_polygons([hole], size))
    np.testing.assert_array_equal(decoded(masks.from_polygons([*holes, outer], size)), pixels)


def test_a_polygon_over_the_whole_image_covers_it() -> None:
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32)
    assert decoded(masks.from_polygons([corners], (7, 5))).all()


def test_a_polygon_along_pixel_edges_covers_exactly_these_pixels() -> None:
    corners = np.array([[0.25, 0.5], [0.75, 0.5], [0.75, 1.0], [0.25, 1.0]], dtype=np.float32)
    expected = np.zeros((8, 8), dtype=bool)
    expected[4:, 2:6] = True
    np.testing.assert_array_equal(decoded(masks.from_polygons([corners], (8, 8))), expected)


def test_overlap_with_a_crowd_is_relative_to_the_mask() -> None:
    size = (10, 10)
    small = masks.from_crop(Mask(0, 0, np.ones((2, 4), dtype=bool)), size)
    large = masks.from_crop(Mask(2, 0, np.ones((10, 8), dtype=bool)), size)
    empty = masks.from_crop(Mask(0, 0, np.zeros((3, 3), dtype=bool)), size)
    crowd = np.array([False, True, False])
    found = masks.overlaps([small, empty], [large, large, empty], crowd)
    np.testing.assert_allclose(found, [[4 / 84, 4 / 8, 0], [0, 0, 0]])
    assert masks.overlaps([], [large], crowd[:1]).shape == (0, 1)
    assert masks.overlaps([small], [], crowd[:0]).shape == (1, 0)


@pytest.mark.parametrize(("left", "top"), [(-1, 0), (0, -1), (7, 0), (0, 7)])
def test_a_crop_beyond_its_image_is_an_error(left: int, top: int) -> None:
    with pytest.raises(ValueError, match="must be inside its image of 10 x 10"):
        masks.from_crop(Mask(left, top, np.ones((4, 4), dtype=bool)), (10, 10))


@pytest.mark.parametrize("points", [0, 1, 2])
def test_a_polygon_with_fewer_than_three_points_is_an_error(points: int) -> None:
    with pytest.raises(ValueError, match="at least 3 points"):
        masks.from_polygons([np.zeros((points, 2), dtype=np.float32)], (10, 10))
    with pytest.raises(ValueError, match="at least 3 points"):
        masks.from_polygons([], (10, 10))
