"""Anchors, matches, samples and suppression of boxes for all images of a batch at once, with few host waits.

torchvision takes images one by one, and asks the GPU for a number of boxes at every step. Here the number of
boxes is fixed, or asked for once a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher as LibraryMatcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import boxes as box_ops

_MOST_AT_ONCE = 25_000
"""Boxes in one call of NMS, which compares all pairs. From there on torchvision takes classes one by one."""


class Best(NamedTuple):
    """The best boxes of each image.

    Attributes:
        order: numbers of boxes, image by image and by descending score; those that are left out come last.
        counts: boxes of each image, int64 [images].
    """

    order: Tensor
    counts: Tensor


class Matcher(LibraryMatcher):
    """torchvision's Matcher without a wait for the number of an object's best anchors."""

    @classmethod
    def like(cls, other: Any) -> Matcher:
        """A matcher with the thresholds of torchvision's."""
        return cls(other.high_threshold, other.low_threshold, other.allow_low_quality_matches)

    def matches(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Match each anchor with an object of an image, or with a negative number: int64 [anchors].

        Args:
            boxes: the objects', xyxy [n, 4].
            anchors: xyxy [anchors, 4].
        """
        if not len(boxes):
            return torch.full((len(anchors),), self.BELOW_LOW_THRESHOLD, device=anchors.device)
        matches: Tensor = self(box_ops.box_iou(boxes, anchors))
        return matches

    def set_low_quality_matches_(
        self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor
    ) -> None:
        """Match the anchors that overlap an object most, however little that is.

        Args:
            matches: int64 [anchors]; changed in place.
            all_matches: each anchor's best object, int64 [anchors].
            match_quality_matrix: IoU [objects, anchors].
        """
        highest = match_quality_matrix.amax(dim=1, keepdim=True)
        is_best = (match_quality_matrix == highest).any(dim=0)
        matches.copy_(torch.where(is_best, all_matches, matches))


def anchors_of(generator: Any, images: Tensor, features: Sequence[Tensor]) -> Tensor:
    """The anchors of one image of a batch, the same for all of them: xyxy in pixels, float32 [anchors, 4].

    Args:
        generator: torchvision's AnchorGenerator.
        images: [B, 3, h, w].
        features: the feature maps, by increasing stride.
    """
    grids = tuple((level.shape[-2], level.shape[-1]) for level in features)
    size = (images.shape[-2], images.shape[-1])
    return _anchors(generator.sizes, generator.aspect_ratios, grids, size, images.device)


@lru_cache(maxsize=16)
def _anchors(
    sizes: Any, ratios: Any, grids: tuple[tuple[int, int], ...], size: tuple[int, int], device: torch.device
) -> Tensor:
    with torch.inference_mode(False):  # training takes them, too
        maps = [torch.empty(1, 0, *grid, device=device) for grid in grids]
        images = ImageList(torch.empty(1, 0, *size, device=device), [size])
        anchors: Tensor
        (anchors,) = AnchorGenerator(sizes, ratios)(images, maps)
        return anchors


def limits_of(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Width, height, width, height of images of (height, width): float32 [B, 4]."""
    corners = [(width, height, width, height) for height, width in sizes]
    return torch.tensor(corners, dtype=torch.float32, device=device)


def numbers_of_images(images: int, boxes: int, device: torch.device) -> Tensor:
    """The image of each of B × n boxes, which lie image by image: int64 [B · n]."""
    return torch.arange(images, device=device)[:, None].expand(images, boxes).flatten()


def count_by(numbers: Tensor, kinds: int) -> Tensor:
    """How often each number below `kinds` occurs, int64 [kinds]."""
    return (numbers[:, None] == torch.arange(kinds, device=numbers.device)).sum(dim=0)


def sampled(is_object: Tensor, is_background: Tensor, sampler: Any) -> tuple[Tensor, Tensor]:
    """Draw as torchvision's BalancedPositiveNegativeSampler does, without a wait.

    Of each image, up to a fraction of the sample are objects; the background fills it up.

    Args:
        is_object: bool [B, n].
        is_background: bool [B, n].
        sampler: torchvision's, for its numbers.

    Returns:
        Numbers of the drawn, objects first, int64 [B, size of the sample], and whether each is one: there may
        be too few to draw from.
    """
    size = min(sampler.batch_size_per_image, is_object.shape[1])
    most = min(int(sampler.batch_size_per_image * sampler.positive_fraction), size)
    keys = torch.rand(is_object.shape, device=is_object.device)
    top, drawn = keys.where(is_object, -1.0).topk(most, dim=1)
    are_objects = torch.zeros_like(is_object).scatter(1, drawn, top >= 0)
    keys = (keys + 1).where(are_objects, keys.where(is_background, -1.0))
    top, drawn = keys.topk(size, dim=1)
    return drawn, top >= 0


def suppressed(
    boxes: Tensor, scores: Tensor, categories: Tensor, image_of: Tensor, images: int, iou: float
) -> Tensor:
    """The boxes that NMS keeps in each image and category, by descending score within each image. One wait.

    Args:
        boxes: xyxy [n, 4]. An empty one, of zeros, is kept and suppresses none.
        scores: [n].
        categories: int64 [n].
        image_of: each box's image, from 0 and ascending, int64 [n].
        iou: from which the box with the lower score is dropped.

    Returns:
        Numbers of boxes, int64 [kept].
    """
    categories = categories * images + image_of
    if len(boxes) <= _MOST_AT_ONCE:
        return _nms(boxes, scores, categories, iou)
    kept = []
    for part in _groups(count_by(image_of, images).tolist()):
        kept.append(_nms(boxes[part], scores[part], categories[part], iou) + part.start)
    return torch.cat(kept)


def _nms(boxes: Tensor, scores: Tensor, categories: Tensor, iou: float) -> Tensor:
    kept: Tensor = box_ops.batched_nms(boxes, scores, categories, iou)
    return kept


def _groups(counts: Sequence[int]) -> Iterator[slice]:
    """Successive images' boxes, as many images together as one call of NMS takes."""
    start = stop = 0
    for count in counts:
        if stop > start and stop + count - start > _MOST_AT_ONCE:
            yield slice(start, stop)
            start = stop
        stop += count
    yield slice(start, stop)


def best(
    boxes: Tensor,
    scores: Tensor,
    categories: Tensor,
    image_of: Tensor,
    images: int,
    *,
    iou: float,
    most: int,
) -> Best:
    """The boxes of each image after NMS, at most `most`. Arguments as for `suppressed`; one wait."""
    kept = suppressed(boxes, scores, categories, image_of, images, iou)
    kept = kept[image_of[kept].sort(stable=True).indices]
    own = image_of[kept]
    counts = count_by(own, images)
    rank = torch.arange(len(kept), device=kept.device) - (counts.cumsum(dim=0) - counts)[own]
    is_left_out = (rank >= most).to(torch.uint8)
    return Best(kept[is_left_out.argsort(stable=True)], counts.clamp(max=most))
