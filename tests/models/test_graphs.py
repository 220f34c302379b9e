"""What graphs of detectors share, against the NumPy and torchvision code that scoring uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import boxes as box_ops

from trainer.models import graphs
from trainer.models.masks import paste


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_masks_are_pasted_as_scoring_pastes_them(threshold: float) -> None:
    generator = np.random.default_rng(0)
    height, width = 70, 90
    corners = generator.random((40, 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
    grids = generator.random((40, 28, 28)).astype(np.float32)
    images = torch.zeros(1, 3, height, width)
    placed = torch.from_numpy(boxes)
    covered = graphs.pasted(placed, torch.from_numpy(grids), images) >= threshold
    masks = graphs.cut_to(placed, covered).numpy()
    for box, grid, mask in zip(boxes, grids, masks, strict=True):
        expected = paste(box / (width, height, width, height), grid, (height, width), threshold)
        rows, columns = expected.pixels.shape
        inside = mask[expected.top : expected.top + rows, expected.left : expected.left + columns]
        # OpenCV samples in steps of 1/32 of a cell.
        assert (inside != expected.pixels).mean() < 0.03
        assert inside.sum() == mask.sum()


def test_nms_keeps_what_torchvisions_keeps_and_gives_its_place_back() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(400, 2, 2, generator=generator) * 100
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    scores, labels = torch.rand(400, generator=generator), torch.randint(3, (400,), generator=generator)
    original = box_ops.batched_nms
    expected = original(boxes, scores, labels, 0.4)
    with graphs.traceable_nms():
        kept = box_ops.batched_nms(boxes, scores, labels, 0.4)
        none = box_ops.batched_nms(boxes[:0], scores[:0], labels[:0], 0.4)
    assert kept.tolist() == expected.tolist()
    assert none.tolist() == []
    assert box_ops.batched_nms is original


def test_lengths_are_rounded_up_to_whole_steps() -> None:
    assert [graphs.rounded_up(length, 32) for length in (1, 32, 33, 600)] == [32, 32, 64, 608]
