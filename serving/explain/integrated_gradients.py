"""Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from serving.explain.request import ExplanationRequest
from serving.explain.streams import Submit, streams
from serving.explain.subject import AT_ONCE, Method, Subject


class IntegratedGradients(Method):
    def attribute(self, subject: Subject, target: int, asked: ExplanationRequest) -> Tensor:
        """From the mean colour, zeros to the network: they sum to the logit less that of such an image."""
        baseline = torch.zeros_like(subject.tensor)
        with streams(baseline.device) as submit:
            return along_paths(subject, baseline[None], target, asked, submit)[0]


def along_paths(
    subject: Subject, baselines: Tensor, target: int, asked: ExplanationRequest, submit: Submit
) -> Tensor:
    """Integrated gradients from each of several baselines to the image.

    What the network's stem makes of a path is straight, too, and its gradient the same everywhere: both are
    reckoned once, not at each step.

    Args:
        baselines: float32 [b, 3, h, w].
        submit: starts the batches of steps.

    Returns:
        float32 [b, 3, h, w].
    """
    halves = subject.halves()
    ends = torch.cat([subject.tensor[None], baselines]).requires_grad_()
    image, *begins = features = halves.stem(ends.contiguous(memory_format=torch.channels_last))
    parts = [
        [
            submit(_gradient, halves.body, begin.detach(), image.detach(), fractions, weights, target)
            for fractions, weights in _steps(asked, baselines)
        ]
        for begin in begins
    ]
    sums = [torch.stack([part.result() for part in of_path]).sum(dim=0) for of_path in parts]
    above = torch.stack([torch.zeros_like(sums[0]), *sums])
    (gradients,) = torch.autograd.grad(features, ends, above)
    return ((subject.tensor - baselines) * gradients[1:]).float()


def _gradient(
    body: nn.Module, begin: Tensor, end: Tensor, fractions: Tensor, weights: Tensor, target: int
) -> Tensor:
    """The weighted sum of a logit's gradients at some points of a path.

    Args:
        begin, end: float32 [F, h, w], of the path.
        fractions: float32 [n], where the points lie between them.
        weights: float32 [n].

    Returns:
        float32 [F, h, w].
    """
    shift = torch.zeros_like(begin).requires_grad_()
    points: Tensor = _Path.apply(shift, begin, end, fractions, weights)
    (gradient,) = torch.autograd.grad(body(points)[:, target].sum(), shift)
    return gradient


class _Path(torch.autograd.Function):
    """Points of a path; a shift of the whole path is what they are differentiated by.

    An addition would do, but PyTorch's sum over the points, its gradient, takes a tenth of a ResNet's time.
    """

    @staticmethod
    def forward(
        context: Any, shift: Tensor, begin: Tensor, end: Tensor, fractions: Tensor, weights: Tensor
    ) -> Tensor:
        context.save_for_backward(weights)
        points = torch.lerp(begin, end, fractions[:, None, None, None])
        # On a CPU convolutions are a tenth faster so; elsewhere it is no loss.
        return points.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weights,) = context.saved_tensors
        rows = gradient.permute(0, 2, 3, 1)  # as they lie in memory
        total = (weights @ rows.reshape(len(rows), -1)).view(rows.shape[1:])
        return total.permute(2, 0, 1), None, None, None, None


def _steps(asked: ExplanationRequest, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The points of a path and their weights, in batches of about the same size."""
    from captum.attr._utils.approximation_methods import approximation_parameters

    weights, fractions = (
        torch.tensor(values(asked.n_steps), dtype=like.dtype, device=like.device)
        for values in approximation_parameters(asked.approximation_method)
    )
    batches = math.ceil(asked.n_steps / AT_ONCE)
    return list(zip(fractions.tensor_split(batches), weights.tensor_split(batches), strict=True))


METHOD = IntegratedGradients()
