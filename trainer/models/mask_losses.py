"""The training losses of `transformers`' Mask2Former and EoMT, by name, with a weight for each class.

The library matches the queries of each layer and image with the objects on the CPU, one after the other, and
the GPU waits each time. Here the costs of all of them are computed first and copied in one transfer. The
losses of the matched pairs are the library's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers.models.mask2former.modeling_mask2former import (  # which EoMT has copies of
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
    sample_point,
)

from trainer.models.family import in_float32, with_attributes
from trainer.models.mask_networks import Predictions
from trainer.models.transfers import on_cpu, to_device

_NAMES = {"loss_cross_entropy": "class_loss", "loss_mask": "mask_loss", "loss_dice": "dice_loss"}
"""The library's losses by their names here."""

_Pairs = list[tuple[Tensor, Tensor]]
"""For each image, the matched queries and their objects, both [k]."""


def losses(
    network: nn.Module,
    layers: Sequence[Predictions],
    targets: Sequence[dict[str, Tensor]],
    weights: Tensor | None,
) -> dict[str, Tensor]:
    """The library's losses of all layers as one for each kind: the mean over the layers.

    Their sum, times the number of layers, is the library's loss. The mean does not make a network from
    scratch seem to diverge; for adamw, and with a clipped gradient norm, the two are equivalent.

    Args:
        targets: of each image, `class_labels` [n] and `masks`, bool [n, h, w].
        weights: of the classes, float32 [C], or None for ones.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in _NAMES.values()}
    with in_float32(layers[0].masks.device):
        exact = [Predictions(classes.float(), masks.float()) for classes, masks in layers]
        labels = [target["class_labels"] for target in targets]
        masks = [target["masks"].float() for target in targets]
        counted = _prepared(network, masks, labels)
        for predictions, pairs in zip(exact, _matched(network, exact, masks, labels), strict=True):
            for name, loss in _of_layer(counted, predictions, masks, labels, pairs, weights).items():
                found[_NAMES[name]].append(loss)
    return {name: torch.stack(each).mean() for name, each in found.items()}


def _prepared(network: Any, masks: Sequence[Tensor], labels: Sequence[Tensor]) -> nn.Module:
    """The network with a criterion that knows what is the same for all layers."""
    padded = network.criterion._pad_images_to_max_in_batch(masks)
    count = max(1, sum(map(len, labels)))
    return with_attributes(
        network,
        "criterion",
        _pad_images_to_max_in_batch=lambda _: padded,
        # Of this process alone: a rank without a batch would hold up the others.
        get_num_masks=lambda *_, **__: count,
    )


def _of_layer(
    network: Any,
    predictions: Predictions,
    masks: Sequence[Tensor],
    labels: Sequence[Tensor],
    pairs: _Pairs,
    weights: Tensor | None,
) -> dict[str, Tensor]:
    """The library's losses of one layer, by its names, each with its factor."""
    own: dict[str, Any] = {"matcher": lambda *_: pairs}
    if weights is not None:
        own["empty_weight"] = torch.cat([weights, network.criterion.empty_weight[-1:]])
    counted: Any = with_attributes(network, "criterion", **own)
    found: dict[str, Tensor] = counted.get_loss_dict(
        masks_queries_logits=predictions.masks,
        class_queries_logits=predictions.classes,
        mask_labels=masks,
        class_labels=labels,
        auxiliary_predictions=None,
    )
    if weights is None:
        return found
    # The library divides by the sum of the weights; divide by what it is without those of the classes.
    chosen = torch.cat([each[order] for each, (_, order) in zip(labels, pairs, strict=True)])
    of_none = network.criterion.eos_coef * (predictions.classes[..., 0].numel() - len(chosen))
    factor = (weights[chosen].sum() + of_none) / (len(chosen) + of_none)
    return {**found, "loss_cross_entropy": found["loss_cross_entropy"] * factor}


@torch.no_grad()
def _matched(
    network: Any, layers: Sequence[Predictions], masks: Sequence[Tensor], labels: Sequence[Tensor]
) -> list[_Pairs]:
    """Match each layer's queries with the objects, at the lowest cost by the library's matcher.

    The random points at which masks are compared are the same for all layers.
    """
    matcher, device = network.criterion.matcher, layers[0].masks.device
    costs: list[list[Tensor]] = [[] for _ in layers]
    for index, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        points = torch.rand(1, matcher.num_points, 2, device=device)
        seen = sample_point(mask[None], points, align_corners=False)[0]
        for layer, predictions in zip(costs, layers, strict=True):
            logits = sample_point(predictions.masks[index][None], points, align_corners=False)[0]
            cost = (
                matcher.cost_mask * pair_wise_sigmoid_cross_entropy_loss(logits, seen)
                + matcher.cost_dice * pair_wise_dice_loss(logits, seen)
                - matcher.cost_class * predictions.classes[index].softmax(dim=-1)[:, label]
            )
            most = torch.finfo(cost.dtype).max
            layer.append(torch.nan_to_num(cost, nan=most, posinf=most, neginf=most))
    pairs = [[linear_sum_assignment(cost.numpy()) for cost in layer] for layer in on_cpu(costs)]
    flat = [side for layer in pairs for pair in layer for side in pair]
    numbers = to_device(torch.from_numpy(np.concatenate(flat).astype(np.int64)), device)
    sides = iter(torch.split(numbers, [len(side) for side in flat]))
    return [[(next(sides), next(sides)) for _ in layer] for layer in pairs]
