"""How images become tensors: where their pixels go, and by which resizing and normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.annotations import FloatArray


@dataclass(frozen=True, slots=True)
class Geometry:
    """The map from an image's pixels to its preprocessed tensor's: tensor_xy = image_xy · scale + offset.

    Attributes:
        image_size: (height, width) of the image, in pixels.
        tensor_size: (height, width) of the tensor that the network sees.
        scale: (x, y) factors.
        offset: (x, y) in tensor pixels.
    """

    image_size: tuple[int, int]
    tensor_size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)

    def boxes_to_tensor(self, boxes: FloatArray) -> FloatArray:
        """Normalised xyxy in the image [n, 4] → xyxy in tensor pixels [n, 4]."""
        height, width = self.image_size
        factor = np.array([width * self.scale[0], height * self.scale[1]] * 2, dtype=np.float32)
        return boxes * factor + np.array(self.offset * 2, dtype=np.float32)

    def boxes_to_image(self, boxes: FloatArray) -> FloatArray:
        """xyxy in tensor pixels [n, 4] → normalised xyxy in the image [n, 4], clipped to [0, 1]."""
        height, width = self.image_size
        factor = np.array([width * self.scale[0], height * self.scale[1]] * 2, dtype=np.float32)
        boxes = (np.asarray(boxes, dtype=np.float32) - np.array(self.offset * 2, dtype=np.float32)) / factor
        return boxes.clip(0, 1)


@dataclass(frozen=True, slots=True)
class Preparation:
    """`Family.preprocess` in numbers, for programs that feed an exported network themselves.

    Attributes:
        resizing: the name of the rule by which images are resized, with its numbers.
        size: (height, width) of every tensor, or None if it depends on the image's size.
        mean: mean of RGB values in [0, 1]: tensor = (pixel / 255 − mean) / std.
        std: their standard deviation.
    """

    resizing: dict[str, Any]
    size: tuple[int, int] | None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


def stretched_to_square(side: int) -> Preparation:
    """The preparation of an image that is stretched to a square of `side` pixels, its values in [0, 1]."""
    return Preparation({"rule": "stretch", "side": side, "interpolation": "bilinear"}, (side, side))
