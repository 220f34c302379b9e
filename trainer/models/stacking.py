"""Stacks images of one size, in the memory layout that the networks take."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import default_collate


def stacked(images: Sequence[Tensor]) -> Tensor:
    """Stack images [3, h, w] to [B, 3, h, w], channels_last; in a loader's worker directly in shared memory.

    Images that already have this layout, as decoders produce it, are copied in whole rows.
    """
    batch: Tensor = default_collate([image.permute(1, 2, 0) for image in images])
    return batch.permute(0, 3, 1, 2)
