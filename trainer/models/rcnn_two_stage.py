"""Faster R-CNN and Mask R-CNN: torchvision's networks, run for a batch with a few host waits in all.

The computation is that of torchvision's RegionProposalNetwork and RoIHeads, without a loop over the images
that waits for the number of boxes of each. Regions of an image are of a fixed number, filled up with empty
ones, until the sample of all images is put together: one wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import box_iou, roi_align
from torchvision.ops.poolers import LevelMapper

from trainer.models.rcnn_boxes import (
    Matcher,
    anchors_of,
    best,
    count_by,
    limits_of,
    numbers_of_images,
    sampled,
    suppressed,
)

_BETA = 1 / 9  # of torchvision's smooth L1 losses
_SMALLEST_SIDE = 1e-2  # of a detection, in pixels: torchvision's


class Regions(NamedTuple):
    """A fixed number of regions of each image.

    Attributes:
        boxes: xyxy in pixels [B, n, 4].
        are_valid: bool [B, n]; the others fill up.
    """

    boxes: Tensor
    are_valid: Tensor


class _Sample(NamedTuple):
    """The regions of all images that the second stage learns from, filled up to a fixed number.

    Attributes:
        boxes: xyxy in pixels [B, n, 4].
        labels: from 1, 0 for the background, int64 [B, n].
        objects: number of the image's object that each overlaps most, int64 [B, n].
        targets: that object's box [B, n, 4].
        are_valid: bool [B, n].
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    targets: Tensor
    are_valid: Tensor


class _ByLevel(NamedTuple):
    """Boxes in the order of the feature maps that they are pooled from.

    Attributes:
        order: numbers of boxes; those that are not pooled come last.
        counts: boxes on each level, int64 [levels].
    """

    order: Tensor
    counts: Tensor


