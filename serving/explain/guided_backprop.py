"""Guided backpropagation (Springenberg et al. 2015, arXiv 1412.6806).

A ReLU passes back only gradients above zero, where its input was above zero. captum does it by hooks on
nn.ReLU alone; here such modules are replaced, so that nothing is left behind on a network, no in-place
activation is in the way, and the capped ReLUs of MobileNets are guided, too.
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
        """Networks without a ReLU have nothing to guide."""
        if any(isinstance(module, _RELUS) for module in network.modules()):
            return None
        return "it has no ReLU activations to guide"

    def heat(self, relevance: FloatArray) -> FloatArray:
        """How strong the gradient is: its sign says whether a pixel should be brighter, not if it counts."""
        strength: FloatArray = np.abs(relevance).sum(axis=0)
        return strength

    def attribute(self, subject: Subject, target: int, asked: ExplanationRequest) -> Tensor:
        """The guided gradient of the logit."""
        inputs = subject.tensor[None].clone().requires_grad_()
        logit = subject.guided()(inputs)[0, target]
        (gradient,) = torch.autograd.grad(logit, inputs)
        return gradient[0].float()


def guide(network: nn.Module) -> nn.Module:
    """Replace every ReLU of a network, in place, by a guided one of the same values."""
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
        (passing,) = context.saved_tensors
        return gradient.clamp(min=0) * passing, None


METHOD = GuidedBackprop()
