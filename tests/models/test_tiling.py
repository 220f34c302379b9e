"""Tiles cover an image as the formula says; what is found in them counts once, at its place in the image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import batched_nms

from trainer.annotations import BoolArray, Detections, Image, Mask, Prediction
from trainer.models.family import Family
from trainer.models.geometry import Geometry
from trainer.models.spec import Spec
from trainer.models.tiling import View, cut, grid, merge, views
from trainer.scoring import MAX_TILES, ScoringParameters
from trainer.tasks import Task


def tiled(size: str | None, overlap: float = 0.25, **more: Any) -> ScoringParameters:
    return ScoringParameters(tile_grid_size=size, tile_overlap_ratio=overlap, **more)


@pytest.mark.parametrize("text", ["3x2", "3X2", "(3, 2)", " 3 x 2 ", "(3,2)", "03x2", (3, 2), [3, 2]])
def test_a_grid_is_columns_and_rows_however_it_is_written(text: Any) -> None:
    assert ScoringParameters(tile_grid_size=text).tile_grid_size == "3x2"


@pytest.mark.parametrize("text", [None, "", "none", "None"])
def test_no_grid(text: Any) -> None:
    assert views((10, 20), ScoringParameters(tile_grid_size=text)) == [View(0, 0, 20, 10)]


@pytest.mark.parametrize("text", ["1x1", "(1, 1)", "0x2", "2x0", "3", "3x", "3x2x1", "-3x2", "a", 3, "21x20"])
def test_refuses_what_is_no_grid_of_several_tiles(text: Any) -> None:
    with pytest.raises(ValueError, match="tile_grid_size"):
        ScoringParameters(tile_grid_size=text)


def test_as_many_tiles_as_are_allowed() -> None:
    assert len(views((1000, 1000), tiled("20x20"))) == 1 + MAX_TILES


def test_tiles_by_hand() -> None:
    # 1000 / (0.25 + 0.75 · 3) = 400, each 300 after the other; 600 / (0.25 + 0.75 · 2) = 342.86 and 257.14.
    assert views((600, 1000), tiled("3x2")) == [
        View(0, 0, 1000, 600),
        View(0, 0, 400, 343),
        View(300, 0, 700, 343),
        View(600, 0, 1000, 343),
        View(0, 257, 400, 600),
        View(300, 257, 700, 600),
        View(600, 257, 1000, 600),
    ]


def test_tiles_without_overlap_by_hand() -> None:
    assert views((7, 10), tiled("2x2", 0)) == [
        View(0, 0, 10, 7),
        View(0, 0, 5, 4),
        View(5, 0, 10, 4),
        View(0, 4, 5, 7),
        View(5, 4, 10, 7),
    ]
    np.testing.assert_allclose(
        grid(tiled("4x1", 0))[:, [0, 2]], [[0, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1]]
    )


COUNTS = st.integers(1, 12)


@given(
    size=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    columns=COUNTS,
    rows=st.integers(2, 12),
    overlap=st.floats(0, 0.999),
)
def test_tiles_cover_every_pixel_and_stay_inside(
    size: tuple[int, int], columns: int, rows: int, overlap: float
) -> None:
    height, width = size
    whole, *tiles = views(size, tiled(f"{columns}x{rows}", overlap))
    assert whole == (0, 0, width, height)
    assert len(tiles) == columns * rows
    seen = np.zeros(size, dtype=int)
    for tile in tiles:
        assert 0 <= tile.left < tile.right <= width
        assert 0 <= tile.top < tile.bottom <= height
        seen[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert seen.min() >= 1
    if overlap == 0 and width >= columns and height >= rows:
        assert seen.max() == 1


@given(columns=st.integers(2, 10), overlap=st.floats(0, 0.9), width=st.integers(500, 5000))
def test_tiles_are_as_wide_and_share_as_much_as_asked(columns: int, overlap: float, width: int) -> None:
    _, *tiles = views((100, width), tiled(f"{columns}x1", overlap))
    wanted = width / (overlap + (1 - overlap) * columns)
    for tile in tiles:
        assert abs(tile.right - tile.left - wanted) <= 1
    for tile, following in itertools.pairwise(tiles):
        assert abs(tile.right - following.left - overlap * wanted) <= 1


def test_cut_takes_the_pixels_of_a_view() -> None:
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    part = cut(image, View(2, 1, 5, 4))
    assert (part == image[1:4, 2:5]).all()
    assert part.base is None, "a tile does not keep the whole image in memory"
    assert cut(image, View(0, 0, 8, 6)) is image


WHOLE = View(0, 0, 200, 100)


def found(view: View, *rows: tuple[float, float, float, float, int, float]) -> tuple[View, Detections]:
    """Detections in a view from (x1, y1, x2, y2 in the image's pixels, label, score), by falling score."""
    width, height = view.right - view.left, view.bottom - view.top
    boxes = np.array([row[:4] for row in rows], np.float64).reshape(-1, 4) - [view.left, view.top] * 2
    return view, Detections(
        boxes=(boxes / [width, height, width, height]).astype(np.float32),
        labels=np.array([row[4] for row in rows], np.int64),
        scores=np.array([row[5] for row in rows], np.float32),
        image_size=(height, width),
    )


def pixels(prediction: Prediction) -> list[tuple[float, ...]]:
    """(x1, y1, x2, y2, label, score) in the pixels of the 200 × 100 image."""
    assert isinstance(prediction, Detections)
    assert prediction.image_size == (100, 200)
    assert prediction.boxes.dtype == np.float32
    return [
        (*np.round(box * [200, 100, 200, 100], 2).tolist(), int(label), round(float(score), 3))
        for box, label, score in zip(prediction.boxes, prediction.labels, prediction.scores, strict=True)
    ]


LEFT, RIGHT = View(0, 0, 120, 100), View(80, 0, 200, 100)


def test_an_object_seen_in_two_tiles_and_the_whole_image_counts_once() -> None:
    merged = merge(
        [
            found(WHOLE, (91, 41, 109, 59, 0, 0.5)),
            found(LEFT, (90, 40, 110, 60, 0, 0.9)),
            found(RIGHT, (90, 39, 110, 61, 0, 0.7), (180, 10, 190, 20, 0, 0.6)),
        ],
        ScoringParameters(),
    )
    assert pixels(merged) == [(90, 40, 110, 60, 0, 0.9), (180, 10, 190, 20, 0, 0.6)]


def test_objects_of_different_classes_are_not_merged() -> None:
    same = (90, 40, 110, 60)
    merged = merge([found(WHOLE, (*same, 0, 0.5)), found(LEFT, (*same, 1, 0.9))], ScoringParameters())
    assert pixels(merged) == [(*same, 1, 0.9), (*same, 0, 0.5)]


def test_what_one_view_tells_apart_stays_apart() -> None:
    """Neighbours whose boxes share a third of their union, found in both views."""
    first, second = (20, 20, 60, 60), (40, 20, 80, 60)
    merged = merge(
        [
            found(WHOLE, (*first, 0, 0.9), (*second, 0, 0.6)),
            found(LEFT, (*second, 0, 0.8), (*first, 0, 0.7)),
        ],
        ScoringParameters(tile_predictions_nms_threshold=0.25),
    )
    assert pixels(merged) == [(*first, 0, 0.9), (*second, 0, 0.6)]


def test_the_threshold_is_that_of_the_iou() -> None:
    # 40 · 40 shared with half: IoU 1/3.
    parts = [found(WHOLE, (20, 20, 60, 60, 0, 0.9)), found(LEFT, (40, 20, 80, 60, 0, 0.8))]
    for threshold, count in ((0, 1), (0.3, 1), (0.34, 2), (1, 2)):
        merged = merge(parts, ScoringParameters(tile_predictions_nms_threshold=threshold))
        assert len(pixels(merged)) == count


def test_equal_scores_go_to_the_earlier_view_in_whatever_order_they_come() -> None:
    parts = [
        found(WHOLE, (20, 20, 60, 60, 0, 0.5)),
        found(LEFT, (20, 20, 60, 61, 0, 0.5), (100, 20, 118, 60, 0, 0.5)),
        found(RIGHT, (100, 20, 118, 61, 0, 0.5)),
    ]
    expected = [(20, 20, 60, 60, 0, 0.5), (100, 20, 118, 60, 0, 0.5)]
    assert pixels(merge(parts, ScoringParameters())) == expected
    assert pixels(merge(parts[::-1], ScoringParameters())) == expected
    many = [
        found(WHOLE),
        found(LEFT, *((i % 20 * 5, i, i % 20 * 5 + 4, i + 1, 0, 0.5 - i % 2 / 10) for i in range(99))),
    ]
    assert [row[1] for row in pixels(merge(many, ScoringParameters()))] == [
        *range(0, 99, 2),
        *range(1, 99, 2),
    ]


def test_the_best_boxes_are_left_of_more_than_are_asked_for() -> None:
    parts = [
        found(WHOLE, *((10 * i, 0, 10 * i + 5, 5, 0, 0.5 - i / 100) for i in range(5))),
        found(LEFT, *((10 * i, 50, 10 * i + 5, 55, 0, 0.505 - i / 100) for i in range(5))),
    ]
    merged = merge(parts, ScoringParameters(box_detections_per_image=3))
    assert [row[5] for row in pixels(merged)] == [0.505, 0.5, 0.495]


def test_tiles_that_hold_nothing_change_nothing() -> None:
    whole = found(WHOLE, (20, 20, 60, 60, 0, 0.9), (30, 20, 70, 60, 0, 0.8), (30, 20, 70, 60, 1, 0.7))
    merged = merge([whole, found(LEFT), found(RIGHT)], ScoringParameters())
    assert isinstance(merged, Detections)
    for name in ("boxes", "labels", "scores"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole[1], name))
    assert pixels(merge([found(WHOLE), found(LEFT)], ScoringParameters())) == []


