"""Targets and predictions of images as plain NumPy arrays, with normalised coordinates.

Boxes are xyxy: left, top, right, bottom, as fractions of the image's width or height in [0, 1]. `C` is the
number of classes and `n` the number of objects. A label is an index into the sorted class names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
Image: TypeAlias = npt.NDArray[np.uint8]
"""A decoded image: uint8 [height, width, 3], RGB, upright (EXIF orientation applied)."""


class Mask(NamedTuple):
    """One object's mask, cropped: bool [h, w], and its position (left, top) in the image in pixels."""

    left: int
    top: int
    pixels: BoolArray


@dataclass(frozen=True, slots=True)
class Objects:
    """The target objects of one image.

    Attributes:
        boxes: float32 [n, 4].
        labels: int64 [n].
        crowd: bool [n]; metrics ignore crowds, whether or not they are detected.
        polygons: the segments of each object, each float32 [points, 2] of (x, y); None if the data have only
            boxes.
    """

    boxes: FloatArray
    labels: IntArray
    crowd: BoolArray
    polygons: tuple[tuple[FloatArray, ...], ...] | None = None


Target: TypeAlias = int | BoolArray | Objects
"""A class index, the classes present in the image (bool [C]), or its objects."""


@dataclass(frozen=True, slots=True)
class Classification:
    """probs: float32 [C]; for multi-class they sum to 1, for multilabel each is independent."""

    probs: FloatArray


@dataclass(frozen=True, slots=True)
class Detections:
    """Detected objects, in descending order of score.

    Attributes:
        boxes: float32 [n, 4], within [0, 1].
        labels: int64 [n].
        scores: float32 [n] in [0, 1].
        image_size: (height, width) of the image in pixels.
        masks: one per object at the image's resolution; None for a detector without masks.
    """

    boxes: FloatArray
    labels: IntArray
    scores: FloatArray
    image_size: tuple[int, int]
    masks: tuple[Mask, ...] | None = None


Prediction: TypeAlias = Classification | Detections


@dataclass(frozen=True, slots=True)
class Example:
    """One decoded image with its target."""

    image: Image
    target: Target


class Examples(Protocol):
    """Random access to examples. Access to an example decodes its image; `targets` decodes nothing."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    @property
    def targets(self) -> Sequence[Target]: ...
