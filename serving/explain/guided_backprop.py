"""Guided backpropagation (Springenberg et al. 2015, arXiv 1412.6806).

A guided ReLU passes back only positive gradients, and only where its input was positive. Here the ReLUs of a
copied network are replaced. Hooks on nn.ReLU, as captum sets them, would miss the capped ReLUs of MobileNets
and fail on in-place activations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serving.explain.request import ExplanationRequest
from serving.explain.subject import Method, Subject
from trainer.annotations import FloatArray

_RELUS = (nn.ReLU, nn.ReLU6)


class GuidedBackprop(Method):
    def obstacle(self, network: nn.Module, size: int) -> str | None:
        """The network must have ReLUs to guide."""
        if any(isinstance(module, _RELUS) for module in network.modules()):
            return None
        return "it has no ReLU activations to guide"

    def heat(self, relevance: FloatArray) -> FloatArray:
        """Gradient magnitude: the sign says whether a pixel should be brighter, not whether it matters."""
        magnitude: FloatArray = np.abs(relevance).sum(axis=0)
        return magnitude

    def attribute(self, subject: Subject, target: int, request: ExplanationRequest) -> Tensor:
        """The guided gradient of the logit."""
        inputs = subject.tensor[None].clone().requires_grad_()
        logit = subject.guided()(inputs)[0, target]
        (gradient,) = torch.autograd.grad(logit, inputs)
        return gradient[0].float()


def guide(network: nn.Module) -> nn.Module:
    """Replace every ReLU of a network, in place, by a guided one with the same outputs."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _RELUS):
                setattr(module, name, _GuidedReLU(6.0 if isinstance(child, nn.ReLU6) else float("inf")))
    return network


class _GuidedReLU(nn.Module):
    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = _Guided.apply(values, self.cap)
        return result


class _Guided(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor, cap: float) -> Tensor:
        context.save_for_backward((values > 0) & (values < cap))
        return values.clamp(0, cap)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (active,) = context.saved_tensors
        return gradient.clamp(min=0) * active, None


METHOD = GuidedBackprop()
