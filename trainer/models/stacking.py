"""Images of one size into one tensor, in the memory layout in which the networks take them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import default_collate


def stacked(images: Sequence[Tensor]) -> Tensor:
    """[3, h, w] each → [B, 3, h, w], channels_last; in a loader's worker in memory that is shared already.

    Images that lie so, as decoders give them, are copied in whole rows.
    """
    batch: Tensor = default_collate([image.permute(1, 2, 0) for image in images])
    return batch.permute(0, 3, 1, 2)
