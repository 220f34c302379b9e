"""Large-scale jitter: boxes and masks against painted pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from trainer.annotations import Example, Image, Objects
from trainer.models import Family, create, specify
from trainer.models.box_augmentation import jitter_scale
from trainer.models.defaults import resolve
from trainer.models.training_items import Draw
from trainer.tasks import Task

SIZE = (120, 160)
# A rectangle, red, an L, green, and a rectangle that is a crowd, blue; in pixels of 160 × 120.
OUTLINES = (
    ((20, 20), (60, 20), (60, 50), (20, 50)),
    ((80, 10), (100, 10), (100, 80), (150, 80), (150, 110), (80, 110)),
    ((10, 70), (50, 70), (50, 110), (10, 110)),
)


def painted(*, polygons: bool) -> tuple[Image, Objects]:
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    outlines = [np.array(outline, dtype=np.float32) / (160, 120) for outline in OUTLINES]
    image[20:50, 20:60, 0] = 255
    image[10:110, 80:100, 1] = image[80:110, 80:150, 1] = 255
    image[70:110, 10:50, 2] = 255
    boxes = [np.concatenate([outline.min(axis=0), outline.max(axis=0)]) for outline in outlines]
    truth = Objects(
        np.array(boxes, dtype=np.float32),
        np.arange(3),
        np.array([False, False, True]),
        tuple((outline.astype(np.float32),) for outline in outlines) if polygons else None,
    )
    return image, truth


def jittered(seed: int, *, polygons: bool) -> tuple[Image, Objects]:
    image, truth = painted(polygons=polygons)
    return jitter_scale(image, truth, SIZE, np.random.default_rng(seed))


def seen(image: Image, label: int) -> np.ndarray[Any, Any]:
    """The pixels of an object's colour."""
    return image[..., label].astype(int) - image[..., [c for c in range(3) if c != label]].max(axis=-1) > 128


@pytest.mark.parametrize("seed", range(60))
def test_boxes_are_around_the_pixels_that_are_left(seed: int) -> None:
    image, truth = jittered(seed, polygons=True)
    assert image.shape == (*SIZE, 3)
    for label in range(3):
        pixels = seen(image, label)
        if label not in truth.labels:
            assert pixels.sum() <= max(SIZE)  # at most a sliver
            continue
        rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        box = truth.boxes[truth.labels.tolist().index(label)] * [160, 120, 160, 120]
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else box
        np.testing.assert_allclose(box, found, atol=1.5)


def test_objects_vanish_and_crowds_stay_crowds() -> None:
    kept = [jittered(seed, polygons=True)[1] for seed in range(60)]
    assert {len(truth.labels) for truth in kept} == {1, 2, 3}
    for truth in kept:
        assert truth.crowd.tolist() == [label == 2 for label in truth.labels]
        assert truth.polygons is not None
        assert len(truth.polygons) == len(truth.boxes) == len(truth.labels)
        assert truth.boxes.min(initial=0) >= 0
        assert truth.boxes.max(initial=0) <= 1


def test_a_box_without_polygon_is_clipped() -> None:
    for seed in range(60):
        boxes, masked = (jittered(seed, polygons=polygons)[1] for polygons in (False, True))
        assert set(masked.labels) <= set(boxes.labels)
        for label in set(masked.labels) & {0, 2}:  # a rectangle's box is its outline's
            pair = [truth.boxes[truth.labels.tolist().index(label)] for truth in (boxes, masked)]
            np.testing.assert_allclose(*pair, atol=1 / 100)


def test_scales_reach_from_a_tenth_to_twice_and_places_vary() -> None:
    heights, tops = [], []
    for seed in range(300):
        image, _ = jitter_scale(
            np.full((*SIZE, 3), 255, dtype=np.uint8),
            Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)),
            SIZE,
            np.random.default_rng(seed),
        )
        white = (image == 255).all(axis=2)
        heights.append(white.any(axis=1).sum())
        tops.append(np.flatnonzero(white.any(axis=1))[0])
    assert min(heights) <= 0.12 * 120
    # Uniform over ×0.1 to ×2: about half the images are enlarged and fill the canvas.
    assert 0.42 < np.mean(np.array(heights) == 120) < 0.64
    assert len(set(tops)) > 30


def test_the_same_generator_gives_the_same_image() -> None:
    first, second, other = (jittered(seed, polygons=True) for seed in (5, 5, 6))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1].boxes, second[1].boxes)
    assert not np.array_equal(first[0], other[0])


class Scene:
    """The painted image (trainer.annotations.Examples)."""

    def __init__(self, task: Task, objects: int = 3) -> None:
        self.image, truth = painted(polygons=task is Task.SEGMENTATION)
        polygons = truth.polygons and truth.polygons[:objects]
        self.target = Objects(truth.boxes[:objects], truth.labels[:objects], truth.crowd[:objects], polygons)
        self.targets = [self.target]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Example:
        return Example(self.image, self.target)


def family_of(task: Task, model: str, objects: int = 3, **values: Any) -> tuple[Family, Any]:
    settings = resolve(task, model, {"min_size": 90, "max_size": 160, **values})
    family = create(specify(task, model, settings, ("a", "b", "c"), pretrained=False))
    return family, family.training_dataset(Scene(task, objects), settings, seed=0)


@pytest.mark.parametrize("advanced", [{}, {"apply_automl_train_augmentations": False}])
def test_training_sees_jittered_images_of_the_size_that_validation_sees(advanced: dict[str, bool]) -> None:
    task = Task.SEGMENTATION
    family, dataset = family_of(
        task, "maskrcnn_resnet18_fpn", large_scale_jitter=True, advanced_settings=advanced
    )
    still, _ = family.preprocess(Scene(task).image)
    for seed in range(20):
        torch.manual_seed(seed)
        image, target = dataset.item(Draw(0, 0))
        assert image.shape == still.shape == (3, 90, 120)
        assert not torch.equal(image.float() / 255, still)
        assert 2 not in target["labels"] - 1  # a crowd is no target
        pixels = image.permute(1, 2, 0).numpy()
        for label, mask in zip(target["labels"], target["masks"], strict=True):
            painted_pixels = seen(pixels, int(label) - 1)
            differ = (mask.numpy() != painted_pixels).sum()
            assert differ <= 0.1 * painted_pixels.sum() + 2 * max(SIZE)  # along the outline
        torch.manual_seed(seed)
        assert torch.equal(dataset.item(Draw(0, 0))[0], image)


@pytest.mark.parametrize("model", ["fasterrcnn_resnet18_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"])
def test_images_whose_objects_all_vanished_are_background(model: str) -> None:
    family, dataset = family_of(Task.DETECTION, model, objects=1, large_scale_jitter=True)
    items = []
    for seed in range(200):
        torch.manual_seed(seed)
        items.append(dataset.item(Draw(0, 0)))
        if not len(items[-1][1]["boxes"]):
            break
    empty = items[-1]
    assert not len(empty[1]["boxes"])
    torch.manual_seed(0)
    losses = family.losses(family.build().train(), family.collate([items[0], empty]))
    assert all(torch.isfinite(loss) for loss in losses.values())
    alone = family.losses(family.build().train(), family.collate([empty, empty]))
    torch.stack(list(alone.values())).sum().backward()
    assert all(torch.isfinite(loss) for loss in alone.values())
