"""Guided Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391), on a network's last convolutional features."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serving.explain.guided_backprop import GuidedBackprop
from serving.explain.request import ExplanationRequest
from serving.explain.subject import Subject


class GuidedGradCam(GuidedBackprop):
    def obstacle(self, network: nn.Module, size: int) -> str | None:
        """Transformers have no map of features over the image, others no ReLU."""
        parameter = next(network.parameters())
        with torch.inference_mode():
            features = _features(network, torch.zeros(1, 3, size, size, device=parameter.device))
        channels = getattr(network, "num_features", None)
        if features.ndim != 4 or features.shape[1] != channels:
            return "it has no convolutional feature map"
        return super().obstacle(network, size)

    def attribute(self, subject: Subject, target: int, asked: ExplanationRequest) -> Tensor:
        """The guided gradient times the Grad-CAM of the last features, each of whose cells covers a patch."""
        inputs = subject.tensor[None]
        network: Any = subject.network
        with torch.no_grad():
            features = _features(network, inputs)
        features.requires_grad_()
        logit = network.forward_head(features)[0, target]
        (gradient,) = torch.autograd.grad(logit, features)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        cam = (weights * features.detach()).sum(dim=1, keepdim=True).relu()
        cam = F.interpolate(cam, size=inputs.shape[2:], mode="nearest")
        return super().attribute(subject, target, asked) * cam[0].float()


def _features(network: Any, inputs: Tensor) -> Tensor:
    """What the network's head pools: [N, F, rows, columns] of convolutional networks (timm's convention)."""
    features: Tensor = network.forward_features(inputs)
    return features


METHOD = GuidedGradCam()
