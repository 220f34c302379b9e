"""Micro-batches: how a batch is split once memory ran out, and how ranks then exchange its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def least_images(network: nn.Module) -> int:
    """The fewest images that a micro-batch should have: 2 if batch norms compute its statistics, else 1."""
    return 2 if any(isinstance(each, _BatchNorm) and each.training for each in network.modules()) else 1


def parts_of(images: int, micro_batches: int, least: int) -> list[tuple[int, int]]:
    """Split a batch into parts of nearly equal size: (start, stop) of each.

    Args:
        images: number of images in the batch.
        micro_batches: maximum number of parts.
        least: minimum number of images in a part, unless the batch has fewer.
    """
    count = min(micro_batches, max(1, images // least))
    edges = [images * part // count for part in range(count + 1)]
    return list(pairwise(edges))


def zero_of(parameters: Sequence[nn.Parameter]) -> Tensor:
    """A zero whose backward pass reaches the parameters and adds nothing to their gradients.

    DistributedDataParallel then averages the gradients that are there. They are not exchanged during the
    backward pass of a loss: if that runs out of memory, only its own rank has to repeat it.
    """
    zero: Tensor = _Zero.apply(*parameters)
    return zero


class _Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[None, ...]:
        return (None,) * int(ctx.count)
