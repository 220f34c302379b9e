"""Guided Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) on the last convolutional feature map."""

from __future__ import annotations

from typing import Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serving.explain.guided_backprop import GuidedBackprop
from serving.explain.request import ExplanationRequest
from serving.explain.subject import Subject


@runtime_checkable
class _SplitClassifier(Protocol):
    """A classifier that exposes its last features, as all of timm's do."""

    num_features: int

    def forward_features(self, images: Tensor) -> Tensor:
        """Images → what the head pools: [N, num_features, rows, columns] for convolutional networks."""

    def forward_head(self, features: Tensor) -> Tensor:
        """Features → logits [N, C]."""


class GuidedGradCam(GuidedBackprop):
    def obstacle(self, network: nn.Module, size: int) -> str | None:
        """The network must have a feature map over the image, which transformers lack, and ReLUs."""
        obstacle = "it has no convolutional feature map"
        if not isinstance(network, _SplitClassifier):
            return obstacle
        device = next(network.parameters()).device
        with torch.inference_mode():
            features = network.forward_features(torch.zeros(1, 3, size, size, device=device))
        if features.ndim != 4 or features.shape[1] != network.num_features:
            return obstacle
        return super().obstacle(network, size)

    def attribute(self, subject: Subject, target: int, request: ExplanationRequest) -> Tensor:
        """The guided gradient, weighted by the Grad-CAM of the feature cell that each pixel is in."""
        inputs = subject.tensor[None]
        network = cast("_SplitClassifier", subject.network)
        with torch.no_grad():
            features = network.forward_features(inputs)
        features.requires_grad_()
        logit = network.forward_head(features)[0, target]
        (gradient,) = torch.autograd.grad(logit, features)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        cam = (weights * features.detach()).sum(dim=1, keepdim=True).relu()
        cam = F.interpolate(cam, size=inputs.shape[2:], mode="nearest")
        return super().attribute(subject, target, request) * cam[0].float()


METHOD = GuidedGradCam()
