"""Answers have exactly the documented schemas, and polygons tell the mask they come from."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.answers import to_answer
from serving.polygons import mask_polygons
from trainer.annotations import BoolArray, Classification, Detections, Mask
from trainer.errors import RunError
from trainer.metrics import masks
from trainer.polygons import are_holes, trace

BOX = np.array([0.1, 0.2, 0.6, 0.8], dtype=np.float32)


def rasterise(segments: list[list[float]], size: tuple[int, int]) -> BoolArray:
    """Pixels whose centre lies inside one of the polygons (even-odd rule), bool [height, width]."""
    height, width = size
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    covered = np.zeros(size, dtype=bool)
    for segment in segments:
        points = np.array(segment).reshape(-1, 2)
        inside = np.zeros(size, dtype=bool)
        for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
            crosses = (y1 > y) != (y2 > y)
            with np.errstate(divide="ignore", invalid="ignore"):
                inside ^= crosses & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
        covered |= inside
    return covered


def iou(one: BoolArray, other: BoolArray) -> float:
    return float((one & other).sum() / (one | other).sum())


def full(mask: Mask, size: tuple[int, int]) -> BoolArray:
    image = np.zeros(size, dtype=bool)
    height, width = mask.pixels.shape
    image[mask.top : mask.top + height, mask.left : mask.left + width] = mask.pixels
    return image


def disc(radius: float, size: int) -> BoolArray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return (x**2 + y**2 <= radius**2).astype(bool)


def check(segments: list[list[float]], maximum: int) -> None:
    assert segments
    for segment in segments:
        assert 3 <= len(segment) // 2 <= maximum
        assert len(segment) % 2 == 0
        assert all(type(value) is float and 0 <= value <= 1 for value in segment)


def test_classification_has_the_documented_form() -> None:
    answer = to_answer(Classification(np.array([0.25, 0.75], dtype=np.float32)), ("can", "우유"), 100)
    assert answer == {"probs": [0.25, 0.75], "labels": ["can", "우유"]}
    assert all(type(prob) is float for prob in answer["probs"])


def test_detection_has_the_documented_form_in_descending_order_of_score() -> None:
    found = Detections(
        boxes=np.array([[0.5, 0.25, 0.75, 1.0], [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]], np.float32),
        labels=np.array([1, 0, 1]),
        scores=np.array([0.25, 0.75, 0.25], np.float32),
        image_size=(10, 20),
    )
    answer = to_answer(found, ("can", "carton"), 100)
    assert answer == {
        "boxes": [
            {
                "box": {"topX": 0.0, "topY": 0.0, "bottomX": 0.5, "bottomY": 0.5},
                "label": "can",
                "score": 0.75,
            },
            {
                "box": {"topX": 0.5, "topY": 0.25, "bottomX": 0.75, "bottomY": 1.0},
                "label": "carton",
                "score": 0.25,
            },
            {
                "box": {"topX": 0.0, "topY": 0.0, "bottomX": 1.0, "bottomY": 1.0},
                "label": "carton",
                "score": 0.25,
            },
        ]
    }
    json.dumps(answer, allow_nan=False)


def test_segmentation_adds_each_boxs_polygon() -> None:
    masks = (Mask(0, 0, np.ones((5, 5), bool)), Mask(10, 5, np.ones((5, 10), bool)))
    found = Detections(
        boxes=np.array([[0, 0, 0.25, 0.5], [0.5, 0.5, 1, 1]], np.float32),
        labels=np.array([0, 0]),
        scores=np.array([0.1, 0.9], np.float32),
        image_size=(10, 20),
        masks=masks,
    )
    first, second = to_answer(found, ("nucleus",), 100)["boxes"]
    assert set(first) == {"box", "label", "score", "polygon"}
    assert sorted(zip(first["polygon"][0][::2], first["polygon"][0][1::2], strict=True)) == [
        (0.5, 0.5),
        (0.5, 1.0),
        (1.0, 0.5),
        (1.0, 1.0),
    ]
    assert max(second["polygon"][0]) == 0.5


def test_no_object_is_an_empty_list() -> None:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32), (5, 5))
    assert to_answer(nothing, ("can",), 100) == {"boxes": []}


def test_non_finite_numbers_raise() -> None:
    with pytest.raises(RunError, match="not finite"):
        to_answer(Classification(np.array([np.nan, 0.5], dtype=np.float32)), ("a", "b"), 100)
    found = Detections(np.array([[0, 0, np.inf, 1]], np.float32), np.array([0]), np.array([0.5]), (5, 5))
    with pytest.raises(RunError, match="not finite"):
        to_answer(found, ("a",), 100)


@pytest.mark.parametrize("size", [(3, 40), (40, 3), (64, 64), (1, 1), (1, 7), (9, 2)])
def test_a_rectangle_keeps_its_edges_exactly(size: tuple[int, int]) -> None:
    height, width = size
    mask = Mask(5, 11, np.ones(size, dtype=bool))
    (segment,) = mask_polygons(mask, (100, 200), BOX, 4)
    xs, ys = np.array(segment[::2]) * 200, np.array(segment[1::2]) * 100
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == pytest.approx(
        (5, 5 + width, 11, 11 + height), abs=1e-3
    )
    assert len(xs) == 4


@pytest.mark.parametrize("radius", [4, 8, 20, 90])
@pytest.mark.parametrize("maximum", [16, 100])
def test_polygon_of_a_disc_has_95_percent_iou(radius: int, maximum: int) -> None:
    mask = Mask(3, 2, disc(radius, 2 * radius + 1))
    size = (2 * radius + 8, 2 * radius + 9)
    segments = mask_polygons(mask, size, BOX, maximum)
    check(segments, maximum)
    overlap = iou(rasterise(segments, size), full(mask, size))
    assert overlap > (0.95 if maximum < 100 else 0.98)


def test_polygon_areas_are_unbiased() -> None:
    """Through pixel centres a disc of radius 8 would lose about 12 % of its area."""
    mask = Mask(0, 0, disc(8, 17))
    (segment,) = mask_polygons(mask, (17, 17), BOX, 1000)
    points = np.array(segment).reshape(-1, 2) * 17
    x, y = points[:, 0], points[:, 1]
    area = abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
    assert area == pytest.approx(mask.pixels.sum(), rel=0.03)


def test_separate_parts_become_segments_largest_first() -> None:
    pixels = np.zeros((10, 30), dtype=bool)
    pixels[2:4, 2:5] = True
    pixels[2:8, 10:25] = True
    pixels[9, 0] = True
    segments = mask_polygons(Mask(0, 0, pixels), (10, 30), BOX, 100)
    check(segments, 100)
    assert len(segments) == 3
    assert min(segments[0][::2]) == pytest.approx(10 / 30, abs=1e-5)
    assert iou(rasterise(segments, (10, 30)), pixels) == 1


def donut(radius: int, inner: int) -> BoolArray:
    hole = np.pad(disc(inner, 2 * inner + 1), radius - inner)
    return disc(radius, 2 * radius + 1) & ~hole


def test_holes_are_further_segments() -> None:
    pixels = donut(20, 8)
    pixels[20, 20] = True
    segments = mask_polygons(Mask(3, 4, pixels), (50, 60), BOX, 1000)
    check(segments, 1000)
    points = [np.array(segment, np.float32).reshape(-1, 2) for segment in segments]
    assert are_holes(points).tolist() == [False, True, False]
    assert masks.from_polygons(points, (50, 60)) == masks.from_crop(Mask(3, 4, pixels), (50, 60))


@pytest.mark.parametrize(
    ("pixels", "maximum", "least"),
    [
        (donut(90, 60), 100, 0.98),
        (donut(90, 60), 16, 0.9),
        (donut(90, 87), 100, 0.8),  # outlines closer to each other than their tolerance
        (donut(90, 89), 100, 0.6),
        (donut(90, 60) | np.pad(disc(58, 117), 32), 30, 0.95),  # an island that nearly fills its hole
    ],
)
def test_simplified_outlines_stay_apart(pixels: BoolArray, maximum: int, least: float) -> None:
    segments = mask_polygons(Mask(0, 0, pixels), pixels.shape, BOX, maximum)
    check(segments, maximum)
    points = [np.array(segment, np.float32).reshape(-1, 2) for segment in segments]
    holes = [outline.is_hole for outline in trace(pixels)]
    assert sorted(are_holes(points)) == sorted(holes)
    found = masks.from_polygons(points, pixels.shape)
    target = masks.from_crop(Mask(0, 0, pixels), pixels.shape)
    assert masks.overlaps([found], [target], np.array([False]))[0, 0] > least


def test_one_pixel_gap_separates_parts() -> None:
    pixels = np.array([[1, 1, 0, 1, 1]], dtype=bool)
    assert len(mask_polygons(Mask(0, 0, pixels), (5, 5), BOX, 100)) == 2


def test_empty_mask_becomes_its_box() -> None:
    for pixels in (np.zeros((4, 4), bool), np.zeros((0, 0), bool), np.zeros((0, 5), bool)):
        for maximum in (3, 4, 100):
            segments = mask_polygons(Mask(0, 0, pixels), (10, 10), BOX, maximum)
            check(segments, maximum)
            assert min(segments[0]) == pytest.approx(0.1)


def _star(points: int) -> npt.NDArray[np.bool_]:
    y, x = np.mgrid[:301, :301] - 150
    return (np.hypot(x, y) <= 90 + 50 * np.cos(points * np.arctan2(y, x))).astype(bool)


def test_spiky_mask_is_simplified_to_the_maximum_points() -> None:
    mask = Mask(0, 0, _star(12))
    overlaps = []
    for maximum in (3, 4, 5, 8, 25, 50, 100, 400):
        segments = mask_polygons(mask, (301, 301), BOX, maximum)
        check(segments, maximum)
        overlaps.append(iou(rasterise(segments, (301, 301)), mask.pixels))
    assert overlaps[-1] > 0.98
    assert overlaps[-2] > 0.96
    unlimited = mask_polygons(mask, (301, 301), BOX, 10_000)
    assert iou(rasterise(unlimited, (301, 301)), mask.pixels) == 1


def test_a_mask_of_noise_is_simplified_to_its_largest_outlines() -> None:
    noise = np.random.default_rng(0).random((120, 120)) < 0.6
    segments = mask_polygons(Mask(0, 0, noise), (120, 120), BOX, 100)
    assert len(trace(noise)) > 1000
    assert 200 < len(segments) <= 256
    assert len(segments[0]) <= 200
    dots = np.zeros((120, 120), np.bool_)
    dots[::4, ::4] = True  # nothing to simplify
    assert len(mask_polygons(Mask(0, 0, dots), (120, 120), BOX, 100)) == 900


def test_large_mask_is_fast() -> None:
    mask = Mask(0, 0, disc(1400, 3000))
    segments = mask_polygons(mask, (3000, 3000), BOX, 100)
    check(segments, 100)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 25), st.integers(1, 25)),
    share=st.sampled_from([0.05, 0.3, 0.5, 0.8, 1.0]),
    maximum=st.integers(3, 40),
)
def test_any_mask_gives_valid_polygons(seed: int, shape: tuple[int, int], share: float, maximum: int) -> None:
    pixels = np.random.default_rng(seed).random(shape) < share
    segments = mask_polygons(Mask(2, 1, pixels), (shape[0] + 3, shape[1] + 2), BOX, maximum)
    check(segments, maximum)
    if maximum == 40 and share == 1.0:
        size = (shape[0] + 3, shape[1] + 2)
        assert iou(rasterise(segments, size), full(Mask(2, 1, pixels), size)) > 0.95
