"""timm's networks as backbones of transformers' DETRs."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn


def backbone(config: Any) -> nn.Module:
    """A backbone as timm starts it; transformers freezes its batch norms, which hold no statistics yet.

    Args:
        config: the library's configuration of a network with such a backbone.
    """
    of_backbone = config.backbone_config
    built: nn.Module = timm.create_model(
        of_backbone.backbone,
        features_only=True,
        in_chans=of_backbone.num_channels,
        out_indices=tuple(of_backbone.out_indices),
        output_stride=of_backbone.output_stride,
    )
    return built
