"""Brightness, contrast and saturation of training images, changed as torchvision does, but faster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GREY = np.array([0.2989, 0.587, 0.114])
"""What red, green and blue add to the lightness, in torchvision's digits. Source: ITU-R BT.601."""

_FLOOR = 0.001 - 0.5
"""Added before rounding cuts the fraction off, as torchvision does."""


class ColourJitter:
    """The three by factors of 1 ± `strength`, in random order, for a share of the images.

    torchvision's RandomApply and ColorJitter, drawn alike from PyTorch's global generator and of the same
    pixels but for one in 15, and these by a level or, seldom, up to three, in a ninth of the time: each of
    the three is one affine map of the colours.
    """

    def __init__(self, strength: float, share: float) -> None:
        self.strength = strength
        self.share = share

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 [3, h, w], RGB, to the same."""
        if torch.rand(1) >= self.share:
            return image
        order = [kind for kind in torch.randperm(4).tolist() if kind < 3]  # torchvision's fourth is the hue
        low, high = 1 - self.strength, 1 + self.strength
        factors = [torch.empty(1).uniform_(low, high).item() for _ in range(3)]
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
    for kind in order:
        mean = np.array(cv2.mean(pixels)[:3]) if kind == 1 else np.zeros(3)
        pixels = np.asarray(cv2.transform(pixels, _map(kind, factors[kind], mean)), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _map(kind: int, factor: float, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix [3, 4] from a colour and 1 to the changed colour, in an image of this mean colour."""
    colours = factor * np.eye(3, 4)
    colours[:, 3] = _FLOOR
    # Half a level less, since torchvision cuts the fraction off the lightness, too.
    if kind == 1:
        colours[:, 3] += (1 - factor) * (GREY @ mean - 0.5)
    if kind == 2:
        colours += (1 - factor) * np.array([*GREY, -0.5])
    return colours
