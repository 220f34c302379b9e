"""rfdetr's losses with a weight for each class; rfdetr.py imports this file together with rfdetr."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from rfdetr.models.criterion import SetCriterion
from rfdetr.utilities.box_ops import elementwise_box_iou
from torch import Tensor
from torchvision.ops import box_convert


class WeighingCriterion(SetCriterion):
    """Multiplies the classification loss of a query that has an object by the weight of the object's class.

    Attributes:
        weights: float32 [C], or None for ones.
    """

    weights: Tensor | None = None

    def loss_labels(
        self,
        outputs: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
        indices: list[tuple[Tensor, Tensor]],
        num_boxes: Tensor,
        *arguments: Any,
        **options: Any,
    ) -> dict[str, Tensor]:
        """rfdetr's losses; "loss_ce" with what the weights add to it.

        Its loss of a query with an object is −t·log p − (1 − t)·log(1 − p), where t = p^α·IoU^(1 − α), which
        is at least .01, counts as a constant.
        """
        losses: dict[str, Tensor] = super().loss_labels(
            outputs, targets, indices, num_boxes, *arguments, **options
        )
        if self.weights is None:
            return losses
        queries = self._get_src_permutation_idx(indices)
        order = [index for _, index in indices]
        labels, boxes = (
            torch.cat([target[name][index] for target, index in zip(targets, order, strict=True)])
            for name in ("labels", "boxes")
        )
        logits = outputs["pred_logits"][queries][torch.arange(len(labels), device=labels.device), labels]
        corners = (box_convert(each, "cxcywh", "xyxy") for each in (outputs["pred_boxes"][queries], boxes))
        overlaps = elementwise_box_iou(*corners)[0]
        t = (
            (logits.sigmoid() ** self.focal_alpha * overlaps ** (1 - self.focal_alpha))
            .clamp(min=0.01)
            .detach()
        )
        of_objects = F.binary_cross_entropy_with_logits(logits, t, reduction="none")
        added = ((self.weights[labels] - 1) * of_objects).sum() / num_boxes
        return {**losses, "loss_ce": losses["loss_ce"] + added}
