"""Tiles of training images: their objects, clipped at the tile edges."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from trainer.annotations import Example, FloatArray, Objects, Target
from trainer.data.datasets import RecordExamples
from trainer.data.reading.jsonl import read
from trainer.data.tiles import TiledExamples, clip
from trainer.models.tiling import grid
from trainer.polygons import are_holes
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

HALVES = ScoringParameters(tile_grid_size="2x1", tile_overlap_ratio=0)
LEFT, RIGHT = grid(HALVES)


def boxes(*rows: tuple[float, float, float, float], crowd: tuple[int, ...] = ()) -> Objects:
    """Objects whose labels count them."""
    flags = np.isin(np.arange(len(rows)), crowd)
    return Objects(np.array(rows, np.float32).reshape(-1, 4), np.arange(len(rows)), flags)


def outlines(*objects: tuple[list[tuple[float, float]], ...], crowd: tuple[int, ...] = ()) -> Objects:
    """Objects of segments, each a list of points, with the boxes around them."""
    polygons = tuple(tuple(np.array(segment, np.float32) for segment in each) for each in objects)
    points = [np.concatenate(each) for each in polygons]
    around = boxes(*[(*p.min(axis=0), *p.max(axis=0)) for p in points], crowd=crowd)
    return Objects(around.boxes, around.labels, around.crowd, polygons)


def test_boxes_are_clipped_and_moved_into_the_tile() -> None:
    target = boxes((0.1, 0.2, 0.4, 0.6), (0.4, 0.2, 0.6, 1.0), (0.6, 0.0, 0.8, 0.1))
    left, right = clip(target, LEFT), clip(target, RIGHT)
    assert left.labels.tolist() == [0, 1]
    np.testing.assert_allclose(left.boxes, [[0.2, 0.2, 0.8, 0.6], [0.8, 0.2, 1, 1]], atol=1e-6)
    assert right.labels.tolist() == [1, 2]
    np.testing.assert_allclose(right.boxes, [[0, 0.2, 0.2, 1], [0.2, 0, 0.6, 0.1]], atol=1e-6)
    assert left.boxes.dtype == np.float32
    assert left.polygons is None


def test_objects_less_than_a_quarter_in_the_tile_are_left_out() -> None:
    target = boxes((0.4, 0, 0.8, 1), (0.42, 0, 0.82, 1), (0.5, 0, 0.6, 1), crowd=())
    assert clip(target, LEFT).labels.tolist() == [0], "a quarter, a fifth, and only the edge"
    crowds = boxes((0.4, 0, 0.8, 1), (0.42, 0, 0.82, 1), (0.5, 0, 0.6, 1), crowd=(0, 1, 2))
    left = clip(crowds, LEFT)
    assert left.labels.tolist() == [0, 1], "whatever is left of a crowd may be neither missed nor found"
    assert left.crowd.all()


def test_objects_without_area_are_in_no_tile() -> None:
    target = boxes((0.2, 0.2, 0.2, 0.6), (0.1, 0.3, 0.4, 0.3))
    assert len(clip(target, LEFT).labels) == 0


U = [(0.2, 0.1), (0.3, 0.1), (0.3, 0.7), (0.6, 0.7), (0.6, 0.1), (0.8, 0.1), (0.8, 0.9), (0.2, 0.9)]


def area(polygons: tuple[FloatArray, ...]) -> float:
    total = 0.0
    for x, y in (polygon.astype(np.float64).T for polygon in polygons):
        total += abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    return total


def test_clipping_splits_concave_polygons() -> None:
    """The arms of a U above the line that cuts them off from its bottom."""
    tile = np.array([0, 0, 1, 0.5])
    left = clip(outlines((U,)), tile)
    assert left.polygons is not None
    arms = sorted(left.polygons[0], key=lambda polygon: polygon[:, 0].min())
    assert [(*arm.min(axis=0).round(5), *arm.max(axis=0).round(5)) for arm in arms] == [
        pytest.approx((0.2, 0.2, 0.3, 1)),
        pytest.approx((0.6, 0.2, 0.8, 1)),
    ]
    assert area(left.polygons[0]) == pytest.approx((0.1 + 0.2) * 0.8)
    np.testing.assert_allclose(left.boxes, [[0.2, 0.2, 0.8, 1]], atol=1e-6)


def test_a_polygon_is_cut_at_all_four_edges() -> None:
    diamond = [(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)]
    tile = np.array([0.2, 0.2, 0.8, 0.8])
    cut = clip(outlines((diamond,)), tile)
    assert cut.polygons is not None
    (octagon,) = cut.polygons[0]
    # Four corners, each a triangle with legs of 0.1, are missing of the square.
    assert area((octagon,)) == pytest.approx(1 - 4 * (0.1**2 / 2) / 0.6**2)
    np.testing.assert_allclose(cut.boxes, [[0, 0, 1, 1]], atol=1e-6)


def test_each_segment_is_clipped_and_boxed() -> None:
    square = [(0.1, 0.1), (0.2, 0.1), (0.2, 0.2), (0.1, 0.2)]
    triangle = [(0.3, 0.5), (0.7, 0.5), (0.7, 0.9)]
    far = [(0.75, 0.1), (0.8, 0.1), (0.8, 0.2)]
    target = outlines((square, triangle, far))
    left = clip(target, LEFT)
    assert left.polygons is not None
    assert len(left.polygons[0]) == 2
    np.testing.assert_allclose(left.boxes, [[0.2, 0.1, 1, 0.7]], atol=1e-6)
    assert area(left.polygons[0]) == pytest.approx((0.01 + 0.02) / 0.5)
    right = clip(target, RIGHT)
    assert right.polygons is not None
    assert area(right.polygons[0]) == pytest.approx((0.06 + 0.0025) / 0.5, rel=1e-5)


def test_objects_are_only_where_their_polygons_are() -> None:
    """An L whose box covers the tile in its empty corner."""
    shape = [(0.1, 0.0), (0.2, 0.0), (0.2, 0.8), (0.9, 0.8), (0.9, 1.0), (0.1, 1.0)]
    corner = np.array([0.3, 0.0, 1.0, 0.7])
    assert len(clip(outlines((shape,)), corner).labels) == 0
    assert len(clip(boxes((0.1, 0, 0.9, 1)), corner).labels) == 1
    slanted = [(0.1, 0.1), (0.9, 0.9), (0.1, 0.9)]
    quarters = ScoringParameters(tile_grid_size="2x2", tile_overlap_ratio=0)
    assert len(TiledExamples(Drawn(outlines((slanted,))), quarters)) == 1 + 3
    assert len(TiledExamples(Drawn(boxes((0.1, 0.1, 0.9, 0.9))), quarters)) == 1 + 4


def test_polygons_that_only_touch_the_tile_are_left_out() -> None:
    touching = [(0.3, 0.1), (0.5, 0.1), (0.5, 0.4), (0.3, 0.4)]
    beside = [(0.6, 0.1), (0.9, 0.1), (0.9, 0.4), (0.6, 0.4)]
    right = clip(outlines((touching, beside)), RIGHT)
    assert right.polygons is not None
    assert len(right.polygons[0]) == 1
    np.testing.assert_allclose(right.boxes, [[0.2, 0.1, 0.8, 0.4]], atol=1e-6)
    assert len(clip(outlines((touching,), crowd=(0,)), RIGHT).labels) == 0


RING = ([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)], [(0.1, 0.1), (0.1, 0.9), (0.9, 0.9), (0.9, 0.1)])


def test_holes_stay_holes() -> None:
    left = clip(outlines(RING), LEFT)
    assert left.polygons is not None
    solid, hole = left.polygons[0]
    assert are_holes([solid, hole]).tolist() == [False, True]
    assert area((solid,)) - area((hole,)) == pytest.approx(1 - 0.8 * 0.8)
    np.testing.assert_allclose(left.boxes, [[0, 0, 1, 1]], atol=1e-6)


def test_a_tile_inside_a_hole_has_no_object() -> None:
    assert len(clip(outlines(RING, crowd=(0,)), np.array([0.3, 0.3, 0.6, 0.6])).labels) == 0
    assert len(clip(outlines(RING, crowd=(0,)), np.array([0.1, 0.1, 0.9, 0.9])).labels) == 0
    island = [(0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8)]
    cut = clip(outlines((*RING, island), crowd=(0,)), np.array([0.3, 0.3, 0.6, 0.6]))
    assert cut.polygons is not None
    assert area(cut.polygons[0]) == pytest.approx(1), "all of it is solid"


def test_the_box_of_a_cut_hole_is_around_what_is_left() -> None:
    cut = clip(outlines(RING, crowd=(0,)), np.array([0.5, 0.5, 1.0, 0.9]))
    np.testing.assert_allclose(cut.boxes, [[0.8, 0, 1, 1]], atol=2e-3)


def test_united_segments_stay_united() -> None:
    """In the tile, one of two segments across each other is inside the other one."""
    wide, high = (
        [(0.0, 0.2), (0.9, 0.2), (0.9, 0.8), (0.0, 0.8)],
        [(0.1, 0.0), (0.3, 0.0), (0.3, 1), (0.1, 1)],
    )
    cut = clip(outlines((wide, high), crowd=(0,)), np.array([0.0, 0.3, 0.5, 0.7]))
    assert cut.polygons is not None
    assert not are_holes(cut.polygons[0]).any()
    assert area(cut.polygons[0]) == pytest.approx(1, abs=2e-3)


def test_polygons_inside_the_tile_are_unchanged() -> None:
    shape = [(0.1, 0.1), (0.4, 0.1), (0.25, 0.9)]
    left = clip(outlines((shape,)), LEFT)
    assert left.polygons is not None
    np.testing.assert_allclose(left.polygons[0][0], np.array(shape) * [2, 1], atol=1e-6)


def inside(point: FloatArray, polygons: tuple[FloatArray, ...]) -> bool:
    """By the even-odd rule: how often a ray to the right crosses the outlines."""
    x, y = point
    crossed = 0
    for polygon in polygons:
        for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
                crossed += 1
    return crossed % 2 == 1


@given(seed=st.integers(0, 10**6), points=st.integers(3, 12), coarse=st.booleans())
def test_pieces_hold_exactly_the_points_of_the_polygon_in_the_tile(
    seed: int, points: int, coarse: bool
) -> None:
    """Also of polygons that cross themselves, and (coarse) with points and edges on the tile's border."""
    generator = np.random.default_rng(seed)
    polygon = generator.integers(0, 5, (points, 2)) / 4 if coarse else generator.random((points, 2))
    target = outlines(([tuple(point) for point in polygon],), crowd=(0,))
    tile = np.array([0.25, 0.25, 0.75, 0.75]) if coarse else np.sort(generator.random((2, 2)), axis=0).ravel()
    cut = clip(target, tile)
    pieces = cut.polygons[0] if cut.polygons else ()
    for place in generator.random((20, 2)) * 0.998 + 0.001:
        in_image = tile[:2] + place * (tile[2:] - tile[:2])
        # Nearer to an outline than float32 tells apart, either answer is right.
        if distance(in_image, polygon) > 1e-5:
            assert inside(in_image, (polygon,)) == inside(place, pieces)
    for piece in pieces:
        assert piece.min() >= 0
        assert piece.max() <= 1
        assert len(piece) >= 3


