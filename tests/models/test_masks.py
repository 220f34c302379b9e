"""Polygons become the pixels that they cover, and no others."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from trainer.models.geometry import Geometry
from trainer.models.masks import rasterise

# pycocotools' decode has not caught up with NumPy 2
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def geometry(height: int, width: int) -> Geometry:
    return Geometry((height, width), (height, width), (1.0, 1.0))


@pytest.mark.parametrize("seed", range(20))
def test_rectangles_along_pixel_edges_are_those_of_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(4, 40, 2))
    left, right = np.sort(rng.choice(width + 1, 2, replace=False))
    top, bottom = np.sort(rng.choice(height + 1, 2, replace=False))
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)
    expected = coco_masks.decode(
        coco_masks.merge(coco_masks.frPyObjects([corners.ravel().tolist()], height, width))
    )
    polygon = (corners / (width, height)).astype(np.float32)
    np.testing.assert_array_equal(rasterise([polygon], geometry(height, width)), expected)
    assert expected.sum() == (right - left) * (bottom - top)


@pytest.mark.parametrize("seed", range(20))
def test_other_shapes_differ_from_pycocotools_by_rounding_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    radii = rng.uniform(0.2, 0.48, 12)
    star = np.stack([0.5 + radii * np.cos(angles), 0.5 + radii * np.sin(angles)], axis=1)
    lists = [(star * (200, 160)).ravel().tolist()]
    expected = coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(lists, 160, 200))).astype(bool)
    found = rasterise([star.astype(np.float32)], geometry(160, 200)).astype(bool)
    assert (found & expected).sum() / (found | expected).sum() > 0.97
    assert abs(found.sum() / expected.sum() - 1) < 0.01  # neither side is larger
    # and the area is the polygon's own
    x, y = (star * (200, 160)).T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert found.sum() == pytest.approx(area, rel=0.01)


def test_segments_are_united_and_what_lies_outside_is_left_out() -> None:
    square = np.array([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]], np.float32)
    found = rasterise([square, square + 0.25, square - 0.5], geometry(8, 8))
    expected = np.zeros((8, 8), np.uint8)
    expected[2:6, 2:6] = expected[4:8, 4:8] = expected[:2, :2] = 1
    np.testing.assert_array_equal(found, expected)
    assert not rasterise([square + 2], geometry(8, 8)).any()
    assert not rasterise([square[:1].repeat(3, axis=0)], geometry(8, 8)).any()


def test_the_image_lies_in_the_tensor_as_its_geometry_says() -> None:
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    found = rasterise([square], Geometry((20, 10), (16, 16), (0.8, 0.4), (4.0, 5.0)))
    expected = np.zeros((16, 16), np.uint8)
    expected[5:13, 4:12] = 1
    np.testing.assert_array_equal(found, expected)
