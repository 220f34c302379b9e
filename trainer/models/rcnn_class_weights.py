"""torchvision's detection heads with a weight for each class in their classification losses.

torchvision's losses take no weights. These subclasses add to a loss what weights change, and add no state:
`weighing_objects` turns the heads of a network that is built into them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import sigmoid_focal_loss

from trainer.models.family import with_attributes


def accept_weights(network: nn.Module) -> None:
    """Let a network's classification loss take the weights that `weighing_objects` gives it."""
    for module in network.modules():
        if (kind := _KINDS.get(type(module))) is not None:
            module.__class__ = kind


def weighing_objects(network: nn.Module, weights: Tensor | None) -> nn.Module:
    """The same network, whose classification loss multiplies the loss of an object by its class's weight.

    Args:
        network: one for which `accept_weights` was called.
        weights: float32 [C], on the network's device; None for ones.
    """
    if weights is None:
        return network
    (path,) = (name for name, module in network.named_modules() if type(module) in _KINDS.values())
    return with_attributes(network, path, weights=weights)


class _Heads(RoIHeads):
    """The second stage of Faster R-CNN and Mask R-CNN. Regions of the background weigh 1."""

    weights: Tensor | None = None

    def select_training_samples(self, *arguments: Any) -> Any:
        samples = super().select_training_samples(*arguments)
        if self.weights is not None:
            self._labels = torch.cat(samples[2])
        return samples

    def forward(self, *arguments: Any) -> Any:
        """Do what torchvision does; in training with weights, compute its cross entropy again."""
        if self.weights is None:
            return super().forward(*arguments)
        logits: list[Tensor] = []
        with self.box_predictor.register_forward_hook(lambda *call: logits.append(call[-1][0])):
            detections, losses = super().forward(*arguments)
        weights = F.pad(self.weights, (1, 0), value=1.0)
        # torch would divide by the sum of the weights of a batch, and so level batches of rare classes.
        summed = F.cross_entropy(logits[0], self._labels, weights, reduction="sum")
        return detections, {**losses, "loss_classifier": summed / len(self._labels)}


class _RetinaNetHead(RetinaNetClassificationHead):
    weights: Tensor | None = None

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], matched_idxs: list[Tensor]
    ) -> Tensor:
        """torchvision's loss, which divides each image's by its number of anchors with an object."""
        loss: Tensor = super().compute_loss(targets, head_outputs, matched_idxs)
        if self.weights is None:
            return loss
        added = _added(self.weights, targets, head_outputs["cls_logits"], matched_idxs)
        return loss + torch.stack([more / count for more, count in added]).mean()


class _FCOSHead(FCOSHead):
    weights: Tensor | None = None

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """torchvision's losses, which divide by the number of anchors with an object in the whole batch."""
        losses: dict[str, Tensor] = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        if self.weights is None:
            return losses
        added = _added(self.weights, targets, head_outputs["cls_logits"], matched_idxs)
        objects = torch.cat(matched_idxs).ge(0).sum().clamp(min=1)
        more = torch.stack([more for more, _ in added]).sum() / objects
        return {**losses, "classification": losses["classification"] + more}


_KINDS: dict[type, type] = {
    RoIHeads: _Heads,
    RetinaNetClassificationHead: _RetinaNetHead,
    FCOSHead: _FCOSHead,
}


def _added(
    weights: Tensor, targets: Sequence[dict[str, Tensor]], logits: Tensor, matches: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """What weights add to each image's summed focal loss, and its number of anchors with an object, from 1.

    Args:
        logits: [B, anchors, C].
        matches: each anchor's object, or below 0 for none; int64 [anchors] for each image.
    """
    added = []
    for target, image_logits, image_matches in zip(targets, logits, matches, strict=True):
        is_object = image_matches >= 0
        labels = target["labels"][image_matches[is_object]]
        own = image_logits[is_object, labels]
        focal = sigmoid_focal_loss(own, torch.ones_like(own))
        added.append((((weights[labels] - 1) * focal).sum(), is_object.sum().clamp(min=1)))
    return added
