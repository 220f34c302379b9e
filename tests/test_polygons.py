"""A segment inside another one is a hole; masks and their outlines are the same pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.polygons import mask_polygons
from trainer.annotations import BoolArray, FloatArray, Mask
from trainer.metrics import masks
from trainer.models.geometry import Geometry
from trainer.models.masks import rasterise, without_overlap
from trainer.polygons import are_holes, overlap, regions, trace, without_equal_pairs

SIDE = 20


def box(left: float, top: float, right: float, bottom: float) -> FloatArray:
    """A rectangle in an image of 20 x 20 pixels, normalised."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32) / SIDE


def pixels_of(segments: list[FloatArray], height: int = SIDE, width: int = SIDE) -> BoolArray:
    size = (height, width)
    return rasterise(segments, Geometry(size, size, (1.0, 1.0))).astype(bool)


def drawn(*signed: tuple[bool, tuple[int, int, int, int]]) -> BoolArray:
    """Rectangles of (left, top, right, bottom), each set or cleared, in this order."""
    pixels = np.zeros((SIDE, SIDE), dtype=bool)
    for value, (left, top, right, bottom) in signed:
        pixels[top:bottom, left:right] = value
    return pixels


LARGE, MIDDLE, SMALL = (2, 2, 18, 18), (4, 4, 14, 14), (6, 6, 10, 10)
DIAMOND = np.array([[10, 2], [18, 10], [10, 18], [2, 10]], np.float32) / SIDE
CASES = {
    "hole": ([LARGE, SMALL], [(True, LARGE), (False, SMALL)]),
    "two holes": (
        [LARGE, SMALL, (11, 11, 14, 16)],
        [(True, LARGE), (False, SMALL), (False, (11, 11, 14, 16))],
    ),
    "island": ([LARGE, MIDDLE, SMALL], [(True, LARGE), (False, MIDDLE), (True, SMALL)]),
    "hole of an island": (
        [LARGE, MIDDLE, SMALL, (7, 7, 9, 9)],
        [(True, LARGE), (False, MIDDLE), (True, SMALL), (False, (7, 7, 9, 9))],
    ),
    "beside": ([MIDDLE, (14, 4, 18, 14), (0, 0, 2, 2)], [(True, (4, 4, 18, 14)), (True, (0, 0, 2, 2))]),
    "across": ([MIDDLE, (10, 8, 18, 19)], [(True, MIDDLE), (True, (10, 8, 18, 19))]),
    "a cross": ([(2, 8, 18, 12), (8, 2, 12, 18)], [(True, (2, 8, 18, 12)), (True, (8, 2, 12, 18))]),
    "equal": ([MIDDLE, MIDDLE], [(True, MIDDLE)]),
    "hole at the border": ([LARGE, (2, 6, 10, 10)], [(True, LARGE), (False, (2, 6, 10, 10))]),
    "hole in the corner": ([LARGE, (2, 2, 5, 5)], [(True, LARGE), (False, (2, 2, 5, 5))]),
    "strip through": ([LARGE, (2, 6, 18, 10)], [(True, LARGE), (False, (2, 6, 18, 10))]),
    "holes across each other": (
        [LARGE, (4, 4, 8, 8), (6, 6, 12, 10)],
        [(True, LARGE), (False, (4, 4, 8, 8)), (False, (6, 6, 12, 10))],
    ),
    "hole in two that cross": (
        [(2, 2, 14, 14), (4, 4, 18, 18), (6, 6, 10, 10)],
        [(True, (2, 2, 14, 14)), (True, (4, 4, 18, 18)), (False, (6, 6, 10, 10))],
    ),
    "hole in one, covered by another": (
        [(2, 2, 14, 14), (6, 6, 10, 10), (8, 0, 18, 20)],
        [(True, (2, 2, 14, 14)), (False, (6, 6, 10, 10)), (True, (8, 0, 18, 20))],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_segments_enclose_these_pixels(name: str) -> None:
    rectangles, steps = CASES[name]
    for order in itertools.permutations(box(*each) for each in rectangles):
        segments = [segment[:: -1 if index % 2 else 1] for index, segment in enumerate(order)]
        expected = drawn(*steps)
        np.testing.assert_array_equal(pixels_of(segments), expected)
        assert masks.areas([masks.from_polygons(segments, (SIDE, SIDE))]).tolist() == [expected.sum()]


def test_a_hole_may_stick_out_by_rounding_only() -> None:
    hole = np.array([[10, 2], [14, 6], [10, 8]], np.float32) / SIDE  # two corners on the diamond's border
    assert are_holes([DIAMOND, hole]).tolist() == [False, True]
    assert are_holes([DIAMOND.round(4), (hole + 3e-5).round(4)]).tolist() == [False, True]
    assert are_holes([DIAMOND, hole + np.array([0.01, -0.01], np.float32)]).tolist() == [False, False]
    assert are_holes([DIAMOND * 1e-3 + 0.5, hole * 1e-3 + 0.5]).tolist() == [False, True]


def test_a_hole_that_leaves_a_thin_line_runs_the_other_way_round() -> None:
    side = 3000
    outline, hole = (
        np.array([[at, at], [to, at], [to, to], [at, to]]) / side for at, to in ((0, side), (1, side - 1))
    )
    for segments in ([outline, hole[::-1]], [hole, outline[::-1]]):
        assert are_holes(segments).tolist() == [segment.min() > 0 for segment in segments]
        assert not overlap(segments)
        frame = masks.areas([masks.from_polygons(segments, (side, side))])
        assert frame.tolist() == [4 * (side - 1)]
    assert are_holes([outline, hole]).tolist() == [False, False]  # the same object twice
    rounded = (outline + 3e-7).round(6)[::-1]
    assert are_holes([outline, rounded]).tolist() == [False, False]
    beside = hole[::-1] / 2 + np.array([3e-4, 0])
    assert are_holes([outline / 2, beside]).tolist() == [False, False]


def test_a_notch_through_a_segment_makes_it_no_hole() -> None:
    """All corners of the segment are inside the outline, but the outline's notch passes between them."""
    notched = np.array([[2, 2], [9, 2], [10, 15], [11, 2], [18, 2], [18, 18], [2, 18]], np.float32) / SIDE
    inner = box(4, 6, 16, 10)
    assert are_holes([notched, inner]).tolist() == [False, False]
    assert are_holes([notched, box(4, 16, 16, 17)]).tolist() == [False, True]


def test_regions_name_their_own_holes() -> None:
    large, middle, small = (box(*each) for each in (LARGE, MIDDLE, SMALL))
    found = regions([small, large, middle])
    assert [(each.outline is small, len(each.holes)) for each in found] == [(True, 0), (False, 1)]
    assert found[1].outline is large
    assert found[1].holes[0] is middle


@pytest.mark.parametrize("name", CASES)
def test_segments_without_overlap_follow_the_even_odd_rule(name: str) -> None:
    segments = [box(*each) for each in CASES[name][0]]
    apart = without_overlap(segments)
    if not overlap(segments):
        assert all(one is other for one, other in zip(apart, segments, strict=True))
    parity = np.sum([pixels_of([segment]) for segment in apart], axis=0) % 2 == 1
    np.testing.assert_array_equal(parity, pixels_of(segments))
    assert overlap(segments) == (
        name in {"across", "a cross", "equal"} or "cross" in name or "covered" in name
    )


def test_equal_pairs_cancel_out() -> None:
    one, other = box(*LARGE), box(*SMALL)
    assert without_equal_pairs([one, other, one[::-1]]) == [other]
    kept = without_equal_pairs([one, np.roll(one, 1, axis=0), other, one])
    assert len(kept) == 2
    assert without_equal_pairs([]) == []


CHESSBOARD = np.indices((5, 5)).sum(axis=0) % 2 == 0
RING = np.pad(np.zeros((3, 3), bool), 1, constant_values=True)
LOOP = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=bool)


@pytest.mark.parametrize(
    ("pixels", "holes"),
    [
        (np.ones((1, 1), bool), [False]),
        (np.ones((1, 9), bool), [False]),
        (RING, [False, True]),
        (LOOP, [False, True]),  # closed by corners alone
        (~LOOP, [False]),
        (CHESSBOARD, [False, True, True, True, True]),
        (np.eye(4, dtype=bool), [False]),
        (np.pad(RING, 1) ^ np.pad(np.ones((1, 1), bool), 3), [False, True, False]),
        (np.zeros((3, 3), bool), []),
        (np.zeros((0, 4), bool), []),
    ],
)
def test_outlines_are_traced(pixels: BoolArray, holes: list[bool]) -> None:
    outlines = trace(pixels)
    assert sorted(outline.is_hole for outline in outlines) == sorted(holes)
    if pixels.size:
        segments = [(outline.points / pixels.shape[::-1]).astype(np.float32) for outline in outlines]
        assert are_holes(segments).tolist() == [each.is_hole for each in outlines] if outlines else True
        np.testing.assert_array_equal(pixels_of(segments, *pixels.shape) if segments else pixels, pixels)
    for points, is_hole in outlines:
        x, y = points.T
        signed = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum()
        assert (signed < 0) == is_hole, "holes run the other way round"


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    fraction=st.sampled_from([0.2, 0.5, 0.7, 0.9]),
    margin=st.integers(0, 3),
)
def test_masks_to_polygons_to_masks_are_the_same(
    seed: int, shape: tuple[int, int], fraction: float, margin: int
) -> None:
    pixels = np.random.default_rng(seed).random(shape) < fraction
    pixels[0, 0] = True
    height, width = shape[0] + margin, shape[1] + 2 * margin
    mask = Mask(2 * margin, margin, pixels)
    answer = mask_polygons(mask, (height, width), np.zeros(4, np.float32), 10_000)
    segments = [np.array(segment, np.float32).reshape(-1, 2) for segment in answer]
    whole = np.zeros((height, width), dtype=bool)
    whole[margin:, 2 * margin :] = pixels
    np.testing.assert_array_equal(pixels_of(segments, height, width), whole)
    assert masks.from_polygons(segments, (height, width)) == masks.from_crop(mask, (height, width))
