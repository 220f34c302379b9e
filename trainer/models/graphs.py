"""What families' `graph` methods share: operations on tensors that torch.export can trace for any number.

How many boxes pass a threshold is known only when the graph runs, so nothing here asks for it.
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
    """xyxy [n, 4] without what lies beyond the images [N, 3, h, w]."""
    height, width = images.shape[-2:]
    columns, rows = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]], dim=1)


@contextmanager
def traceable_nms() -> Iterator[None]:
    """torchvision's batched_nms, and with it its detectors', in a form that torch.export can trace.

    The original asks how many boxes there are. It is replaced for the whole process while this lasts.
    """
    original = box_ops.batched_nms
    box_ops.batched_nms = _batched_nms
    try:
        yield
    finally:
        box_ops.batched_nms = original


def _batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """NMS in each class: each is moved to where no other class's boxes are."""
    span = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1  # there may be no box at all
    kept: Tensor = box_ops.nms(boxes + (labels.to(boxes) * span)[:, None], scores, iou_threshold)
    return kept


def rounded_up(length: Any, step: int) -> int:
    """The next multiple of `step`."""
    if isinstance(length, int):  # and no symbol of torch.export's
        return -(-length // step) * step
    # Of a length that varies torch.export makes a new number of steps, or it would calculate with the
    # remainder in every later shape, for minutes.
    steps: Any = ((torch.full((), length) + step - 1) // step).item()
    torch._check(steps >= 2)  # for torch.export to go on; nothing in the graph checks it
    rounded: int = steps * step
    return rounded


def filled(boxes: Tensor, count: int) -> Tensor:
    """`count` boxes, of which the first are `boxes` [n ≤ count, 4] and the others [0, 0, 0, 0]."""
    return torch.cat([boxes, boxes.new_zeros(count, 4)])[torch.arange(count, device=boxes.device)]


def widened(grids: Tensor, images: Tensor) -> Tensor:
    """Grids over the images [n, h', w'] → [n, h, w], bilinearly."""
    size = images.shape[-2:]
    return F.interpolate(grids[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def cut_to(boxes: Tensor, masks: Tensor) -> Tensor:
    """Masks bool [n, h, w] without what lies outside of their boxes [n, 4]; touched pixels stay."""
    return (
        masks
        & _between(boxes[:, 1::2], masks.shape[1])[:, :, None]
        & _between(boxes[:, 0::2], masks.shape[2])[:, None, :]
    )


def _between(edges: Tensor, length: int) -> Tensor:
    """Which of `length` pixels in a row lie between two edges [n, 2], at least one: bool [n, length]."""
    first = edges[:, :1].floor().clamp(0, length - 1)
    last = torch.maximum(first + 1, edges[:, 1:].ceil())
    pixels = torch.arange(length, device=edges.device)
    return (pixels >= first) & (pixels < last)


def pasted(boxes: Tensor, masks: Tensor, images: Tensor) -> Tensor:
    """A mask head's probabilities over their boxes [n, m, m] → over the images [n, h, w].

    As trainer.models.masks.paste samples them: bilinearly at the pixel centres, with zeros around.
    """
    height, width = images.shape[-2:]
    rows = _weights(boxes[:, 1::2], height, masks.shape[1])
    columns = _weights(boxes[:, 0::2], width, masks.shape[2])
    return rows @ masks @ columns.transpose(1, 2)


def _weights(edges: Tensor, length: int, cells: int) -> Tensor:
    """How much of each of the cells between two edges [n, 2] each pixel in a row gets: [n, length, cells]."""
    start, size = edges[:, :1], (edges[:, 1:] - edges[:, :1]).clamp(min=1e-6)
    centres = torch.arange(length, device=edges.device) + 0.5
    positions = (centres - start) / size * cells - 0.5
    return (1 - (positions[:, :, None] - torch.arange(cells, device=edges.device)).abs()).clamp(min=0)