class TwoStagePass:
    """A batch that the backbone and the first stage's head have seen."""

    def __init__(self, network: Any, images: Sequence[Tensor]) -> None:
        """
        Args:
            network: torchvision's FasterRCNN or MaskRCNN.
            images: values in [0, 1], float32 [3, h, w] each.
        """
        batch, _ = network.transform(list(images))
        self.rpn, self.heads = network.rpn, network.roi_heads
        self.images: Tensor = batch.tensors
        self._limits = limits_of(batch.image_sizes, self.images.device)
        self.features: dict[str, Tensor] = network.backbone(self.images)
        levels = list(self.features.values())
        scores, deltas = self.rpn.head(levels)
        self._level_sizes = [level[0].numel() for level in scores]
        scores, deltas = concat_box_prediction_layers(scores, deltas)
        self._scores: Tensor = scores.view(len(self.images), -1)
        self._deltas: Tensor = deltas.view(len(self.images), -1, 4)
        self._anchors = anchors_of(self.rpn.anchor_generator, self.images, levels)

    def detections(self) -> list[dict[str, Tensor]]:
        """What torchvision's network answers in eval mode, but masks as [n, 1, 28, 28]. Five waits."""
        heads, regions = self.heads, self._proposals("testing")
        flat, image_of = regions.boxes.flatten(0, 1), self._image_of(regions)
        levels = self._by_level(heads.box_roi_pool, flat, regions.are_valid.flatten())
        counts: list[int] = levels.counts.tolist()
        rows = levels.order[: sum(counts)]
        pooled = self._pooled(heads.box_roi_pool, flat[rows], image_of[rows], counts)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        rows, place = rows.sort()  # image by image again
        scores, image_of = logits[place].softmax(dim=-1)[:, 1:], image_of[rows]
        # decode leaves the boxes of no proposals in one row of numbers each.
        decoded = heads.box_coder.decode(deltas[place], [flat[rows]])
        boxes = decoded.reshape(len(rows), logits.shape[1], 4)[:, 1:]
        boxes = torch.minimum(boxes.clamp(min=0), self._limits[image_of][:, None])
        is_wide = (boxes[..., 2:] - boxes[..., :2] >= _SMALLEST_SIDE).all(dim=-1)
        row, label = ((scores > heads.score_thresh) & is_wide).nonzero(as_tuple=True)
        boxes, scores, image_of = boxes[row, label], scores[row, label], image_of[row]
        limits = {"iou": heads.nms_thresh, "most": heads.detections_per_img}
        order, counts_of_images = best(boxes, scores, label, image_of, len(self.images), **limits)
        found = {"boxes": boxes[order], "labels": label[order] + 1, "scores": scores[order]}
        if not heads.has_mask():
            sizes: list[int] = counts_of_images.tolist()
            return _split(found, sizes)
        is_chosen = torch.arange(len(order), device=order.device) < counts_of_images.sum()
        levels = self._by_level(heads.mask_roi_pool, found["boxes"], is_chosen)
        sizes, counts = _lists(counts_of_images, levels.counts)
        rows = levels.order[: sum(counts)]
        pooled = self._pooled(heads.mask_roi_pool, found["boxes"][rows], image_of[order][rows], counts)
        logits = heads.mask_predictor(heads.mask_head(pooled))
        labels = found["labels"][rows]
        masks = logits[torch.arange(len(labels), device=labels.device), labels].sigmoid()
        found = {name: values[: len(rows)] for name, values in found.items()}
        return _split({**found, "masks": masks[rows.argsort()][:, None]}, sizes)

    def losses(self, targets: Sequence[dict[str, Tensor]], class_weights: Tensor | None) -> dict[str, Tensor]:
        """torchvision's losses of a network in training. Two waits.

        Args:
            targets: boxes, labels and, for masks, masks of each image's objects, as torchvision takes them.
            class_weights: by which the classification loss of an object is multiplied, that of the
                background by 1.
        """
        boxes = _padded([target["boxes"] for target in targets])
        sample = self._sample(targets, boxes)
        return {**self._second_losses(targets, sample, class_weights), **self._first_losses(targets, boxes)}

    @staticmethod
    def _image_of(regions: Regions | _Sample) -> Tensor:
        return numbers_of_images(regions.boxes.shape[0], regions.boxes.shape[1], regions.boxes.device)

    @torch.no_grad()
    def _proposals(self, mode: Literal["training", "testing"]) -> Regions:
        """The first stage's regions, by descending score. One wait.

        Args:
            mode: with as many regions as torchvision takes there.
        """
        rpn, images = self.rpn, len(self.images)
        before, after = rpn._pre_nms_top_n[mode], rpn._post_nms_top_n[mode]
        chosen, levels, start = [], [], 0
        for level, scores in enumerate(self._scores.split_with_sizes(self._level_sizes, dim=1)):
            top = scores.topk(min(before, scores.shape[1]), dim=1).indices
            chosen.append(top + start)
            levels.append(torch.full_like(top, level))
            start += scores.shape[1]
        anchors = torch.cat(chosen, dim=1)
        scores = self._scores.gather(1, anchors).sigmoid()
        deltas = self._deltas.gather(1, anchors[..., None].expand(-1, -1, 4))
        boxes = rpn.box_coder.decode_single(deltas.flatten(0, 1), self._anchors[anchors.flatten()])
        boxes = torch.minimum(boxes.view(deltas.shape).clamp(min=0), self._limits[:, None])
        are_valid = (boxes[..., 2:] - boxes[..., :2] >= rpn.min_size).all(dim=-1) & (
            scores >= rpn.score_thresh
        )
        boxes = boxes.where(are_valid[..., None], 0.0)
        image_of = numbers_of_images(images, anchors.shape[1], anchors.device)
        categories = torch.cat(levels, dim=1).flatten()
        flat = boxes.flatten(0, 1)
        kept = suppressed(flat, scores.flatten(), categories, image_of, images, rpn.nms_thresh)
        # Each kept box gets the place of its rank in its image; those left out share one behind all others.
        after = min(after, anchors.shape[1])
        own = (image_of[kept, None] == torch.arange(images, device=kept.device)) & (
            are_valid.flatten()[kept, None]
        )
        rank = (own.cumsum(dim=0) - 1).gather(1, image_of[kept, None])[:, 0]
        is_left_out = (rank >= after) | ~are_valid.flatten()[kept]
        place = (image_of[kept] * after + rank).where(~is_left_out, images * after)
        placed = flat.new_zeros(images * after + 1, 4)
        placed[place] = flat[kept]
        counts = own.sum(dim=0)
        filled = torch.arange(after, device=kept.device) < counts[:, None]
        return Regions(placed[:-1].view(images, after, 4).where(filled[..., None], 0.0), filled)

    @torch.no_grad()
    def _sample(self, targets: Sequence[dict[str, Tensor]], boxes: Tensor) -> _Sample:
        """Draw the regions that the second stage learns from, objects themselves among them. One wait.

        Args:
            boxes: the objects' boxes, filled up with zeros [B, m, 4].
        """
        proposals, heads = self._proposals("training"), self.heads
        labels = _padded([target["labels"] for target in targets])
        counts = torch.tensor([len(target["labels"]) for target in targets], device=boxes.device)
        are_objects = torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None]
        candidates = torch.cat([proposals.boxes, boxes], dim=1)
        are_valid = torch.cat([proposals.are_valid, are_objects], dim=1)
        overlaps = [box_iou(*pair) for pair in zip(boxes, candidates, strict=True)]
        overlap, objects = torch.stack(overlaps).max(dim=1)
        is_object = overlap >= heads.proposal_matcher.high_threshold
        is_background = overlap < heads.proposal_matcher.low_threshold
        chosen, are_valid = sampled(is_object & are_valid, is_background & are_valid, heads.fg_bg_sampler)
        objects = objects.gather(1, chosen)
        corners = [each[..., None].expand(-1, -1, 4) for each in (chosen, objects)]
        return _Sample(
            candidates.gather(1, corners[0]),
            labels.gather(1, objects).where(is_object.gather(1, chosen), 0),
            objects,
            boxes.gather(1, corners[1]),
            are_valid,
        )

    def _first_losses(self, targets: Sequence[dict[str, Tensor]], boxes: Tensor) -> dict[str, Tensor]:
        """The losses of the region proposal network.

        Args:
            boxes: the objects' boxes, filled up with zeros [B, m, 4].
        """
        sampler = self.rpn.fg_bg_sampler
        matcher = Matcher.like(self.rpn.proposal_matcher)
        matches = torch.stack([matcher.matches(target["boxes"], self._anchors) for target in targets])
        chosen, are_valid = sampled(matches >= 0, matches == matcher.BELOW_LOW_THRESHOLD, sampler)
        count = are_valid.sum()
        matches = matches.gather(1, chosen)
        is_object = matches >= 0
        scores = F.binary_cross_entropy_with_logits(
            self._scores.gather(1, chosen), is_object.float(), reduction="none"
        )
        # Objects come first in the sample.
        most = min(int(sampler.batch_size_per_image * sampler.positive_fraction), chosen.shape[1])
        chosen, is_object = chosen[:, :most], (is_object & are_valid)[:, :most, None]
        anchors = self._anchors[chosen]
        own = boxes.gather(1, matches[:, :most, None].clamp(min=0).expand(-1, -1, 4))
        encoded = self.rpn.box_coder.encode_single(
            own.where(is_object, anchors).flatten(0, 1), anchors.flatten(0, 1)
        )
        deltas = self._deltas.gather(1, chosen[..., None].expand(-1, -1, 4))
        distances = F.smooth_l1_loss(deltas, encoded.view(deltas.shape), beta=_BETA, reduction="none")
        return {
            "loss_objectness": scores.where(are_valid, 0.0).sum() / count,
            "loss_rpn_box_reg": distances.where(is_object, 0.0).sum() / count,
        }

    def _second_losses(
        self, targets: Sequence[dict[str, Tensor]], sample: _Sample, class_weights: Tensor | None
    ) -> dict[str, Tensor]:
        heads = self.heads
        flat, image_of = sample.boxes.flatten(0, 1), self._image_of(sample)
        is_object = sample.are_valid & (sample.labels > 0)
        levels = self._by_level(heads.box_roi_pool, flat, sample.are_valid.flatten())
        if heads.has_mask():
            of_masks = self._by_level(heads.mask_roi_pool, flat, is_object.flatten())
            counts, mask_counts, objects = _lists(levels.counts, of_masks.counts, is_object.sum(dim=1))
        else:
            (counts,) = _lists(levels.counts)
        rows = levels.order[: sum(counts)]
        pooled = self._pooled(heads.box_roi_pool, flat[rows], image_of[rows], counts)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        labels = sample.labels.flatten()[rows]
        encoded = heads.box_coder.encode_single(
            sample.targets.flatten(0, 1)[rows].where(labels[:, None] > 0, flat[rows]), flat[rows]
        )
        own = deltas.view(len(rows), logits.shape[1], 4)[torch.arange(len(rows), device=rows.device), labels]
        distances = F.smooth_l1_loss(own, encoded, beta=_BETA, reduction="none")
        losses = {
            "loss_classifier": _weighted_cross_entropy(logits, labels, class_weights),
            "loss_box_reg": distances.where(labels[:, None] > 0, 0.0).sum() / max(len(rows), 1),
        }
        if heads.has_mask():
            rows = of_masks.order[: sum(mask_counts)]
            pooled = self._pooled(heads.mask_roi_pool, flat[rows], image_of[rows], mask_counts)
            logits = heads.mask_predictor(heads.mask_head(pooled))
            losses["loss_mask"] = _mask_loss(logits, targets, sample, rows, objects)
        return losses

    def _by_level(self, pooler: Any, boxes: Tensor, are_pooled: Tensor) -> _ByLevel:
        """Sort boxes by the feature map that a region of their size is pooled from.

        Args:
            boxes: [n, 4].
            are_pooled: bool [n].
        """
        scales = [scale for _, scale in self._levels(pooler)]
        first, last = (-round(math.log2(scale)) for scale in (scales[0], scales[-1]))
        mapper = LevelMapper(first, last, pooler.canonical_scale, pooler.canonical_level)
        levels = mapper([boxes]).where(are_pooled, len(scales))
        return _ByLevel(levels.argsort(stable=True), count_by(levels, len(scales)))

    def _levels(self, pooler: Any) -> list[tuple[Tensor, float]]:
        """The feature maps that a MultiScaleRoIAlign takes, and their scales, powers of 2 below 1."""
        return [
            (level, 2.0 ** round(math.log2(level.shape[-2] / self.images.shape[-2])))
            for name, level in self.features.items()
            if name in pooler.featmap_names
        ]

    def _pooled(self, pooler: Any, boxes: Tensor, image_of: Tensor, counts: Sequence[int]) -> Tensor:
        """The features [n, channels, size, size] of boxes [n, 4] that are sorted by level.

        Args:
            image_of: the boxes' images, int64 [n].
            counts: boxes on each level.
        """
        regions = torch.cat([image_of[:, None].to(boxes), boxes], dim=1).split_with_sizes(list(counts))
        return torch.cat(
            [
                roi_align(level, rois, pooler.output_size, scale, pooler.sampling_ratio)
                for (level, scale), rois in zip(self._levels(pooler), regions, strict=True)
            ]
        )


