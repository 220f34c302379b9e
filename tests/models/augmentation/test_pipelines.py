"""Boxes and polygons of augmented images, against their pixels."""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import needs_library
from trainer.annotations import Example, Image, Objects
from trainer.errors import JobError, TrainingError
from trainer.models.augmentation.pipeline import Augment, load
from trainer.models.geometry import Geometry
from trainer.models.masks import rasterise
from trainer.tasks import Task

SIZE = (150, 200)
# A white star-like outline with a hole; and a small square beside it, grey.
OUTLINE = np.array([[0.2, 0.2], [0.75, 0.25], [0.8, 0.8], [0.5, 0.55], [0.25, 0.85]], dtype=np.float32)
HOLE = np.array([[0.4, 0.3], [0.5, 0.3], [0.5, 0.4], [0.4, 0.4]], dtype=np.float32)
SQUARE = np.array([[0.02, 0.04], [0.1, 0.04], [0.1, 0.14], [0.02, 0.14]], dtype=np.float32)
WHOLE = Geometry(SIZE, SIZE, (1.0, 1.0))


def example(*, polygons: bool = True) -> Example:
    white, grey = rasterise((OUTLINE, HOLE), WHOLE) > 0, rasterise((SQUARE,), WHOLE) > 0
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    image[white], image[grey] = 255, 120
    boxes = np.stack([np.concatenate([each.min(axis=0), each.max(axis=0)]) for each in (OUTLINE, SQUARE)])
    segments = ((OUTLINE, HOLE), (SQUARE,)) if polygons else None
    return Example(image, Objects(boxes, np.array([4, 7]), np.array([False, True]), segments))


def pipeline(folder: Path, content: Any, task: Task = Task.SEGMENTATION) -> Augment:
    path = folder / "own.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return load(path, task)


def saved(name: str, **arguments: Any) -> dict[str, Any]:
    """A transform as Albumentations saves it."""
    return {"transform": {"__class_fullname__": name, "p": 1.0, **arguments}}


def agreement(image: Image, objects: Objects, label: int, lowest: int, highest: int) -> float:
    """The IoU of an object's polygons with the pixels of its brightness."""
    size = (image.shape[0], image.shape[1])
    pixels = (image[..., 0] > lowest) & (image[..., 0] <= highest)
    rows = np.flatnonzero(objects.labels == label).tolist()
    if not rows:
        return float(pixels.sum() <= 12)  # at most a sliver
    assert objects.polygons is not None
    mask = rasterise(objects.polygons[rows[0]], Geometry(size, size, (1.0, 1.0))) > 0
    return float((mask & pixels).sum() / max(1, (mask | pixels).sum()))


MOVING: list[tuple[str, dict[str, Any], float]] = [
    ("RandomHorizontalFlip", {"p": 1}, 1),
    ("RandomVerticalFlip", {"p": 1}, 1),
    ("CenterCrop", {"size": 120}, 1),
    ("RandomCrop", {"size": 100}, 1),
    ("Pad", {"padding": [3, 20, 40, 7]}, 1),
    ("RandomZoomOut", {"p": 1}, 1),
    ("RandomIoUCrop", {}, 1),
    ("Resize", {"size": [177, 133]}, 0.95),
    ("RandomResizedCrop", {"size": 128, "scale": [0.3, 1]}, 0.95),
    ("RandomRotation", {"degrees": 40}, 0.95),
    ("RandomAffine", {"degrees": 20, "translate": [0.2, 0.2], "scale": [0.7, 1.5], "shear": 10}, 0.95),
    ("RandomPerspective", {"p": 1}, 0.95),
    ("ElasticTransform", {"alpha": 30.0}, 0.9),
]


