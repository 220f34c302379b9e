"""The interface between the explainer and its methods: what a method gets and what it returns."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from trainer.annotations import FloatArray, Image

if TYPE_CHECKING:
    from torch import Tensor, nn

    from serving.explain.request import ExplanationRequest

GRADIENT_BATCH = 8
"""Images per forward and backward pass; bounds the memory of an explanation."""


@dataclass(frozen=True, slots=True)
class Halves:
    """A network split into `body(stem(images))`.

    The stem is affine, so it maps a straight path of images to a straight path. Several threads may run both
    parts at once.
    """

    stem: nn.Module
    body: nn.Module


@dataclass(frozen=True, slots=True)
class Subject:
    """One image and the network to explain it with.

    Attributes:
        network: in eval mode, [N, 3, h, w] → logits [N, C]; its modules belong to the explainer.
        halves: returns the network split in two, for methods that need many gradients.
        guided: returns the network with guided ReLUs.
        tensor: float32 [3, h, w], the preprocessed image on the network's device.
        black: float32 [3, 1, 1], a preprocessed black pixel.
        white: float32 [3, 1, 1], a preprocessed white pixel.
        pixels: uint8 [h, w, 3], the image that `tensor` was made from.
    """

    network: nn.Module
    halves: Callable[[], Halves]
    guided: Callable[[], nn.Module]
    tensor: Tensor
    black: Tensor
    white: Tensor
    pixels: Image


def with_shared_tensors(network: nn.Module) -> nn.Module:
    """Copy the modules of a network; parameters and buffers stay the same tensors."""
    tensors = chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


class Method(ABC):
    """An explanation method for classifiers: it attributes a class's logit to pixels."""

    def obstacle(self, network: nn.Module, size: int) -> str | None:
        """Why the method cannot explain a network, as the end of a sentence; None if it can.

        Args:
            size: height and width of the network's input in pixels.
        """
        return None

    def heat(self, relevance: FloatArray) -> FloatArray:
        """Reduce attributions [3, h, w] to a heat map [h, w]; by default their sum over the channels."""
        total: FloatArray = relevance.sum(axis=0)
        return total

    @abstractmethod
    def attribute(self, subject: Subject, target: int, request: ExplanationRequest) -> Tensor:
        """Contribution of each input value to the logit of class `target`.

        Returns:
            float32 [3, h, w] on the network's device.
        """
