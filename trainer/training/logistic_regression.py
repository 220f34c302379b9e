"""Logistic regression with an L2 penalty whose strength is chosen by cross-validation.

Own code rather than scikit-learn's, which lacks what a probe needs together: classes and labels that a fold
may lack, all labels in one fit, the class weights of the losses, and GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.annotations import IntArray

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2)
"""Candidates for C, the strongest penalty first; benchmarks/RESULTS.md, Strength of the probe."""
_USUAL_STRENGTH = 1e-2
"""C if no image can be held out because no class has two; measured there, too."""
_FOLDS, _FOLDS_OF_MANY, _MANY_IMAGES = 5, 2, 2000
"""Folds: scikit-learn's default, and a number that costs a quarter for this many images or more, where each
fold still has a thousand."""
_BIAS_PENALTY = 1e-7
"""Keeps the bias finite of a class that no image has, or that all have."""
_MAX_STEPS = 1000
_MAX_GRADIENT, _MAX_GRADIENT_OF_FOLDS = 1e-7, 1e-5
"""Largest element of the gradient at a solution; comparing strengths needs less precision."""


@dataclass(frozen=True)
class Fitted:
    """A fitted linear classifier: logits = features · weightᵀ + bias.

    Attributes:
        weight: float32 [C, D], on the CPU.
        bias: float32 [C], likewise.
        loss: mean loss of the images that it was fitted to; with labels, the mean over the labels, too.
        strength: the chosen C, as in scikit-learn the inverse of the penalty's strength.
        folds: of the cross-validation that chose it; 0 if no image could be held out.
    """

    weight: Tensor
    bias: Tensor
    loss: float
    strength: float
    folds: int


def fit(
    features: Tensor,
    targets: Tensor,
    classes: int,
    class_weights: Tensor | None = None,
    image_weights: Tensor | None = None,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> Fitted:
    """Fit a multinomial regression, or for labels one regression per label against the rest.

    Minimises C · Σ loss + ½‖W‖² over the images, with features scaled to mean 0 and deviation 1. The result
    is for the features as they are. Labels share one C.

    Args:
        features: float [n, D]; computed in float64 on their device.
        targets: int64 [n], or bool [n, classes] for labels.
        classes: number of classes.
        class_weights: float [classes]; of an image's class, or of a label's positive term.
        image_weights: float [n]; only their ratios count.
        strengths: values of C to choose from.
        seed: of the folds.
    """
    raw = features.double()
    mean, deviation = raw.mean(0), raw.std(0, correction=0)
    # A constant feature differs from its mean by rounding errors alone.
    is_constant = deviation <= 1e-6 * raw.abs().amax(0)
    scale = torch.where(is_constant, 0.0, 1 / deviation.where(~is_constant, 1.0))
    inputs = (raw - mean) * scale
    rotation = None
    if len(inputs) < inputs.shape[1]:
        # The penalty is the same in rotated coordinates, of which as many as images are enough.
        rotation, lower = torch.linalg.qr(inputs.T)
        inputs = lower.T
    problem = _Problem.of(inputs, targets.to(raw.device), classes, class_weights, image_weights)
    strength, folds = _choose_strength(problem, make_folds(targets.cpu().numpy(), seed), strengths)
    solution = problem.solve(strength, _MAX_GRADIENT)
    weight = solution[:-1].T if rotation is None else solution[:-1].T @ rotation.T
    weight = weight * scale
    bias = solution[-1] - weight @ mean
    loss = float(problem.loss(solution)) / (classes if problem.has_labels else 1)
    return Fitted(weight.float().cpu(), bias.float().cpu(), loss, strength, folds)


@dataclass(frozen=True)
class _Problem:
    """Images to fit a regression to.

    Attributes:
        inputs: float64 [n, D + 1]; the last column is 1, for the bias.
        targets: int64 [n], or float64 [n, classes].
        positive_weights: of the labels' positive terms.
        weights: of the images, float64 [n].
    """

    inputs: Tensor
    targets: Tensor
    classes: int
    positive_weights: Tensor | None
    weights: Tensor

    @classmethod
    def of(
        cls,
        inputs: Tensor,
        targets: Tensor,
        classes: int,
        class_weights: Tensor | None,
        image_weights: Tensor | None,
    ) -> _Problem:
        by_class = None if class_weights is None else class_weights.to(inputs)
        weights = inputs.new_ones(len(inputs)) if image_weights is None else image_weights.to(inputs)
        inputs = F.pad(inputs, (0, 1), value=1.0)
        if targets.ndim == 2:
            return cls(inputs, targets.double(), classes, by_class, weights)
        return cls(
            inputs, targets, classes, None, weights if by_class is None else weights * by_class[targets]
        )

    @property
    def has_labels(self) -> bool:
        return self.targets.ndim == 2

    def part(self, images: Tensor) -> _Problem:
        return replace(
            self, inputs=self.inputs[images], targets=self.targets[images], weights=self.weights[images]
        )

    def loss(self, solution: Tensor) -> Tensor:
        """The weighted mean loss under a solution, float64 [D + 1, classes]; summed over labels."""
        logits = self.inputs @ solution
        if self.has_labels:
            losses = F.binary_cross_entropy_with_logits(
                logits, self.targets, pos_weight=self.positive_weights, reduction="none"
            ).sum(1)
        else:
            losses = F.cross_entropy(logits, self.targets, reduction="none")
        return (losses @ self.weights) / self.weights.sum()

    def solve(self, strength: float, max_gradient: float, start: Tensor | None = None) -> Tensor:
        """Find the solution for one C, from the solution for another if that is known."""
        size = (self.inputs.shape[1], self.classes)
        solution = self.inputs.new_zeros(size) if start is None else start.clone()
        solution.requires_grad_()
        penalties = self.inputs.new_full((size[0], 1), 1 / (strength * len(self.inputs)))
        penalties[-1] = _BIAS_PENALTY
        optimizer = torch.optim.LBFGS(
            [solution],
            max_iter=_MAX_STEPS,
            tolerance_grad=max_gradient,
            tolerance_change=0.0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            value = self.loss(solution) + (penalties * solution**2).sum() / 2
            (solution.grad,) = torch.autograd.grad(value, [solution])
            return value

        with torch.enable_grad():
            optimizer.step(objective)  # type: ignore[no-untyped-call]
        return solution.detach()


def _choose_strength(problem: _Problem, folds: IntArray, strengths: Sequence[float]) -> tuple[float, int]:
    """The C whose fits to the other folds have the lowest loss on each fold; and the number of folds."""
    count = int(folds.max(initial=-1)) + 1
    if not count:
        return _USUAL_STRENGTH, 0
    losses = dict.fromkeys(sorted(strengths), 0.0)
    folds_there = torch.from_numpy(folds).to(problem.inputs.device)
    for fold in range(count):
        held_out = problem.part(torch.nonzero(folds_there == fold)[:, 0])
        others = problem.part(torch.nonzero(folds_there != fold)[:, 0])
        solution = None
        for strength in losses:
            solution = others.solve(strength, _MAX_GRADIENT_OF_FOLDS, solution)
            losses[strength] += float(held_out.loss(solution) * held_out.weights.sum())
    return min(losses, key=losses.__getitem__), count


def make_folds(targets: npt.NDArray[np.generic], seed: int) -> IntArray:
    """Assign each image to a fold, so that each fold has the same share of each class up to rounding.

    An image with labels counts as one of its rarest label. The only image of a class is in no fold, so that
    no fit lacks a class.

    Args:
        targets: int64 [n], or bool [n, C].

    Returns:
        int64 [n], −1 for images that are never held out.
    """
    images = len(targets)
    if targets.ndim == 2:
        frequency = targets.sum(0)
        rarity = np.where(targets, frequency, images + 1)
        groups = np.where(targets.any(1), rarity.argmin(1), targets.shape[1])
    else:
        groups = targets.astype(np.int64)
    count = _FOLDS_OF_MANY if images >= _MANY_IMAGES else _FOLDS
    order = np.random.default_rng(seed).permutation(images)
    order = order[np.argsort(groups[order], kind="stable")]
    sizes = np.bincount(groups)
    order = order[sizes[groups[order]] > 1]
    folds = np.full(images, -1, dtype=np.int64)
    folds[order] = np.arange(len(order)) % min(count, max(2, len(order) // 2))
    return folds
