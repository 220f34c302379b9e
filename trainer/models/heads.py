"""How the layers that predict classes start: near the prior, whatever the features in front of them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn

FOCAL_PRIOR = 0.01
"""The probability of a class at one of thousands of anchors or queries. Source: Lin et al. 2017; as DETRs."""
_DEVIATION = 0.001
"""As detectron2 starts its masks' last layer (mask_head.py) and its boxes' (fast_rcnn.py)."""


def start_near_prior(layers: Iterable[tuple[nn.Module, float]]) -> None:
    """Start layers so small that the first scores are the prior's, and the first loss that of its guess.

    Larger weights answer at random with confidence, and the gradients of that wreck the published weights in
    front of them. Weights of exactly 0 would pass on no gradient in the first step, and rank all boxes alike.

    Args:
        layers: as `Family.class_layers` returns them.
    """
    for layer, prior in layers:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        nn.init.normal_(layer.weight, std=_DEVIATION)
        if layer.bias is not None:
            nn.init.constant_(layer.bias, math.log(prior / (1 - prior)))
