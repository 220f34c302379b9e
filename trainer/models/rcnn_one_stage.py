"""RetinaNet and FCOS: torchvision's networks, with losses and detections of a batch in a few host waits.

torchvision's own losses and detections are computed image by image and level by level, and wait for the GPU
at each to know how many anchors are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.ops import sigmoid_focal_loss

from trainer.models.family import with_attributes
from trainer.models.rcnn_boxes import Matcher, anchors_of, best, limits_of, numbers_of_images

_EPSILON = 1e-7  # torchvision's
_Losses = Callable[..., dict[str, Tensor]]


class OneStagePass:
    """A batch that the network has seen."""

    def __init__(self, network: Any, images: Sequence[Tensor]) -> None:
        """
        Args:
            network: torchvision's RetinaNet or FCOS.
            images: values in [0, 1], float32 [3, h, w] each.
        """
        batch, _ = network.transform(list(images))
        levels = list(network.backbone(batch.tensors).values())
        self.network = network
        self.sizes: list[tuple[int, int]] = batch.image_sizes
        self.outputs: dict[str, Tensor] = network.head(levels)
        self._anchors = anchors_of(network.anchor_generator, batch.tensors, levels)
        cells = [level.shape[2] * level.shape[3] for level in levels]
        self._level_sizes = [count * (len(self._anchors) // sum(cells)) for count in cells]

    def detections(self) -> list[dict[str, Tensor]]:
        """What torchvision's network answers in eval mode. On a GPU three waits."""
        if self._anchors.device.type != "cpu":
            return self._detections_of_batch()
        levels = {
            name: list(each.split_with_sizes(self._level_sizes, dim=1)) for name, each in self.outputs.items()
        }
        anchors = [list(self._anchors.split_with_sizes(self._level_sizes))] * len(self.sizes)
        detections: list[dict[str, Tensor]]
        detections = self.network.postprocess_detections(levels, anchors, self.sizes)
        return detections

    def losses(self, targets: Sequence[dict[str, Tensor]], class_weights: Tensor | None) -> dict[str, Tensor]:
        """torchvision's losses. One wait.

        Args:
            targets: boxes and labels of each image's objects, as torchvision takes them.
            class_weights: by which the classification loss of an object is multiplied.
        """
        network, is_fcos = self.network, isinstance(self.network, FCOS)
        compute: _Losses = _fcos_losses if is_fcos else _retinanet_losses
        # torchvision's compute_loss matches anchors with objects, and gives the matches to its head.
        replaced: dict[str, Any] = {
            "head": SimpleNamespace(compute_loss=partial(compute, network, class_weights)),
            **({} if is_fcos else {"proposal_matcher": Matcher.like(network.proposal_matcher)}),
        }
        library: Any = with_attributes(network, "", **replaced)
        levels = {"num_anchors_per_level": self._level_sizes} if is_fcos else {}
        losses: dict[str, Tensor]
        losses = library.compute_loss(targets, self.outputs, [self._anchors] * len(targets), **levels)
        return losses

    def _detections_of_batch(self) -> list[dict[str, Tensor]]:
        """The same detections, computed for all images at once."""
        images, network = len(self.sizes), self.network
        candidates = [
            self._candidates(anchors, *level)
            for anchors, *level in zip(
                self._anchors.split_with_sizes(self._level_sizes),
                self._scores().split_with_sizes(self._level_sizes, dim=1),
                self.outputs["bbox_regression"].split_with_sizes(self._level_sizes, dim=1),
                strict=True,
            )
        ]
        boxes, scores, labels = (torch.cat(each, dim=1) for each in zip(*candidates, strict=True))
        limits = limits_of(self.sizes, boxes.device)[:, None]
        boxes = torch.minimum(boxes.clamp(min=0), limits).flatten(0, 1)
        image_of = numbers_of_images(images, scores.shape[1], boxes.device)
        scores, labels = scores.flatten(), labels.flatten()
        (rows,) = (scores > network.score_thresh).nonzero(as_tuple=True)
        boxes, scores, labels, image_of = boxes[rows], scores[rows], labels[rows], image_of[rows]
        order, counts = best(
            boxes, scores, labels, image_of, images, iou=network.nms_thresh, most=network.detections_per_img
        )
        sizes: list[int] = counts.tolist()
        parts = order[: sum(sizes)].split_with_sizes(sizes)
        return [{"boxes": boxes[part], "scores": scores[part], "labels": labels[part]} for part in parts]

    def _scores(self) -> Tensor:
        """Each anchor's score in each class, [B, anchors, C]."""
        scores = self.outputs["cls_logits"].sigmoid()
        if isinstance(self.network, FCOS):
            return (scores * self.outputs["bbox_ctrness"].sigmoid()).sqrt()
        return scores

    def _candidates(self, anchors: Tensor, scores: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best boxes of a level, their scores, 0 at or below the threshold, and labels: [B, n, …].

        Args:
            anchors: [anchors, 4].
            scores: [B, anchors, C].
            deltas: the regression, [B, anchors, 4].
        """
        classes = scores.shape[2]
        count = min(self.network.topk_candidates, scores.shape[1] * classes)
        top, place = scores.flatten(1).topk(count, dim=1)
        anchor, label = place // classes, place % classes
        chosen = deltas.gather(1, anchor[..., None].expand(-1, -1, 4)).flatten(0, 1)
        coder, own = self.network.box_coder, anchors[anchor.flatten()]
        boxes = (
            coder.decode(chosen, own) if isinstance(self.network, FCOS) else coder.decode_single(chosen, own)
        )
        return boxes.view(len(scores), count, 4), top, label


def _retinanet_losses(
    network: Any,
    class_weights: Tensor | None,
    targets: Sequence[dict[str, Tensor]],
    outputs: dict[str, Tensor],
    anchors: Sequence[Tensor],
    matches: Sequence[Tensor],
) -> dict[str, Tensor]:
    """What torchvision's RetinaNetHead.compute_loss returns.

    Args:
        class_weights: by which the classification loss of an object is multiplied.
        matches: each anchor's object, −1 for none, −2 if it is ignored; int64 [anchors] for each image.
    """
    by_image = torch.stack(list(matches))
    counts = (by_image >= 0).sum(dim=1).clamp(min=1)
    image, anchor, boxes, labels = _matched(targets, by_image)
    focal = _focal(outputs["cls_logits"], image, anchor, labels)
    is_counted = by_image != network.proposal_matcher.BETWEEN_THRESHOLDS
    summed = focal.sum(dim=2).where(is_counted, 0.0).sum(dim=1)
    if class_weights is not None:
        summed = summed.index_add(0, image, (class_weights[labels] - 1) * focal[image, anchor, labels])
    head = network.head.regression_head
    deltas, own = outputs["bbox_regression"][image, anchor], anchors[0][anchor]
    if head._loss_type == "l1":
        distances = (deltas - head.box_coder.encode_single(boxes, own)).abs().sum(dim=1)
    else:
        distances = _giou_losses(head.box_coder.decode_single(deltas, own), boxes)
    return {
        "classification": (summed / counts).mean(),
        "bbox_regression": (distances / counts[image]).sum() / len(targets),
    }


def _fcos_losses(
    network: Any,
    class_weights: Tensor | None,
    targets: Sequence[dict[str, Tensor]],
    outputs: dict[str, Tensor],
    anchors: Sequence[Tensor],
    matches: Sequence[Tensor],
) -> dict[str, Tensor]:
    """What torchvision's FCOSHead.compute_loss returns. Arguments as for `_retinanet_losses`."""
    coder = network.head.box_coder
    image, anchor, boxes, labels = _matched(targets, torch.stack(list(matches)))
    count = max(1, len(labels))
    focal = _focal(outputs["cls_logits"], image, anchor, labels)
    summed = focal.sum()
    if class_weights is not None:
        summed = summed + ((class_weights[labels] - 1) * focal[image, anchor, labels]).sum()
    own = anchors[0][anchor]
    decoded = coder.decode(outputs["bbox_regression"][image, anchor], own)
    sides = coder.encode(own, boxes)
    ratios = [pair.amin(dim=1) / pair.amax(dim=1) for pair in (sides[:, 0::2], sides[:, 1::2])]
    centredness = F.binary_cross_entropy_with_logits(
        outputs["bbox_ctrness"][image, anchor, 0], (ratios[0] * ratios[1]).sqrt(), reduction="sum"
    )
    return {
        "classification": summed / count,
        "bbox_regression": _giou_losses(decoded, boxes).sum() / count,
        "bbox_ctrness": centredness / count,
    }


def _matched(targets: Sequence[dict[str, Tensor]], matches: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The anchors with an object: their images, numbers, and their objects' boxes and labels. One wait.

    Args:
        matches: each anchor's object, below 0 for none, int64 [B, anchors].
    """
    image, anchor = (matches >= 0).nonzero(as_tuple=True)
    counts = torch.tensor([len(target["labels"]) for target in targets], device=matches.device)
    objects = matches[image, anchor] + (counts.cumsum(dim=0) - counts)[image]
    boxes, labels = (torch.cat([target[name] for target in targets])[objects] for name in ("boxes", "labels"))
    return image, anchor, boxes, labels


def _giou_losses(one: Tensor, other: Tensor) -> Tensor:
    """torchvision's generalized_box_iou_loss of pairs of boxes, xyxy [n, 4], without its waits: [n]."""
    inner = (torch.minimum(one, other)[:, 2:] - torch.maximum(one, other)[:, :2]).clamp(min=0)
    outer = torch.maximum(one, other)[:, 2:] - torch.minimum(one, other)[:, :2]
    overlap, enclosing = (sides[:, 0] * sides[:, 1] for sides in (inner, outer))
    areas = [(box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (one, other)]
    union = areas[0] + areas[1] - overlap
    return 1 - overlap / (union + _EPSILON) + (enclosing - union) / (enclosing + _EPSILON)


def _focal(logits: Tensor, image: Tensor, anchor: Tensor, labels: Tensor) -> Tensor:
    """The focal loss of each anchor in each class, [B, anchors, C]; the arguments say which are objects."""
    expected = torch.zeros_like(logits)
    expected[image, anchor, labels] = 1.0
    focal: Tensor = sigmoid_focal_loss(logits, expected)
    return focal
