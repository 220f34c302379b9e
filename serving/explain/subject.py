"""What a method is given: a network, the image as it sees it, and two images without content."""

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
    from serving.explain.rewriting import Halves

AT_ONCE = 8
"""Images that a stream runs through a network with gradients together: they bound an explanation's memory."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One image before one network.

    Attributes:
        network: in eval mode, [N, 3, h, w] → logits [N, C]; modules of the explanations' own.
        halves: gives the same in two parts, for many gradients (serving.explain.rewriting).
        guided: gives the same with guided ReLUs (serving.explain.guided_backprop).
        tensor: float32 [3, h, w], as the network takes it, on its device.
        black: float32 [3, 1, 1], a black pixel as the network takes it.
        white: float32 [3, 1, 1], likewise.
        pixels: uint8 [h, w, 3], the same image for the eye.
    """

    network: nn.Module
    halves: Callable[[], Halves]
    guided: Callable[[], nn.Module]
    tensor: Tensor
    black: Tensor
    white: Tensor
    pixels: Image


def with_shared_tensors(network: nn.Module) -> nn.Module:
    """A copy of the modules alone: weights and statistics are the network's own tensors."""
    tensors = chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


class Method(ABC):
    """A way to say which pixels speak for a class."""

    def obstacle(self, network: nn.Module, size: int) -> str | None:
        """Why a network cannot be explained so, as the end of a sentence, or None.

        Args:
            size: h = w of the images it takes.
        """
        return None

    def heat(self, relevance: FloatArray) -> FloatArray:
        """Attributions [3, h, w] → what a heat map shows of them, [h, w]: here what speaks for the class."""
        total: FloatArray = relevance.sum(axis=0)
        return total

    @abstractmethod
    def attribute(self, subject: Subject, target: int, asked: ExplanationRequest) -> Tensor:
        """float32 [3, h, w], on the network's device: what each value adds to the logit of class `target`."""