BOXES = st.tuples(st.integers(0, 180), st.integers(0, 80), st.integers(1, 20), st.integers(1, 20))


@given(rows=st.lists(st.tuples(BOXES, st.integers(0, 2)), min_size=1, max_size=25), seed=st.integers(0, 99))
def test_merges_boxes_of_as_many_views_as_torchvisions_nms_does(rows: list[Any], seed: int) -> None:
    scores = np.random.default_rng(seed).permutation(len(rows)) / 100 + 0.01
    objects = [
        (x, y, x + width, y + height, label, score)
        for ((x, y, width, height), label), score in zip(rows, scores, strict=True)
    ]
    # Each box from a view of its own, so that every pair is of different views.
    parts = [found(WHOLE, objects[0])]
    parts += [found(View(0, 0, 199 - i, 100), row) for i, row in enumerate(objects[1:])]
    table = torch.tensor(objects, dtype=torch.float64)
    kept = batched_nms(table[:, :4], table[:, 5], table[:, 4].long(), 0.3)
    merged = merge(parts, ScoringParameters(tile_predictions_nms_threshold=0.3))
    expected = [(*objects[i][:5], round(objects[i][5], 3)) for i in kept.tolist()]
    assert pixels(merged) == expected


def test_masks_move_with_their_tile_pixel_by_pixel() -> None:
    shape = np.random.default_rng(3).random((20, 20)) > 0.5
    lefts, tops = 10, 40
    part = Detections(
        boxes=np.array([[lefts, tops, lefts + 20, tops + 20]], np.float32)
        / np.array([120, 100] * 2, np.float32),
        labels=np.zeros(1, np.int64),
        scores=np.ones(1, np.float32),
        image_size=(100, 120),
        masks=(Mask(lefts, tops, shape),),
    )
    nothing = Detections(
        np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32), (100, 200), ()
    )
    merged = merge([(WHOLE, nothing), (RIGHT, part)], ScoringParameters())
    assert isinstance(merged, Detections)
    assert merged.masks is not None
    (mask,) = merged.masks
    assert (mask.left, mask.top) == (90, 40)
    assert (mask.pixels == shape).all()
    np.testing.assert_allclose(merged.boxes[0] * [200, 100, 200, 100], [90, 40, 110, 60], atol=1e-3)


