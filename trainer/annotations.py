"""What is known (truth) or predicted about an image, as plain NumPy; coordinates are normalised.

Boxes are xyxy: left, top, right, bottom, each a fraction of the image's width or height in [0, 1].
`C` is the number of classes, `n` of objects; a label is an index into the sorted class names.
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
    """One object's pixels, cropped: bool [h, w], with (left, top), its place in the image in pixels."""

    left: int
    top: int
    pixels: BoolArray


@dataclass(frozen=True, slots=True)
class Objects:
    """The true objects of one image.

    Attributes:
        boxes: float32 [n, 4].
        labels: int64 [n].
        crowd: bool [n]; a crowd is neither missed nor wrongly found.
        polygons: for each object its segments, each float32 [points, 2] of (x, y); None where the data
            hold boxes alone.
    """

    boxes: FloatArray
    labels: IntArray
    crowd: BoolArray
    polygons: tuple[tuple[FloatArray, ...], ...] | None = None


Target: TypeAlias = int | BoolArray | Objects
"""A class index; bool [C], which classes are in the image; or the objects in it."""


@dataclass(frozen=True, slots=True)
class Classification:
    """probs: float32 [C]; they sum to 1 for multi-class, each stands alone for multi-label."""

    probs: FloatArray


@dataclass(frozen=True, slots=True)
class Detections:
    """Found objects, by falling score.

    Attributes:
        boxes: float32 [n, 4], within [0, 1].
        labels: int64 [n].
        scores: float32 [n] in [0, 1].
        image_size: (height, width) of the image in pixels.
        masks: one for each object at the image's resolution, or None for a detector without masks.
    """

    boxes: FloatArray
    labels: IntArray
    scores: FloatArray
    image_size: tuple[int, int]
    masks: tuple[Mask, ...] | None = None


Prediction: TypeAlias = Classification | Detections


@dataclass(frozen=True, slots=True)
class Example:
    """One decoded image with what is true of it."""

    image: Image
    target: Target


class Examples(Protocol):
    """Random access to examples; decoding happens at the access, the truth alone costs no decoding."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    @property
    def targets(self) -> Sequence[Target]: ...