def _padded(of_images: Sequence[Tensor]) -> Tensor:
    """Images' tensors of different lengths in one, filled up with at least one zero: [B, most + 1, …]."""
    padded = pad_sequence(list(of_images), batch_first=True)
    return torch.cat([padded, padded.new_zeros(len(padded), 1, *padded.shape[2:])], dim=1)


def _lists(*tensors: Tensor) -> list[list[int]]:
    """Several short tensors of integers as lists, in one copy."""
    numbers: list[int] = torch.cat(tensors).tolist()
    lists, start = [], 0
    for tensor in tensors:
        lists.append(numbers[start : start + len(tensor)])
        start += len(tensor)
    return lists


def _split(found: dict[str, Tensor], counts: list[int]) -> list[dict[str, Tensor]]:
    """Detections of all images, image by image → those of each."""
    by_image = [values[: sum(counts)].split_with_sizes(counts) for values in found.values()]
    return [dict(zip(found, values, strict=True)) for values in zip(*by_image, strict=True)]


def _weighted_cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """The mean over regions, 0 if there are none.

    torch would divide by the weights' sum, and so level batches of rare classes.
    """
    weights = None if class_weights is None else F.pad(class_weights, (1, 0), value=1.0)
    return F.cross_entropy(logits, labels, weights, reduction="sum") / max(len(labels), 1)


def _mask_loss(
    logits: Tensor,
    targets: Sequence[dict[str, Tensor]],
    sample: _Sample,
    rows: Tensor,
    counts: Sequence[int],
) -> Tensor:
    """The loss of the masks of regions with an object.

    Args:
        logits: [n, C, m, m].
        rows: the regions' numbers in the sample, in the order of the logits, [n].
        counts: regions with an object in each image.
    """
    if not len(rows):
        return logits.sum() * 0  # all parameters have gradients
    order, place = rows.sort()  # image by image
    boxes, objects = sample.boxes.flatten(0, 1)[order], sample.objects.flatten()[order]
    parts = zip(
        targets, boxes.split_with_sizes(list(counts)), objects.split_with_sizes(list(counts)), strict=True
    )
    masks = torch.cat(
        [
            project_masks_on_boxes(target["masks"], *regions, logits.shape[-1])
            for target, *regions in parts
            if len(regions[0])
        ]
    )
    labels = sample.labels.flatten()[order]
    return F.binary_cross_entropy_with_logits(logits[place, labels], masks)
