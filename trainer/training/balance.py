"""How often each training image is drawn, so that rare classes are seen as often as frequent ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.annotations import IntArray, Objects, Target


def image_weights(targets: Sequence[Target], classes: int) -> npt.NDArray[np.float64]:
    """The probability of each image at each draw, float64 [images]; they sum to 1.

    An image weighs 1/f of the rarest of its classes, f being the number of images with a class. Images
    without any class (or with crowds alone) keep the share that they have of the data.
    """
    of_image = [_classes_in(target) for target in targets]
    frequency = np.bincount(np.concatenate([np.zeros(0, np.int64), *of_image]), minlength=classes)
    weights = np.array([(1 / frequency[found]).max() if len(found) else 0.0 for found in of_image])
    empty = weights == 0
    if empty.all():
        return np.full(len(weights), 1 / len(weights))
    weights *= (1 - empty.mean()) / weights.sum()
    weights[empty] = 1 / len(weights)
    return weights


def _classes_in(target: Target) -> IntArray:
    if isinstance(target, Objects):
        return np.unique(target.labels[~target.crowd]).astype(np.int64)
    if isinstance(target, np.ndarray):
        return np.flatnonzero(target).astype(np.int64)
    return np.array([target], dtype=np.int64)
