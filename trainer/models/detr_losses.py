"""The training losses of `transformers`' DETRs, by name, with a weight for each class.

The library's loss functions create their criterion themselves. To pass them one with class weights, a copy of
the function is called whose globals have a derived class under the criterion's name. Nothing in the library
changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou
from transformers.loss.loss_d_fine import DFineLoss
from transformers.loss.loss_deformable_detr import DeformableDetrImageLoss
from transformers.loss.loss_deimv2 import Deimv2Loss
from transformers.loss.loss_for_object_detection import ImageLoss
from transformers.loss.loss_lw_detr import LwDetrImageLoss
from transformers.loss.loss_rf_detr import RfDetrImageLoss
from transformers.loss.loss_rt_detr import RTDetrLoss

from trainer.models.detr_networks import has_proposals
from trainer.models.family import in_float32
from trainer.models.transfers import without_waits

_NAMES = {
    "loss_ce": "class_loss",
    "loss_vfl": "class_loss",
    "loss_mal": "class_loss",
    "loss_bbox": "box_loss",
    "loss_giou": "giou_loss",
    "loss_fgl": "corner_loss",
    "loss_ddf": "distillation_loss",
    "loss_mask_ce": "mask_loss",
    "loss_mask_dice": "dice_loss",
}
"""The library's names of its losses → ours. Its other values are for information only."""

_FACTORS = {
    "loss_ce": "class_loss_coefficient",
    "loss_bbox": "bbox_loss_coefficient",
    "loss_giou": "giou_loss_coefficient",
    "loss_mask_ce": "mask_class_loss_coefficient",
    "loss_mask_dice": "mask_dice_loss_coefficient",
}
"""The configuration's name for the factor of each loss that the library's dictionary holds without it."""


def _bound(function: Any, **names: Any) -> FunctionType:
    """Copy a function, with other objects under some of its global names."""
    found: Any = FunctionType(
        function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__
    )
    found.__kwdefaults__ = function.__kwdefaults__
    made: FunctionType = found
    return made


_ALONE: Mapping[str, Any] = {
    "_is_torch_distributed_initialized": lambda: False,
    "is_accelerate_available": lambda: False,
}
"""Globals for the `forward` of criteria, which would divide by the mean number of objects of all ranks.

They would wait for a rank that has no batch.
"""

_Pairs = list[tuple[Tensor, Tensor]]


class _Objects:
    """The matched pairs of query and object in one layer, as the class losses see them.

    Attributes:
        rows: the logits of all classes, [n, C].
        logits: of each object's own class, [n].
        labels: [n].
        overlaps: IoU of the predicted with the object's box, [n].
    """

    def __init__(self, outputs: Any, targets: Any, indices: _Pairs) -> None:
        images = torch.cat([torch.full_like(queries, index) for index, (queries, _) in enumerate(indices)])
        place = images, torch.cat([queries for queries, _ in indices])
        self.labels, boxes = (
            torch.cat([target[name][order] for target, (_, order) in zip(targets, indices, strict=True)])
            for name in ("class_labels", "boxes")
        )
        self.rows = outputs["logits"][place]
        self.logits = self.rows.gather(1, self.labels[:, None])[:, 0]
        corners = (
            box_convert(each.detach(), "cxcywh", "xyxy") for each in (outputs["pred_boxes"][place], boxes)
        )
        self.overlaps = box_iou(*corners).diagonal()


class _Weighted:
    """A criterion that multiplies the class loss of a query with an object by the weight of its class.

    Attributes:
        weights: float32 [C], or None for ones.
    """

    weights: Tensor | None = None

    def _added(self, name: str, losses: dict[str, Tensor], *matched: Any) -> dict[str, Tensor]:
        """The library's losses; the class loss with what the weights add to it."""
        if self.weights is None:
            return losses
        outputs, targets, indices, divisor = matched[:4]
        objects = _Objects(outputs, targets, indices)
        added = ((self.weights[objects.labels] - 1) * self.of_objects(objects)).sum() / divisor
        return {**losses, name: losses[name] + added}

    def of_objects(self, objects: _Objects) -> Tensor:
        """Each object's part of the library's class loss before it is divided, [n]."""
        raise NotImplementedError


class _Varifocal(_Weighted):
    """t·BCE(p, t), where t is the IoU."""

    def of_objects(self, objects: _Objects) -> Tensor:
        t: Tensor = objects.overlaps
        return t * F.binary_cross_entropy_with_logits(objects.logits, t, reduction="none")

    def loss_labels_vfl(self, *arguments: Any, **options: Any) -> dict[str, Tensor]:
        library: Any = super()
        return self._added("loss_vfl", library.loss_labels_vfl(*arguments, **options), *arguments)


class _RTDetr(_Varifocal, RTDetrLoss):
    pass


class _DFine(_Varifocal, DFineLoss):
    pass


class _Deimv2(_Weighted, Deimv2Loss):
    """BCE(p, t), where t is a power of the IoU."""

    def of_objects(self, objects: _Objects) -> Tensor:
        t = objects.overlaps**self.gamma
        return F.binary_cross_entropy_with_logits(objects.logits, t, reduction="none")

    def loss_labels_mal(self, *arguments: Any, **options: Any) -> dict[str, Tensor]:
        return self._added("loss_mal", super().loss_labels_mal(*arguments, **options), *arguments)


