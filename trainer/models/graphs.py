"""Tensor operations for families' `graph` methods, which torch.export can trace for any number of boxes.

How many boxes reach a threshold is known only when the graph runs, so nothing here depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import boxes as box_ops


def in_tensor(boxes: Tensor, images: Tensor) -> Tensor:
    """Clip boxes, xyxy [n, 4] in pixels, to the images [N, 3, h, w]."""
    height, width = images.shape[-2:]
    columns, rows = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]], dim=1)


@contextmanager
def traceable_nms() -> Iterator[None]:
    """Give torchvision, and with it its detectors, a batched_nms that torch.export can trace.

    The original depends on the number of boxes. It is replaced in the whole process within this context.
    """
    original = box_ops.batched_nms
    box_ops.batched_nms = _batched_nms
    try:
        yield
    finally:
        box_ops.batched_nms = original


def _batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """NMS in each class, whose boxes are moved to where no other class's boxes are."""
    span = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1  # the zero: there may be no box
    kept: Tensor = box_ops.nms(boxes + (labels.to(boxes) * span)[:, None], scores, iou_threshold)
    return kept


def rounded_up(length: Any, step: int) -> int:
    """The next multiple of `step`."""
    if isinstance(length, int):  # not a symbol of torch.export
        return -(-length // step) * step
    # For a symbolic length make a new symbol of the number of steps. Otherwise torch.export would keep the
    # remainder in every later shape and take minutes.
    steps: Any = ((torch.full((), length) + step - 1) // step).item()
    torch._check(steps >= 2)  # an assumption that torch.export needs; the graph does not check it
    rounded: int = steps * step
    return rounded


def filled(boxes: Tensor, count: int) -> Tensor:
    """Fill up `boxes` [n ≤ count, 4] with [0, 0, 0, 0] to `count` boxes."""
    return torch.cat([boxes, boxes.new_zeros(count, 4)])[torch.arange(count, device=boxes.device)]


def widened(grids: Tensor, images: Tensor) -> Tensor:
    """Interpolate grids over the images, [n, h', w'], bilinearly to [n, h, w]."""
    size = images.shape[-2:]
    return F.interpolate(grids[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def cut_to(boxes: Tensor, masks: Tensor) -> Tensor:
    """Crop masks, bool [n, h, w], to their boxes [n, 4], including the pixels that these touch."""
    return (
        masks
        & _between(boxes[:, 1::2], masks.shape[1])[:, :, None]
        & _between(boxes[:, 0::2], masks.shape[2])[:, None, :]
    )


def _between(edges: Tensor, length: int) -> Tensor:
    """The pixels between two edges [n, 2] in a row of `length` pixels, at least one: bool [n, length]."""
    first = edges[:, :1].floor().clamp(0, length - 1)
    last = torch.maximum(first + 1, edges[:, 1:].ceil())
    pixels = torch.arange(length, device=edges.device)
    return (pixels >= first) & (pixels < last)


def pasted(boxes: Tensor, masks: Tensor, images: Tensor) -> Tensor:
    """A mask head's probabilities over their boxes [n, m, m] → over the images [n, h, w].

    They are sampled as in trainer.models.masks.paste: bilinearly at the pixel centres, with zeros outside.
    """
    height, width = images.shape[-2:]
    rows = _weights(boxes[:, 1::2], height, masks.shape[1])
    columns = _weights(boxes[:, 0::2], width, masks.shape[2])
    return rows @ masks @ columns.transpose(1, 2)


def _weights(edges: Tensor, length: int, cells: int) -> Tensor:
    """The weight of each cell between two edges [n, 2] in each pixel of a row: [n, length, cells]."""
    start, size = edges[:, :1], (edges[:, 1:] - edges[:, :1]).clamp(min=1e-6)
    centres = torch.arange(length, device=edges.device) + 0.5
    positions = (centres - start) / size * cells - 0.5
    return (1 - (positions[:, :, None] - torch.arange(cells, device=edges.device)).abs()).clamp(min=0)
