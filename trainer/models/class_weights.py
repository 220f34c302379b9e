"""Weights of the classes in a training loss, against class imbalance: the setting `weighted_loss`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.annotations import Objects, Target

_DoubleArray = npt.NDArray[np.float64]


def class_weights(targets: Sequence[Target], classes: int, multilabel: bool, kind: int) -> Tensor | None:
    """Weights for a classifier, float32 [C]; None if they are off or the data are balanced.

    With f_c images of class c among n images: 1/f_c for multi-class, (n − f_c)/f_c for multilabel; kind 1
    takes the square root. A class without images gets 0. Data count as balanced up to
    max f // max(1, min f) = 2.
    Source: the documented `weighted_loss` of Azure AutoML for Images.

    Args:
        kind: the setting `weighted_loss`, 0 to 2.
    """
    if kind == 0:
        return None
    if multilabel:
        frequency = np.sum(np.stack([np.asarray(target) for target in targets]), axis=0).astype(np.float64)
    else:
        frequency = np.bincount(np.array(targets, dtype=np.int64), minlength=classes).astype(np.float64)
    if _is_balanced(frequency):
        return None
    numerator = len(targets) - frequency if multilabel else np.ones(classes)
    return torch.from_numpy(_powered(_divided(numerator, frequency), kind)).float()


def object_weights(targets: Sequence[Target], classes: int, kind: int) -> Tensor | None:
    """Weights of the objects in a detector's classification loss by class, float32 [C]; None as above.

    With f_c objects of class c, crowds not counted, they are proportional to 1/f_c, or to its square root for
    kind 1. Their mean over all objects is 1, so that objects as a whole weigh as much as without weights
    against the background and against the box losses. A class without objects gets 0.

    Args:
        kind: the setting `weighted_loss`, 0 to 2.
    """
    if kind == 0:
        return None
    frequency = np.zeros(classes)
    for target in targets:
        assert isinstance(target, Objects)
        frequency += np.bincount(target.labels[~target.crowd], minlength=classes)
    if _is_balanced(frequency):
        return None
    weights = _powered(_divided(np.ones(classes), frequency), kind)
    return torch.from_numpy(weights * frequency.sum() / (weights @ frequency)).float()


def _is_balanced(frequency: _DoubleArray) -> bool:
    return bool(frequency.max() // max(1.0, frequency.min()) <= 2)


def _divided(numerator: _DoubleArray, frequency: _DoubleArray) -> _DoubleArray:
    return np.divide(numerator, frequency, out=np.zeros(len(frequency)), where=frequency > 0)


def _powered(weights: _DoubleArray, kind: int) -> _DoubleArray:
    return np.sqrt(weights) if kind == 1 else weights