class _LwDetr(_Weighted, LwDetrImageLoss):
    """BCE(p, t) with t = p^α·IoU^(1 − α), at least .01, which counts as a constant."""

    forward = _bound(LwDetrImageLoss.forward, **_ALONE)

    def of_objects(self, objects: _Objects) -> Tensor:
        alpha = self.focal_alpha
        quality = objects.logits.sigmoid() ** alpha * objects.overlaps ** (1 - alpha)
        t = quality.clamp(min=0.01).detach()
        return F.binary_cross_entropy_with_logits(objects.logits, t, reduction="none")

    def loss_labels(self, *arguments: Any, **options: Any) -> dict[str, Tensor]:
        return self._added("loss_ce", super().loss_labels(*arguments, **options), *arguments)


class _RfDetr(_LwDetr, RfDetrImageLoss):
    """LW-DETR's class loss, and masks."""

    forward = _bound(RfDetrImageLoss.forward, **_ALONE)


class _Deformable(_Weighted, DeformableDetrImageLoss):
    """The focal loss, α(1 − p)²·BCE(p, 1); Conditional DETR's, too."""

    forward = _bound(ImageLoss.forward, **_ALONE)

    def of_objects(self, objects: _Objects) -> Tensor:
        missing = 1 - objects.logits.sigmoid()
        loss: Tensor = self.focal_alpha * missing**2 * F.softplus(-objects.logits)
        return loss

    def loss_labels(self, *arguments: Any, **options: Any) -> dict[str, Tensor]:
        return self._added("loss_ce", super().loss_labels(*arguments, **options), *arguments)


class _Softmax(_Weighted, ImageLoss):
    """The cross entropy over the classes and none: a mean in which queries of no object count less."""

    forward = _bound(ImageLoss.forward, **_ALONE)

    def of_objects(self, objects: _Objects) -> Tensor:
        return F.cross_entropy(objects.rows, objects.labels, reduction="none")

    def loss_labels(self, outputs: Any, targets: Any, indices: _Pairs, *more: Any) -> dict[str, Tensor]:
        losses = super().loss_labels(outputs, targets, indices, *more)
        matched = sum(len(queries) for queries, _ in indices)
        divisor = matched + self.eos_coef * (outputs["logits"][..., 0].numel() - matched)
        return self._added("loss_ce", losses, outputs, targets, indices, divisor)


_CRITERIA: Mapping[str, type[Any]] = {
    "ImageLoss": _Softmax,
    "DeformableDetrImageLoss": _Deformable,
    "RTDetrLoss": _RTDetr,
    "DFineLoss": _DFine,
    "Deimv2Loss": _Deimv2,
    "LwDetrImageLoss": _LwDetr,
    "RfDetrImageLoss": _RfDetr,
}


def loss_function(network: nn.Module, weights: Tensor | None) -> Callable[..., Any]:
    """The library's loss function of a network, in float32 and with class weights, float32 [C] or None."""
    library: Any = network.loss_function
    (name,) = _CRITERIA.keys() & set(library.__code__.co_names)

    def criterion(*arguments: Any, **options: Any) -> Any:
        made = _CRITERIA[name](*arguments, **options)
        made.weights = weights
        # The library leaves the criterion in training mode, in which it expects all groups of queries.
        return made.train(network.training)

    bound = _bound(library, **{name: criterion})

    def compute(*arguments: Any, **options: Any) -> Any:
        device = next(network.parameters()).device
        with in_float32(device), without_waits(device):
            return bound(*map(_exact, arguments), **{key: _exact(value) for key, value in options.items()})

    return compute


def _exact(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def of_proposals(
    network: Any, predictions: Any, targets: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The losses of the boxes that a Deformable DETR's encoder proposes; empty for other networks.

    As the authors compute them (Zhu et al. 2021, A.4): like a decoder layer's, but all objects are of the
    first class. The library leaves them out, and without them nothing would teach the proposals.
    """
    config = network.config
    if not has_proposals(config):
        return {}
    alone = copy(config)
    alone.auxiliary_loss = False
    of_one_class = [
        {**target, "class_labels": torch.zeros_like(target["class_labels"])} for target in targets
    ]
    boxes = predictions.enc_outputs_coord_logits.sigmoid()
    compute = loss_function(network, None)
    _, losses, _ = compute(predictions.enc_outputs_class, of_one_class, boxes.device, boxes, alone)
    return {f"{key}_enc": loss for key, loss in losses.items()}


def named(losses: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Average each kind of the library's losses over the layers.

    Their sum, times the number of layers, is the library's loss. With the sum, a network from scratch would
    seem to diverge; for adamw, and with a clipped gradient norm, the two are equivalent.
    """
    are_weighted = not hasattr(config, "bbox_loss_coefficient")
    parts: dict[str, list[Tensor]] = {}
    layers = 0
    for key, loss in losses.items():
        kind = re.match(r"loss_(mask_ce|mask_dice|[a-z]+)", key)
        name = _NAMES.get(kind[0]) if kind else None
        if kind is None or name is None:
            continue
        layers += name == "class_loss" and "_dn_" not in key
        factor = 1.0 if are_weighted else getattr(config, _FACTORS[kind[0]], 1.0)
        # Without an object in the batch, mask losses are empty.
        parts.setdefault(name, []).append(loss.sum() * factor)
    return {name: torch.stack(each).sum() / layers for name, each in parts.items()}