@pytest.mark.parametrize(("name", "arguments", "least"), MOVING, ids=[name for name, *_ in MOVING])
def test_polygons_and_boxes_follow_the_pixels(
    tmp_path: Path, name: str, arguments: dict[str, Any], least: float
) -> None:
    augment = pipeline(tmp_path, [{name: arguments}])
    torch.manual_seed(0)
    for _ in range(6):
        image, objects = (augmented := augment(example())).image, augmented.target
        assert isinstance(objects, Objects)
        assert agreement(image, objects, 4, 180, 255) >= least
        rows, columns = np.nonzero(image[..., 0] > 180)
        if len(rows):
            bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            box = objects.boxes[objects.labels.tolist().index(4)] * np.tile(image.shape[1::-1], 2)
            assert np.abs(box - bounds).max() <= 2.5
        assert objects.crowd.tolist() == [label == 7 for label in objects.labels]
        assert objects.polygons is not None
        assert len(objects.polygons) == len(objects.labels) == len(objects.boxes)


def test_flip_keeps_polygons_exact(tmp_path: Path) -> None:
    objects = pipeline(tmp_path, [{"RandomHorizontalFlip": {"p": 1}}])(example()).target
    assert isinstance(objects, Objects)
    assert objects.polygons is not None
    np.testing.assert_allclose(objects.polygons[0][1], HOLE * [-1, 1] + [1, 0], atol=1e-6)


def test_objects_that_are_cropped_away_are_dropped(tmp_path: Path) -> None:
    """The centre holds a part of the first object, and nothing of the second."""
    for polygons, task in ((True, Task.SEGMENTATION), (False, Task.DETECTION)):
        objects = pipeline(tmp_path, [{"CenterCrop": {"size": 60}}], task)(example(polygons=polygons)).target
        assert isinstance(objects, Objects)
        assert (objects.labels.tolist(), objects.crowd.tolist()) == ([4], [False])
        assert objects.boxes.min() >= 0
        assert objects.boxes.max() <= 1


def test_boxes_that_a_transform_drops_take_their_polygons_along(tmp_path: Path) -> None:
    least = {"SanitizeBoundingBoxes": {"min_size": 40}}
    for more in ([], [{"ElasticTransform": {"alpha": 1.0}}]):  # polygons as points, and as masks
        objects = pipeline(tmp_path, [least, *more])(example()).target
        assert isinstance(objects, Objects)
        assert objects.labels.tolist() == [4]
        assert objects.polygons is not None
        assert len(objects.polygons) == 1


@pytest.mark.parametrize("task", [Task.DETECTION, Task.SEGMENTATION])
def test_images_without_objects_are_augmented(tmp_path: Path, task: Task) -> None:
    polygons: tuple[Any, ...] | None = () if task is Task.SEGMENTATION else None
    none = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_), polygons)
    augment = pipeline(
        tmp_path, [{"RandomRotation": {"degrees": 9}}, {"RandomHorizontalFlip": {"p": 1}}], task
    )
    objects = augment(Example(example().image, none)).target
    assert isinstance(objects, Objects)
    assert (objects.boxes.shape, objects.polygons) == ((0, 4), polygons)


def test_original_is_not_changed(tmp_path: Path) -> None:
    erase = {"RandomErasing": {"p": 1, "value": 9}}
    before = example()
    image = before.image.copy()
    image.flags.writeable = False
    augmented = pipeline(tmp_path, [erase])(Example(image, before.target))
    assert (image == before.image).all()
    assert (augmented.image != image).any()


def test_class_stays_and_the_image_changes(tmp_path: Path) -> None:
    for target, task in ((3, Task.CLASSIFICATION), (np.array([True, False]), Task.MULTILABEL)):
        augmented = pipeline(tmp_path, [{"RandomInvert": {"p": 1}}], task)(Example(example().image, target))
        assert augmented.target is target
        assert (augmented.image == 255 - example().image).all()


def test_same_seed_augments_alike(tmp_path: Path) -> None:
    augment = pipeline(tmp_path, [{"RandomAffine": {"degrees": 90}}, {"ColorJitter": {"hue": 0.5}}])
    copied = pickle.loads(pickle.dumps(augment))
    images = []
    for each, seed in ((augment, 1), (copied, 1), (augment, 2)):
        torch.manual_seed(seed)
        images.append(each(example()).image)
    assert (images[0] == images[1]).all()
    assert (images[0] != images[2]).any()


