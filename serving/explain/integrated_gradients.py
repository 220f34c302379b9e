"""Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365), by captum."""

from __future__ import annotations

import torch
from torch import Tensor

from serving.explain.request import ExplanationRequest
from serving.explain.subject import AT_ONCE, Method, Subject


class IntegratedGradients(Method):
    def attribute(self, subject: Subject, target: int, asked: ExplanationRequest) -> Tensor:
        """From the mean colour, zeros to the network: they sum to the logit less that of such an image."""
        baseline = torch.zeros_like(subject.tensor)
        return along_paths(subject, baseline[None], target, asked)[0]


def along_paths(subject: Subject, baselines: Tensor, target: int, asked: ExplanationRequest) -> Tensor:
    """Integrated gradients from each of several baselines to the image.

    Args:
        baselines: float32 [b, 3, h, w].

    Returns:
        float32 [b, 3, h, w].
    """
    from captum.attr import IntegratedGradients as OfCaptum

    # captum turns gradients on for inputs that have none, and warns of it.
    inputs = subject.tensor.expand_as(baselines).clone().requires_grad_()

    def network(images: Tensor) -> Tensor:
        # On a CPU convolutions are a tenth faster so; elsewhere it is no loss.
        logits: Tensor = subject.network(images.contiguous(memory_format=torch.channels_last))
        return logits

    found: Tensor = OfCaptum(network).attribute(
        inputs,
        baselines=baselines,
        target=target,
        n_steps=asked.n_steps,
        method=asked.approximation_method,
        internal_batch_size=AT_ONCE,
    )
    return found.detach().float()


METHOD = IntegratedGradients()
