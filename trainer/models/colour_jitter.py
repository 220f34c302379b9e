"""Brightness, contrast and saturation of training images, changed by one affine map of the colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GREY = np.array([0.299, 0.587, 0.114])
"""What red, green and blue add to the lightness. Source: ITU-R BT.601."""


class ColourJitter:
    """The three by factors of 1 ± `strength`, in random order, for a share of the images.

    As torchvision's ColorJitter, but that values are rounded and cut off at 0 and 255 once, at the end, not
    after each of the three: what one step would have cut off another may bring back. It takes a thirtieth of
    the time.
    """

    def __init__(self, strength: float, share: float) -> None:
        self.strength = strength
        self.share = share

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 [3, h, w], RGB, to the same; draws from PyTorch's global generator."""
        if torch.rand(()) >= self.share:
            return image
        order = torch.randperm(3).tolist()
        factors = torch.empty(3).uniform_(1 - self.strength, 1 + self.strength).tolist()
        return changed(image, order, factors)


def changed(image: Tensor, order: Sequence[int], factors: Sequence[float]) -> Tensor:
    """An image with other colours.

    Args:
        image: uint8 [3, h, w], RGB.
        order: of 0 for brightness, 1 for contrast, 2 for saturation.
        factors: by that number; 1 leaves as it is, 0 gives black, an even grey, shades of grey.
    """
    import cv2  # where a packaged classifier is served it may be missing

    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    colours = colour_map(np.array(cv2.mean(pixels)[:3]), order, factors)
    return torch.from_numpy(np.asarray(cv2.transform(pixels, colours), dtype=np.uint8)).permute(2, 0, 1)


def colour_map(
    mean: NDArray[np.float64], order: Sequence[int], factors: Sequence[float]
) -> NDArray[np.float64]:
    """The matrix [3, 4] from a colour and 1 to the changed colour, in an image of this mean colour."""
    colours = np.eye(3, 4)
    for kind in order:
        factor = factors[kind]
        if kind == 2:
            colours = factor * colours + (1 - factor) * np.outer(np.ones(3), GREY @ colours)
            continue
        lightness = GREY @ (colours @ [*mean, 1])
        colours = factor * colours
        if kind == 1:
            colours[:, 3] += (1 - factor) * lightness
    return colours