class Blobs(Family):
    """Finds patches of red (class 0) and green (class 1) in images shrunk to 32 × 32 at most.

    A patch must be bright after the shrinking, so tiny ones are lost in a large image.
    """

    def __init__(self) -> None:
        spec = Spec(
            family="blobs",
            model="blobs",
            task=Task.SEGMENTATION,
            classes=("red", "green"),
            options={},
            parameters=ScoringParameters(),
        )
        super().__init__(spec)
        self.batches: list[int] = []

    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        height, width = image.shape[:2]
        scale = min(1.0, 32 / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        geometry = Geometry((height, width), size[::-1], (size[0] / width, size[1] / height))
        return torch.from_numpy(small).permute(2, 0, 1).float() / 255, geometry

    def infer(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> Sequence[Tensor]:
        self.batches.append(len(tensors))
        return tensors

    def postprocess(self, output: Tensor, geometry: Geometry, parameters: ScoringParameters) -> Prediction:
        rows: list[tuple[float, int, list[int], BoolArray]] = []
        for label in (0, 1):
            bright = (output[label].numpy() > 0.5).astype(np.uint8)
            count, parts = cv2.connectedComponents(bright)
            for number in range(1, count):
                area = parts == number
                ys, xs = np.nonzero(area)
                box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                rows.append((float(output[label].numpy()[area].mean()) - 0.001 * label, label, box, area))
        rows.sort(key=lambda row: -row[0])
        height, width = geometry.image_size
        full = [cv2.resize(row[3].astype(np.uint8), (width, height), interpolation=0) > 0 for row in rows]
        boxes = np.array([row[2] for row in rows], np.float32).reshape(-1, 4)
        return Detections(
            boxes=geometry.boxes_to_image(boxes),
            labels=np.array([row[1] for row in rows], np.int64),
            scores=np.array([row[0] for row in rows], np.float32),
            image_size=geometry.image_size,
            masks=tuple(Mask(0, 0, mask) for mask in full),
        )

    options = build = published = training_dataset = validation_item = None  # type: ignore[assignment]
    collate = losses = freeze_groups = class_layers = None  # type: ignore[assignment]


def scene(size: tuple[int, int], *patches: tuple[int, int, int, int, int]) -> Image:
    """Black, with patches of (x1, y1, x2, y2, class)."""
    image = np.zeros((*size, 3), dtype=np.uint8)
    for x1, y1, x2, y2, label in patches:
        image[y1:y2, x1:x2, label] = 255
    return image


NETWORK = nn.Linear(1, 1)


def test_tiles_find_what_is_too_small_in_the_whole_image() -> None:
    tiny = [(5 + 25 * i, 40 + 7 * i, 9 + 25 * i, 44 + 7 * i, i % 2) for i in range(7)]
    image = scene((128, 192), *tiny, (20, 90, 90, 126, 0))
    (plain,) = Blobs().predict(NETWORK, [image], ScoringParameters())
    (fine,) = Blobs().predict(NETWORK, [image], tiled("6x4"))
    assert isinstance(plain, Detections)
    assert isinstance(fine, Detections)
    assert len(plain.labels) == 1
    assert plain.boxes[0, 1] > 0.6, "the large patch, low in the image"
    # Each tiny patch once.
    for x1, y1, x2, y2, label in tiny:
        at = np.abs(fine.boxes * [192, 128, 192, 128] - [x1, y1, x2, y2]).max(axis=1) < 1.6
        assert (at & (fine.labels == label)).sum() == 1
    assert (fine.boxes[:, 3] < 0.66).sum() == len(tiny)


def test_masks_lie_on_the_pixels_of_the_image() -> None:
    # Tiles of at most 32 × 32 pixels are not shrunk, and so exact.
    image = scene((60, 60), (3, 4, 10, 11, 0), (26, 25, 34, 35, 1), (50, 51, 57, 55, 0))
    (prediction,) = Blobs().predict(NETWORK, [image], tiled("3x3", tile_predictions_nms_threshold=0.1))
    assert isinstance(prediction, Detections)
    assert prediction.masks is not None
    exact = [image[..., 0] > 0, image[..., 1] > 0]
    painted = np.zeros((2, 60, 60), dtype=bool)
    for label, mask in zip(prediction.labels, prediction.masks, strict=True):
        height, width = mask.pixels.shape
        painted[label, mask.top : mask.top + height, mask.left : mask.left + width] |= mask.pixels
    np.testing.assert_array_equal(painted, exact)


def test_images_without_objects_in_their_tiles_answer_alike_with_and_without_tiling() -> None:
    image = scene((24, 24), (2, 2, 9, 9, 0), (12, 12, 20, 21, 1))
    plain, fine = (Blobs().predict(NETWORK, [image], each)[0] for each in (tiled(None), tiled("2x1", 0.9)))
    assert isinstance(plain, Detections)
    assert isinstance(fine, Detections)
    np.testing.assert_allclose(plain.boxes, fine.boxes, atol=1e-6)
    assert plain.labels.tolist() == fine.labels.tolist() == [0, 1]


def test_images_of_several_sizes_at_once_in_batches_of_bounded_size() -> None:
    images = [scene((40, 60), (2, 2, 8, 8, 0)), scene((30, 20), (2, 2, 8, 8, 1)), scene((1, 1))]
    family = Blobs()
    together = family.predict(NETWORK, images, tiled("3x3"))
    assert sum(family.batches) == 30
    assert max(family.batches) <= 8
    for image, prediction in zip(images, together, strict=True):
        (alone,) = Blobs().predict(NETWORK, [image], tiled("3x3"))
        assert isinstance(alone, Detections)
        assert isinstance(prediction, Detections)
        assert prediction.image_size == image.shape[:2]
        np.testing.assert_array_equal(alone.boxes, prediction.boxes)
    assert [len(prediction.labels) for prediction in together] == [1, 1, 0]  # type: ignore[union-attr]