def distance(point: FloatArray, polygon: FloatArray) -> float:
    """From a point to the nearest of a polygon's edges."""
    starts, edges = polygon, np.roll(polygon, -1, axis=0) - polygon
    lengths = (edges**2).sum(axis=1)
    along = ((point - starts) * edges).sum(axis=1) / np.where(lengths == 0, 1, lengths)
    nearest = starts + along.clip(0, 1)[:, None] * edges
    return float(np.sqrt(((point - nearest) ** 2).sum(axis=1)).min())


class Drawn:
    """Images (trainer.annotations.Examples) of 100 × 60 pixels, each of which holds its own coordinates."""

    def __init__(self, *targets: Target) -> None:
        self._targets = targets

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> Example:
        ys, xs = np.mgrid[:60, :100].astype(np.uint8)
        return Example(np.stack([xs, ys, np.full_like(xs, index)], axis=2), self._targets[index])

    @property
    def targets(self) -> list[Target]:
        return list(self._targets)


def test_tiles_without_objects_are_left_out() -> None:
    examples = Drawn(
        boxes((0.1, 0.1, 0.3, 0.4)),
        boxes(),
        boxes((0.6, 0.1, 0.8, 0.4), (0.1, 0.1, 0.2, 0.2)),
        boxes((0.6, 0.1, 0.8, 0.4), crowd=(0,)),
    )
    tiled = TiledExamples(examples, HALVES)
    assert len(tiled) == 4 + 3
    assert len(tiled.targets) == 7
    for index in range(4):
        assert tiled[index].image.shape == (60, 100, 3)
        assert tiled.targets[index] is examples.targets[index]
    # (image, first column) of each tile
    tiles = [tiled[index].image for index in range(4, 7)]
    assert [(image[0, 0, 2], image[0, 0, 0]) for image in tiles] == [(0, 0), (2, 0), (2, 50)]
    assert all(image.shape == (60, 50, 3) for image in tiles)
    labels = [tiled[index].target.labels.tolist() for index in range(4, 7)]  # type: ignore[union-attr]
    assert labels == [[0], [1], [0]]
    np.testing.assert_allclose(tiled[6].target.boxes, [[0.2, 0.1, 0.6, 0.4]], atol=1e-6)  # type: ignore[union-attr]


