"""Mixup and CutMix, and the losses of classifiers for hard, smoothed and mixed targets, focal or not.

torchvision's v2.MixUp and v2.CutMix are not used: they only mix each image with its neighbour in the
batch, and they draw other random numbers, which would change the results of a seed.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def mixed(
    images: Tensor,
    targets: Tensor,
    generator: np.random.Generator,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> tuple[Tensor, Tensor]:
    """Mix a batch with itself in another order, on its device. The arguments are not changed.

    mixup: x ← λ·x + (1 − λ)·x', with one λ ~ Beta(α, α) for the batch. Source: Zhang et al. 2018.
    CutMix: a rectangle of x' replaces that of x. Its sides are √(1 − λ) of the image's, its centre is
    anywhere in the image, and its part outside the image is cut off. 1 − λ is then its fraction of the area.
    Source: Yun et al. 2019.
    Targets become λ·y + (1 − λ)·y'. If both alphas are above 0, each batch uses one of the two at random.

    Args:
        images: float [B, 3, h, w].
        targets: float [B, C], one-hot or multi-hot.
        generator: on the CPU, so that draws do not depend on the device.
        mixup_alpha, cutmix_alpha: 0 turns it off.
    """
    cuts = cutmix_alpha > 0 and (mixup_alpha <= 0 or generator.random() < 0.5)
    alpha = cutmix_alpha if cuts else mixup_alpha
    if alpha <= 0:
        return images, targets
    share = float(generator.beta(alpha, alpha))
    partners = torch.from_numpy(generator.permutation(len(images))).to(images.device, non_blocking=True)
    if cuts:
        height, width = images.shape[2:]
        rows, columns = _rectangle(height, width, share, generator)
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        share = 1 - area / (height * width)
        blended = images.clone()
        blended[:, :, rows, columns] = images[partners][:, :, rows, columns]
    else:
        blended = torch.lerp(images[partners], images, share)
    return blended, torch.lerp(targets[partners], targets, share)


def _rectangle(height: int, width: int, share: float, generator: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a random rectangle with 1 − share of the area, clipped to the image."""
    sides = []
    for length in (height, width):
        side = round(length * math.sqrt(1 - share))
        start = int(generator.integers(length)) - side // 2
        sides.append(slice(max(0, start), min(length, start + side)))
    return sides[0], sides[1]


def cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float, focal_gamma: float = 0.0
) -> Tensor:
    """Softmax cross entropy: with t = (1 − smoothing)·y + smoothing / C, −Σ w·t·(1 − p)^γ·log p over Σ w·y.

    Args:
        logits: float [B, C].
        targets: y, int64 [B]; if mixed, float [B, C] with rows that sum to 1.
        weights: w, float [C], or None for ones.
        focal_gamma: γ of the focal loss (Lin et al. 2017), at least 0; 0 leaves the cross entropy.
    """
    if focal_gamma:
        if not targets.is_floating_point():
            targets = F.one_hot(targets, logits.shape[1]).to(logits.dtype)
        smoothed = targets * (1 - smoothing) + smoothing / logits.shape[1]
        losses = -smoothed * _focal(logits.log_softmax(1), focal_gamma)
        if weights is None:
            return losses.sum() / len(targets)
        return (losses @ weights).sum() / (targets @ weights).sum()
    if not targets.is_floating_point():
        return F.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)
    summed = F.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing, reduction="sum")
    # torch would divide by the number of images here, although it divides by their weights for hard targets.
    return summed / (len(targets) if weights is None else (targets @ weights).sum())


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float, focal_gamma: float = 0.0
) -> Tensor:
    """A sigmoid cross entropy for each class, averaged: t = (1 − smoothing)·y + smoothing / 2.

    The focal loss multiplies a present class's term by (1 − p)^γ and an absent class's by p^γ.

    Args:
        logits, targets: float [B, C]; y in [0, 1].
        weights: of the positive term, float [C], or None for ones.
        focal_gamma: γ of the focal loss, as in `cross_entropy`.
    """
    smoothed = targets * (1 - smoothing) + smoothing / 2
    if focal_gamma:
        present = smoothed * _focal(F.logsigmoid(logits), focal_gamma)
        absent = (1 - smoothed) * _focal(F.logsigmoid(-logits), focal_gamma)
        return -((present if weights is None else present * weights) + absent).mean()
    return F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)


def _focal(log_p: Tensor, gamma: float) -> Tensor:
    """(1 − p)^γ·log p. The gradient of the power has no limit at p = 1, so 1 − p counts as 1e-8 at least."""
    return (-log_p.expm1()).clamp(min=1e-8) ** gamma * log_p
