"""Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365).

The implementation is our own because explanations run in a service: it splits the network, runs batches in
parallel streams and changes nothing that other threads use (benchmarks/RESULTS.md, Explanations). Tests
compare its results with captum's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serving.explain.request import Approximation, ExplanationRequest
from serving.explain.streams import Submit, streams
from serving.explain.subject import GRADIENT_BATCH, Method, Subject


class IntegratedGradients(Method):
    def attribute(self, subject: Subject, target: int, request: ExplanationRequest) -> Tensor:
        """Gradients along the path from the mean colour, which is zero after preprocessing.

        They sum to the logit minus the logit of an image of that colour.
        """
        baseline = torch.zeros_like(subject.tensor)
        with streams(baseline.device) as submit:
            return along_paths(subject, baseline[None], target, request, submit)[0]


def along_paths(
    subject: Subject, baselines: Tensor, target: int, request: ExplanationRequest, submit: Submit
) -> Tensor:
    """Integrated gradients from each of several baselines to the image.

    The network's stem is affine: it maps the path to a straight path, and its gradient is the same
    everywhere. Both are computed once instead of at each step.

    Args:
        baselines: float32 [b, 3, h, w].
        submit: runs the batches of steps.

    Returns:
        float32 [b, 3, h, w].
    """
    halves = subject.halves()
    ends = torch.cat([subject.tensor[None], baselines]).requires_grad_()
    image, *starts = features = halves.stem(ends.contiguous(memory_format=torch.channels_last))
    batches_by_path = [
        [
            submit(_gradient, halves.body, start.detach(), image.detach(), fractions, weights, target)
            for fractions, weights in _steps(request, baselines)
        ]
        for start in starts
    ]
    sums = [torch.stack([batch.result() for batch in batches]).sum(dim=0) for batches in batches_by_path]
    upstream = torch.stack([torch.zeros_like(sums[0]), *sums])
    (gradients,) = torch.autograd.grad(features, ends, upstream)
    return ((subject.tensor - baselines) * gradients[1:]).float()


def _gradient(
    body: nn.Module, start: Tensor, end: Tensor, fractions: Tensor, weights: Tensor, target: int
) -> Tensor:
    """The weighted sum of a logit's gradients at some points of a path.

    Args:
        start, end: float32 [F, h, w], the ends of the path.
        fractions: float32 [n] in [0, 1], the positions of the points on the path.
        weights: float32 [n].

    Returns:
        float32 [F, h, w].
    """
    shift = torch.zeros_like(start).requires_grad_()
    points: Tensor = _Path.apply(shift, start, end, fractions, weights)
    (gradient,) = torch.autograd.grad(body(points)[:, target].sum(), shift)
    return gradient


class _Path(torch.autograd.Function):
    """Points on a path, differentiable by a shift of the whole path.

    A plain addition would do the same, but PyTorch's sum over the points, its gradient, takes a tenth of a
    ResNet's time.
    """

    @staticmethod
    def forward(
        context: Any, shift: Tensor, start: Tensor, end: Tensor, fractions: Tensor, weights: Tensor
    ) -> Tensor:
        context.save_for_backward(weights)
        points = torch.lerp(start, end, fractions[:, None, None, None])
        # Makes convolutions a tenth faster on a CPU and costs nothing elsewhere.
        return points.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weights,) = context.saved_tensors
        rows = gradient.permute(0, 2, 3, 1)  # the order in memory
        total = (weights @ rows.reshape(len(rows), -1)).view(rows.shape[1:])
        return total.permute(2, 0, 1), None, None, None, None


def _steps(request: ExplanationRequest, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The positions on a path and their weights, in batches of about the same size."""
    fractions, weights = (
        values.to(like) for values in _quadrature(request.approximation_method, request.n_steps)
    )
    batches = math.ceil(request.n_steps / GRADIENT_BATCH)
    return list(zip(fractions.tensor_split(batches), weights.tensor_split(batches), strict=True))


def _quadrature(method: Approximation, steps: int) -> tuple[Tensor, Tensor]:
    """Points in [0, 1] and their weights for a numerical integral, by the methods of the reference.

    The trapezoid's weights sum to 1 − 1 / steps: captum, which the reference uses, defines them so.
    """
    if method == "gausslegendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return torch.from_numpy((1 + points) / 2), torch.from_numpy(weights / 2)
    ends = {
        "riemann_left": (0.0, 1 - 1 / steps),
        "riemann_middle": (0.5 / steps, 1 - 0.5 / steps),
        "riemann_right": (1 / steps, 1.0),
        "riemann_trapezoid": (0.0, 1.0),
    }
    widths = torch.full((steps,), 1 / steps, dtype=torch.float64)
    if method == "riemann_trapezoid":
        widths[[0, -1]] /= 2
    return torch.linspace(*ends[method], steps), widths


METHOD = IntegratedGradients()