def test_transform_that_fails_for_an_image_names_the_file(tmp_path: Path) -> None:
    augment = pipeline(tmp_path, [{"RandomCrop": {"size": 180}}])
    with pytest.raises(
        TrainingError, match=r"own.json: fails for a training image of 200 × 150 pixels: .*crop"
    ):
        augment(example())


def test_albumentations_that_is_missing_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(JobError, match=r"pip install 'image-trainer\[albumentations\]'"):
        pipeline(tmp_path, saved("HorizontalFlip"))


ALBUMENTATIONS: list[tuple[str, dict[str, Any], float]] = [
    ("HorizontalFlip", {}, 1),
    ("RandomRotate90", {}, 1),
    ("RandomCrop", {"height": 100, "width": 100}, 1),
    # It saves arguments of its base class, which it does not take.
    ("PadIfNeeded", {"min_height": 300, "min_width": 300, "padding": 0}, 1),
    ("Affine", {"scale": [0.7, 1.5], "rotate": [-20, 20], "shear": [-5, 5]}, 0.95),
    ("RandomResizedCrop", {"size": [128, 128], "scale": [0.3, 1.0]}, 0.95),
    ("ElasticTransform", {"alpha": 50, "sigma": 8}, 0.95),
    ("RandomGridShuffle", {"grid": [2, 2]}, 1),
]


@pytest.fixture
def albumentations(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    needs_library("albumentations")
    return importlib.import_module("albumentations")


@pytest.mark.parametrize(("name", "arguments", "least"), ALBUMENTATIONS, ids=[n for n, *_ in ALBUMENTATIONS])
def test_polygons_follow_the_pixels_in_albumentations(
    albumentations: Any, tmp_path: Path, name: str, arguments: dict[str, Any], least: float
) -> None:
    augment = pipeline(tmp_path, saved(name, **arguments))
    torch.manual_seed(0)
    for _ in range(4):
        augmented = augment(example())
        assert isinstance(augmented.target, Objects)
        assert agreement(augmented.image, augmented.target, 4, 180, 255) >= least


def test_saved_pipeline_keeps_its_limits_for_boxes(albumentations: Any, tmp_path: Path) -> None:
    limits = albumentations.BboxParams(format="coco", label_fields=["category"], min_width=40)
    compose = albumentations.Compose([albumentations.HorizontalFlip(p=1)], bbox_params=limits)
    albumentations.save(compose, tmp_path / "saved.yaml", data_format="yaml")
    objects = load(tmp_path / "saved.yaml", Task.DETECTION)(example(polygons=False)).target
    assert isinstance(objects, Objects)
    assert objects.labels.tolist() == [4]


def test_albumentations_follows_the_seed(albumentations: Any, tmp_path: Path) -> None:
    augment = pipeline(tmp_path, saved("Rotate", limit=[-90, 90]))
    copied = pickle.loads(pickle.dumps(augment))
    images = []
    for each, seed in ((augment, 1), (copied, 1), (augment, 2)):
        torch.manual_seed(seed)
        images.append(each(example()).image)
    assert (images[0] == images[1]).all()
    assert images[0].shape != images[2].shape or (images[0] != images[2]).any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved("HorizontalFlip", q=1), r"own.json:1: transform.q: is not an argument of HorizontalFlip"),
        (saved("Rotat"), r"Rotat: is not a transform of Albumentations .*did you mean Rotate"),
        (saved("os.system"), r"os.system: is not a transform of Albumentations"),
        (saved("ToTensorV2"), r"ToTensorV2: cannot be used in a file"),
        (saved("RandomCrop", height=0, width=9), r"transform.height: .*got 0"),
        (saved("FDA", reference_images=[]), r"needs other images"),
        (saved("Compose", transforms=3), r"transform.transforms: must be a list of transforms"),
        (saved("Compose", transforms=[], additional_targets={"x": "image"}), r"additional_targets: must be"),
    ],
)
def test_wrong_pipeline_of_albumentations_is_named(
    albumentations: Any, tmp_path: Path, content: Any, message: str
) -> None:
    with pytest.raises(JobError, match=message):
        pipeline(tmp_path, content)
