"""Augmentation files: their forms, and what is said about those that cannot be used."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torchvision.transforms import v2

from trainer.errors import JobError
from trainer.models.augmentation.file import TRANSFORMS, Augmentation, read
from trainer.models.augmentation.pipeline import load
from trainer.tasks import Task

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "own.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("text", "replaces"),
    [
        ("- RandomInvert\n", True),
        ("transforms: [RandomInvert]\n", True),
        ("replaces: recipe\ntransforms: [RandomInvert]\n", True),
        ("extends: recipe\ntransforms: [RandomInvert]\n", False),
    ],
)
def test_file_replaces_the_recipe_unless_it_extends_it(write: Write, text: str, replaces: bool) -> None:
    file = read(write(text))
    assert (file.library, file.replaces, file.content) == ("torchvision", replaces, ["RandomInvert"])


def saved(**more: Any) -> str:
    flip = {"__class_fullname__": "HorizontalFlip", "p": 1.0}
    pipeline = {"__class_fullname__": "Compose", "p": 1.0, "transforms": [flip]}
    return json.dumps({"__version__": "2.0.8", "transform": pipeline, **more}, indent=1)


def test_saved_pipeline_of_albumentations_is_recognised(write: Write) -> None:
    file = read(write(saved(extends="recipe"), "saved.json"))
    assert (file.library, file.replaces) == ("albumentations", False)
    assert file.content["transforms"][0]["__class_fullname__"] == "HorizontalFlip"


FORMS = [
    ("RandomInvert\n", r"own.yaml:1: must be a list of transforms, or a mapping with `transforms`, got str"),
    ("", r"own.yaml: must be a list of transforms"),
    ("transforms:\n  RandomInvert: {}\n", r"own.yaml:1: transforms: must be a list of transforms such as"),
    ("replaces: recipes\ntransforms: []\n", r"own.yaml:1: replaces: must be recipe, got 'recipes'"),
    ("replaces: recipe\nextends: recipe\ntransforms: []\n", r"own.yaml:2: extends: contradicts replaces"),
    ("transforms: []\nextend: recipe\n", r"own.yaml:2: extend: is not a key.*did you mean extends"),
    ("RandomInvert: {p: 1}\n", r"own.yaml:1: RandomInvert: is not a key.*list it under `transforms`"),
    ("transform: 3\n", r"own.yaml:1: transform: must be a pipeline as albumentations.save writes it"),
    ("- RandomInvert:\n  p: 1\n", r"own.yaml:1: transforms\[0\]: must be a transform's name.*indent"),
    ("- RandomInvert\n- 3\n", r"own.yaml:2: transforms\[1\]: must be a transform's name.*got 3"),
    (
        "- RandomInvert\n- RandomRotaton: {degrees: 3}\n",
        r"own.yaml:2: .*RandomRotaton: .*mean RandomRotation",
    ),
    ("- MixUp\n", r"own.yaml:1: .*MixUp: cannot be used in a file; .*set mixup_alpha"),
    ("- Lambda: {lambd: 3}\n", r"Lambda: cannot be used in a file; a file cannot hold functions"),
    ("- RandomApply:\n    transforms:\n      - Norm\n", r"own.yaml:3: .*RandomApply.transforms\[0\].Norm: "),
    ("- [\n", r"own.yaml:2: must be YAML"),
]


@pytest.mark.parametrize(("text", "message"), FORMS, ids=[text for text, _ in FORMS])
def test_wrong_form_is_named_with_its_line(write: Write, text: str, message: str) -> None:
    with pytest.raises(JobError) as raised:
        read(write(text))
    assert re.search(message, str(raised.value)), str(raised.value)


ARGUMENTS = [
    ("- RandomInvert\n- RandomHorizontalFlip: {q: 1}\n", r"own.yaml:2: .*q: is not an argument .*it takes p"),
    ("- ColorJitter:\n    brightnes: 1\n", r"own.yaml:2: .*brightnes: is not an argument.*mean brightness"),
    ("- RandomCrop\n", r"own.yaml:1: transforms\[0\].size: must be given; it takes size, padding"),
    (
        "- RandomRotation: {degrees: -3}\n",
        r"own.yaml:1: .*RandomRotation: must have arguments.*'degrees': -3",
    ),
    ("- Resize: {size: 9, interpolation: cubic}\n", r"interpolation: must be one of nearest.*got 'cubic'"),
    ("- RandomErasing: {inplace: true}\n", r"inplace: is not an argument of RandomErasing"),
    ("- RandomOrder: {transforms: [Grayscale: {p: 1}]}\n", r"\[0\].Grayscale.p: is not an argument"),
    ("- Grayscale: {num_output_channels: 1}\n", r"the image must stay \[height, width, 3\]"),
]


@pytest.mark.parametrize(("text", "message"), ARGUMENTS, ids=[text for text, _ in ARGUMENTS])
def test_wrong_argument_is_named_with_its_line(write: Write, text: str, message: str) -> None:
    with pytest.raises(JobError) as raised:
        load(write(text), Task.CLASSIFICATION)
    assert re.search(message, str(raised.value)), str(raised.value)


@pytest.mark.parametrize(
    ("text", "fits", "does_not"),
    [
        ("- RandAugment\n", Task.MULTILABEL, Task.DETECTION),
        ("- RandomIoUCrop\n", Task.SEGMENTATION, Task.CLASSIFICATION),
    ],
)
def test_transform_must_suit_the_task(write: Write, text: str, fits: Task, does_not: Task) -> None:
    path = write(text)
    load(path, fits)
    with pytest.raises(JobError, match=rf"own.yaml.*{does_not}"):
        load(path, does_not)


def test_all_problems_are_reported_at_once(write: Write) -> None:
    with pytest.raises(JobError) as raised:
        load(write("- Pad: {paddin: 2}\n- Resize: {size: 9, interpolation: x}\n"), Task.DETECTION)
    assert [problem.where.rpartition(":")[2] for problem in raised.value.problems] == ["1", "1", "2"]


def test_number_with_exponent_is_a_number(write: Write) -> None:
    """YAML reads 1e-3, without a point, as text."""
    load(write("- RandomHorizontalFlip: {p: 1e-3}\n"), Task.DETECTION)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"augmentation: must be a readable file .*none.yaml"):
        read(tmp_path / "none.yaml")


def test_every_listed_transform_is_torchvisions() -> None:
    assert [name for name in TRANSFORMS if not issubclass(getattr(v2, name), v2.Transform)] == []
    assert len(set(TRANSFORMS)) == len(TRANSFORMS)


def test_problem_without_a_line_names_the_file() -> None:
    problem = Augmentation(Path("saved.json"), True, "albumentations", {}).problem(
        ("transform", "p"), "is bad"
    )
    assert str(problem) == "saved.json: transform.p: is bad"
