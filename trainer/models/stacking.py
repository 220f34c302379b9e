"""Images of one size into one tensor, in the memory layout that they have."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import default_collate


def stacked(images: Sequence[Tensor]) -> Tensor:
    """[3, h, w] each → [B, 3, h, w]; in a loader's worker in memory that the training's process shares.

    Images whose colours lie side by side stay so: putting them apart takes longer than to flip them, and the
    networks would have them as they were (channels_last).
    """
    batch: Tensor
    if images[0].is_contiguous():
        batch = default_collate(list(images))
        return batch
    batch = default_collate([image.permute(1, 2, 0) for image in images])
    return batch.permute(0, 3, 1, 2)
