"""Tensors as several families need them: stretched, resized and stacked images, and float32 outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from trainer.annotations import Detections, Image, Mask
from trainer.models.geometry import Geometry
from trainer.models.training_items import Batch


def stretched(image: Image, side: int) -> tuple[Tensor, Geometry]:
    """Stretch an image to a square of `side` pixels: float32 [3, side, side] in [0, 1]."""
    import cv2  # may be missing where a packaged classifier is served

    height, width = image.shape[:2]
    resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
    geometry = Geometry((height, width), (side, side), (side / width, side / height))
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous().float() / 255, geometry


def rescaled(batch: Batch) -> Tensor:
    """A batch's "images", resized to squares of the "shared" `size` that multi_scale drew, if it did."""
    images: Tensor = batch["images"]
    if size := batch.get("shared", {}).get("size"):
        return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return images


def stacked(images: Sequence[Tensor]) -> Tensor:
    """Stack images [3, h, w] to [B, 3, h, w], channels_last; in a loader's worker directly in shared memory.

    Images that already have this layout, as decoders produce it, are copied in whole rows.
    """
    batch: Tensor = default_collate([image.permute(1, 2, 0) for image in images])
    return batch.permute(0, 3, 1, 2)


def as_pixels(image: Tensor) -> Image:
    """An image [3, h, w], uint8 or float in [0, 1], as people see it: uint8 [h, w, 3]."""
    if image.is_floating_point():
        image = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def as_detections(boxes: Tensor, labels: Tensor, image: Image, masks: Tensor | None = None) -> Detections:
    """The targets of an image in the form of detections with a score of 1.

    Args:
        boxes: normalised xyxy, [n, 4].
        labels: [n].
        masks: [n, h, w] over the whole image, of any resolution.
    """
    size = (image.shape[0], image.shape[1])
    whole = None
    if masks is not None:
        wide = F.interpolate(masks[None].float(), size=size, mode="nearest")[0] > 0.5
        whole = tuple(Mask(0, 0, mask.numpy()) for mask in wide)
    corners = boxes.float().clamp(0, 1).numpy().reshape(-1, 4)
    ones = np.ones(len(corners), dtype=np.float32)
    return Detections(corners, labels.long().numpy().reshape(-1), ones, size, whole)


def as_float32(nested: Any) -> Any:
    """Convert the tensors in nested dicts, lists and tuples to float32; the structure stays the same."""
    if isinstance(nested, Tensor):
        return nested.float()
    if isinstance(nested, dict):
        return type(nested)((key, as_float32(value)) for key, value in nested.items())
    return type(nested)(as_float32(value) for value in nested)