def test_targets_are_those_of_the_examples() -> None:
    tiled = TiledExamples(Drawn(boxes((0.1, 0.1, 0.6, 0.4)), boxes((0.6, 0.1, 0.8, 0.4))), HALVES)
    targets = tiled.targets
    for index, target in enumerate(targets):
        np.testing.assert_array_equal(target.boxes, tiled[index].target.boxes)  # type: ignore[union-attr]
    assert len(targets[1:4]) == 3
    assert targets[-1].labels.tolist() == [0]  # type: ignore[union-attr]
    with pytest.raises(IndexError):
        targets[len(targets)]
    with pytest.raises(IndexError):
        tiled[len(tiled)]


OBJECT = st.tuples(*[st.floats(0, 1, width=32)] * 4, st.booleans()).map(
    lambda o: (min(o[0], o[2]), min(o[1], o[3]), max(o[0], o[2]), max(o[1], o[3]), o[4])
)


@given(rows=st.lists(OBJECT, max_size=6), columns=st.integers(1, 4), overlap=st.floats(0, 0.8))
def test_exactly_the_tiles_with_objects_are_kept(rows: list[Any], columns: int, overlap: float) -> None:
    target = boxes(*[row[:4] for row in rows])
    target = Objects(target.boxes, target.labels, np.array([row[4] for row in rows], dtype=bool))
    corners = target.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    with_polygons = Objects(target.boxes, target.labels, target.crowd, tuple((each,) for each in corners))
    parameters = ScoringParameters(tile_grid_size=f"{columns}x3", tile_overlap_ratio=overlap)
    for objects in (target, with_polygons):
        held = [clip(objects, tile) for tile in grid(parameters)]
        expected = [each for each in held if not each.crowd.all()]
        kept = TiledExamples(Drawn(objects), parameters).targets[1:]
        assert len(kept) == len(expected)
        for one, other in zip(kept, expected, strict=True):
            np.testing.assert_array_equal(one.boxes, other.boxes)  # type: ignore[union-attr]


def test_tiles_of_records_are_cut_from_the_upright_image(
    write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    polygon = [0.1, 0.1, 0.4, 0.1, 0.4, 0.4, 0.1, 0.4]
    lines = [{"image_url": "a.png", "label": [{"label": "x", "isCrowd": 0, "polygon": [polygon]}]}]
    path = write_lines(lines, images=True)
    exif = Pillow.Exif()
    exif[0x0112] = 6  # the stored pixels lie on their side
    Pillow.new("RGB", (80, 40), "red").save(tmp_path / "a.png", exif=exif)
    records = read([path], Task.SEGMENTATION).records
    tiled = TiledExamples(
        RecordExamples(records, ("w", "x")), ScoringParameters(tile_grid_size="(2, 2)", tile_overlap_ratio=0)
    )
    assert len(tiled) == 2
    example = pickle.loads(pickle.dumps(tiled))[1]
    assert example.image.shape == (40, 20, 3)
    assert example.target.labels.tolist() == [1]
    np.testing.assert_allclose(example.target.boxes, [[0.2, 0.2, 0.8, 0.8]], atol=1e-6)
