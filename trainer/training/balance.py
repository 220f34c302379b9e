"""The probability of each training image, so that rare classes are seen as often as frequent ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.annotations import IntArray, Objects, Target


def image_weights(targets: Sequence[Target], classes: int) -> npt.NDArray[np.float64]:
    """The probability of each image in a draw, float64 [images]; they sum to 1.

    An image has the weight 1/f of the rarest of its classes, where f is the number of images with that class.
    Images without any class, or with crowds only, keep their fraction of the data.
    """
    classes_by_image = [_classes_in(target) for target in targets]
    frequency = np.bincount(np.concatenate([np.zeros(0, np.int64), *classes_by_image]), minlength=classes)
    weights = np.array([(1 / frequency[own]).max() if len(own) else 0.0 for own in classes_by_image])
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
