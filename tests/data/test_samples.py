"""Sample data: valid, reproducible, and annotated where the digits are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer.annotations import Objects
from trainer.data.datasets import RecordExamples
from trainer.data.samples import CLASSES, make
from trainer.data.training_data import load
from trainer.errors import JobError
from trainer.polygons import are_holes
from trainer.tasks import Task


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("task", list(Task))
def test_samples_pass_every_check(task: Task, tmp_path: Path) -> None:
    made = make(task, tmp_path / "견본", images=50)
    data = load(task, [made.train], [made.validation], progress=False)
    assert (len(data.train), len(data.validation)) == (40, 10)
    assert set(data.classes) == set(CLASSES)
    assert data.warnings == []


@pytest.mark.parametrize("task", list(Task))
def test_samples_depend_only_on_the_seed(task: Task, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        make(task, tmp_path / name, images=6, seed=seed)
    assert digest(tmp_path / "one") == digest(tmp_path / "again") != digest(tmp_path / "other")


def test_boxes_are_where_the_ink_is(tmp_path: Path) -> None:
    """Inside a box the corner-to-corner contrast is large, outside all boxes the picture is smooth."""
    made = make(Task.DETECTION, tmp_path / "boxes", images=20)
    data = load(Task.DETECTION, [made.train], progress=False)
    examples = RecordExamples(data.train, data.classes)
    for index in range(len(examples)):
        example = examples[index]
        assert isinstance(example.target, Objects)
        grey = example.image.mean(axis=2)
        height, width = grey.shape
        outside = np.ones_like(grey, dtype=bool)
        for box in (example.target.boxes * [width, height, width, height]).round().astype(int):
            inside = grey[box[1] : box[3], box[0] : box[2]]
            assert np.ptp(inside) > 60
            outside[box[1] - 2 : box[3] + 2, box[0] - 2 : box[2] + 2] = False
            # the digit touches each side of its box
            middle = (inside.min() + inside.max()) / 2
            is_light = grey[outside].mean() > middle
            ink = inside < middle if is_light else inside > middle
            assert ink[:2].any()
            assert ink[-2:].any()
            assert ink[:, :2].any()
            assert ink[:, -2:].any()
        steps = np.abs(np.diff(cv2.GaussianBlur(grey, (5, 5), 0), axis=1))
        assert steps[outside[:, 1:] & outside[:, :-1]].max() < 30


def test_boxes_and_polygons_agree(tmp_path: Path) -> None:
    boxes = make(Task.DETECTION, tmp_path / "boxes", images=20, seed=3)
    outlines = make(Task.SEGMENTATION, tmp_path / "outlines", images=20, seed=3)
    first = load(Task.DETECTION, [boxes.train], [boxes.validation], progress=False).train
    second = load(Task.SEGMENTATION, [outlines.train], [outlines.validation], progress=False).train
    for index in range(len(first)):
        one, other = first.target(index), second.target(index)
        assert isinstance(one, Objects)
        assert isinstance(other, Objects)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1 / 160)


def test_the_zeros_have_holes(tmp_path: Path) -> None:
    made = make(Task.SEGMENTATION, tmp_path / "outlines", images=20, seed=3)
    data = load(Task.SEGMENTATION, [made.train], progress=False)
    objects = [data.train.target(index) for index in range(len(data.train))]
    zeros = [
        polygons
        for target in objects
        if isinstance(target, Objects) and target.polygons is not None
        for polygons, label in zip(target.polygons, target.labels, strict=True)
        if data.classes[label] == CLASSES[0]
    ]
    assert zeros
    assert all(are_holes(polygons).any() for polygons in zeros)


def test_too_few_images_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="must be at least 2"):
        make(Task.DETECTION, tmp_path / "new", images=1)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("mine")
    with pytest.raises(JobError, match="must be a new or empty folder"):
        make(Task.DETECTION, tmp_path, images=2)
    assert (tmp_path / "train.jsonl").read_text() == "mine"
