"""Builds the transforms of an augmentation file, and applies them to images with their objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch

from trainer.annotations import Example, Examples, Image, Objects, Target
from trainer.errors import JobError, TrainingError
from trainer.models.augmentation.file import SUMMARY, Augmentation, read
from trainer.tasks import Task

_TRIALS = 4
_MAX_TRIAL_SIDE = 2048
_ERRORS = (
    *(TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError),
    cv2.error,
)
"""What libraries raise for arguments and images that do not fit."""


class Pipeline(Protocol):
    """Augments an image and its target.

    Random numbers come from torch's global generator. Arguments are not changed. A class index and the
    classes of a multilabel image stay as they are.
    """

    def __call__(self, image: Image, target: Target) -> tuple[Image, Target]: ...


@dataclass(frozen=True)
class Augment:
    """An augmentation file, ready for use.

    Attributes:
        file: what it says.
        pipeline: its transforms.
    """

    file: Augmentation
    pipeline: Pipeline

    def __call__(self, example: Example) -> Example:
        """Augment an example.

        Raises:
            TrainingError: the transforms fail for this image, such as a crop that is larger than it.
        """
        try:
            return Example(*_checked(*self.pipeline(example.image, example.target)))
        except _ERRORS as error:
            height, width = example.image.shape[:2]
            raise TrainingError(
                f"{self.file.path}: fails for a training image of {width} × {height} pixels: {error}"
            ) from error

    def try_on(self, examples: Examples) -> None:
        """Augment the first few examples, so that transforms that do not suit them fail before training.

        Raises:
            TrainingError: as a call does.
        """
        with _own_random_numbers():
            for index in range(min(_TRIALS, len(examples))):
                self(examples[index])


def load(path: str | Path, task: Task) -> Augment:
    """Read an augmentation file, build its transforms, and try them on images of noise.

    Raises:
        JobError: the file cannot be read, a transform or an argument is unknown, a value is wrong, the
            transforms do not suit the task, or the extra that installs Albumentations is missing.
    """
    file = read(path)
    pipeline: Pipeline
    if file.library == "torchvision":
        from trainer.models.augmentation import torchvision_pipeline

        pipeline = torchvision_pipeline.build(file, task)
    else:
        from trainer.models.augmentation import albumentations_pipeline

        pipeline = albumentations_pipeline.build(file, task)
    _try(pipeline, file, task)
    return Augment(file, pipeline)


def _try(pipeline: Pipeline, file: Augmentation, task: Task) -> None:
    """Augment a few images that are as large as the largest number in the file, so that crops fit in."""
    side = max(256, _largest_number(file.content))
    if side > _MAX_TRIAL_SIDE:
        return
    image = np.random.default_rng(0).integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
    with _own_random_numbers():
        for _ in range(_TRIALS):
            try:
                _checked(*pipeline(image, _target(task)))
            except _ERRORS as error:
                problem = file.problem((), f"must augment an image for {task}, but fails: {error}")
                raise JobError(SUMMARY, [problem]) from error


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Leave torch's global generator as it is."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        yield


def _target(task: Task) -> Target:
    if not task.has_boxes:
        return 0 if task is Task.CLASSIFICATION else np.array([True, False])
    boxes = np.array([[0.1, 0.2, 0.6, 0.8], [0.3, 0.3, 0.9, 0.7]], dtype=np.float32)
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    polygons = tuple((outline,) for outline in corners) if task is Task.SEGMENTATION else None
    return Objects(boxes, np.arange(2), np.zeros(2, dtype=np.bool_), polygons)


def _largest_number(content: object) -> int:
    if isinstance(content, dict):
        return max((_largest_number(value) for value in content.values()), default=0)
    if isinstance(content, list):
        return max((_largest_number(value) for value in content), default=0)
    return content if isinstance(content, int) else 0


def _checked(image: Image, target: Target) -> tuple[Image, Target]:
    """Check that an augmented image is still one.

    Raises:
        ValueError: it has no pixels, other values than uint8, or other channels than RGB.
    """
    if image.dtype != np.uint8:
        raise ValueError(f"the image must keep its values, uint8 in [0, 255], not become {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"the image must stay [height, width, 3], not become {list(image.shape)}")
    return image, target
