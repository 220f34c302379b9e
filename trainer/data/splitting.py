"""Splits records into training and validation data with the same class distribution."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, FloatArray, IntArray
from trainer.data.reading.records import Records
from trainer.errors import DataError, JobError, Problem
from trainer.tasks import Task

_TRAINING, _VALIDATION = 0, 1


def split(records: Records, task: Task, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Split records into training and validation; the same arguments give the same split.

    Multi-class data keep each class's fraction up to rounding. Other data keep it as far as images with
    several classes allow, by iterative stratification of the object counts (Sechidis et al., "On the
    Stratification of Multi-Label Data", 2011), in which images without a label form a class of their own.
    Each class keeps at least one training image, as long as another image is left to validate on. Both sides
    get an image with a label; objects of crowds do not count.

    Args:
        fraction: fraction of validation images, above 0 and below 1; both sides get at least one image.

    Returns:
        Indices of the training and of the validation records, int64, each in ascending order.

    Raises:
        JobError: the fraction is out of range.
        DataError: there are fewer than two images, or fewer than two with a label.
    """
    if not 0 < fraction < 1:
        rule = "must be above 0 and below 1"
        raise JobError(
            "the data cannot be split", [Problem("--validation-data-size", "", rule, str(fraction))]
        )
    has_targets = records.has_targets()
    count = int(np.count_nonzero(has_targets))
    if count < 2:
        noun = "images"
        if len(records) > count:
            noun = "images with an object" if task.has_boxes else "images with a label"
        where = records.location(int(has_targets.argmax())) if len(records) else ""
        rule = f"at least two {noun} are needed to split off validation data"
        hint = "add images, or give validation data with --validation-data"
        raise DataError("the data cannot be split", [Problem(where, "", rule, str(count), hint)])
    generator = np.random.default_rng(seed)
    if task is Task.CLASSIFICATION:
        side = _split_classes(records.labels.astype(np.int64), fraction, generator)
    else:
        side = _split_label_sets(records, fraction, generator)
    if not side[has_targets].any():
        backgrounds = np.flatnonzero(side == _VALIDATION)
        side[backgrounds[:1]] = _TRAINING  # in exchange, if there are any
        side[_most_replaceable(records, has_targets)] = _VALIDATION
    return np.flatnonzero(side == _TRAINING), np.flatnonzero(side == _VALIDATION)


def _split_classes(labels: IntArray, fraction: float, generator: np.random.Generator) -> npt.NDArray[np.int8]:
    """Assign a side to each image of multi-class data.

    Each class contributes its fraction, rounded so that the total is right, but keeps at least one training
    image.
    """
    counts = np.bincount(labels)
    shares = counts * fraction
    quotas = np.minimum(np.floor(shares), np.maximum(counts - 1, 0)).astype(np.int64)
    room = np.maximum(counts - 1, 0) - quotas
    missing = max(1, round(len(labels) * fraction)) - int(quotas.sum())
    # Largest remainder first; ties are broken at random.
    order = generator.permutation(len(counts))
    order = order[np.argsort(-(shares - quotas)[order], kind="stable")]
    for label in order[room[order] > 0][: max(0, missing)]:
        quotas[label] += 1
    shuffled = generator.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    side = np.zeros(len(labels), dtype=np.int8)
    side[by_class] = rank < np.repeat(quotas, counts)
    return side


def _split_label_sets(
    records: Records, fraction: float, generator: np.random.Generator
) -> npt.NDArray[np.int8]:
    """Assign a side to each image by iterative stratification."""
    image, label, amount = _label_counts(records)
    images, classes = len(records), len(records.classes) + 1
    shuffled = generator.permutation(images)
    # (image, class) pairs by class, in shuffled order of the images; and the pairs of each image.
    place = np.empty(images, dtype=np.int64)
    place[shuffled] = np.arange(images)
    by_class = image[np.lexsort((place[image], label))]
    class_sizes = np.bincount(label, minlength=classes)
    class_starts = np.concatenate([[0], np.cumsum(class_sizes)])
    starts = np.concatenate([[0], np.cumsum(np.bincount(image, minlength=images))]).tolist()
    labels, amounts = label.tolist(), amount.tolist()

    total = np.bincount(label, weights=amount, minlength=classes)
    wanted = [((1 - fraction) * total).tolist(), (fraction * total).tolist()]
    wanted_images = [images * (1 - fraction), images * fraction]
    side = np.full(images, -1, dtype=np.int8).tolist()
    remaining = class_sizes.copy()

    def assign(index: int, to: int) -> None:
        side[index] = to
        wanted_images[to] -= 1
        for pair in range(starts[index], starts[index + 1]):
            wanted[to][labels[pair]] -= amounts[pair]
            remaining[labels[pair]] -= 1

    for index in np.unique(by_class[class_starts[:-1][class_sizes == 1]]).tolist():
        assign(index, _TRAINING)  # the only image of a class
    candidates = np.where(remaining > 0, remaining, np.iinfo(np.int64).max)
    while (candidates < np.iinfo(np.int64).max).any():
        rarest = int(candidates.argmin())
        for index in by_class[class_starts[rarest] : class_starts[rarest + 1]].tolist():
            if side[index] < 0:
                gap = wanted[_VALIDATION][rarest] - wanted[_TRAINING][rarest]
                gap = gap or wanted_images[_VALIDATION] - wanted_images[_TRAINING]
                assign(index, _VALIDATION if gap > 0 else _TRAINING)
        candidates = np.where(remaining > 0, remaining, np.iinfo(np.int64).max)
    result = np.array(side, dtype=np.int8)
    _keep_in_training(result, by_class, class_starts)
    return result


def _label_counts(records: Records) -> tuple[IntArray, IntArray, FloatArray]:
    """Count the objects of each class in each image, without crowds.

    Returns:
        Image, class and count of each pair, ordered by image; images without any have the class
        len(records.classes).
    """
    is_target = records.is_target()
    classes = len(records.classes) + 1
    image = np.repeat(np.arange(len(records)), np.diff(records.starts))[is_target]
    background = np.flatnonzero(~records.has_targets())
    labels = records.labels[is_target]
    keys = np.concatenate([image * classes + labels, background * classes + classes - 1])
    pairs, amount = np.unique(keys, return_counts=True)
    if records.task is Task.MULTILABEL:
        amount = np.ones_like(amount)
    return pairs // classes, pairs % classes, amount.astype(np.float32)


def _keep_in_training(side: npt.NDArray[np.int8], by_class: IntArray, class_starts: IntArray) -> None:
    """Move an image of each class without training images to training, as long as validation keeps one."""
    for begin, end in itertools.pairwise(class_starts.tolist()):
        images = by_class[begin:end]
        if len(images) and (side[images] == _VALIDATION).all() and np.count_nonzero(side) > 1:
            side[images[0]] = _TRAINING


def _most_replaceable(records: Records, candidates: BoolArray) -> int:
    """The candidate that training can spare most easily: its rarest class has the most images."""
    image, label, _ = _label_counts(records)
    class_sizes = np.bincount(label)
    rarest = np.full(len(records), np.iinfo(np.int64).max)
    np.minimum.at(rarest, image, class_sizes[label])
    return int(np.where(candidates, rarest, 0).argmax())
