"""Errors in classification: confused pairs, confident mistakes, worst images and likely label errors.

Arrays have a row for each image: targets bool [n, C], predicted bool [n, C] and probs [n, C].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, IntArray
from trainer.metrics.results import ConfusedPair, ImageNames, LabelIssue, Mistake, WorstImage, name_fields

DoubleArray = npt.NDArray[np.float64]

MAX_LISTED = 100
"""Maximum number of entries of each list."""
_MAX_EXAMPLES = 12
_TINY = 1e-12


def highest(scores: npt.NDArray[Any]) -> list[int]:
    """Indices of the highest scores [n] in descending order, at most MAX_LISTED."""
    order: list[int] = np.argsort(-scores, kind="stable")[:MAX_LISTED].tolist()
    return order


def confused_pairs(
    classes: Sequence[str], targets: BoolArray, predicted: BoolArray, probs: DoubleArray
) -> list[ConfusedPair]:
    """List pairs of classes by how often the first was taken for the second, the most frequent first.

    For multilabel, an image counts for a pair if the first class is present but not predicted, and the second
    predicted but not present.
    """
    missed, superfluous = targets & ~predicted, predicted & ~targets
    counts = missed.T.astype(np.int64) @ superfluous.astype(np.int64)
    pairs = np.argwhere(counts)
    entries = []
    for true, other_class in pairs[highest(counts[tuple(pairs.T)])].tolist():
        rows = np.flatnonzero(missed[:, true] & superfluous[:, other_class])
        most_confident = rows[np.argsort(-probs[rows, other_class], kind="stable")]
        entries.append(
            ConfusedPair(
                true=classes[true],
                predicted=classes[other_class],
                count=len(rows),
                share=float(len(rows) / targets[:, true].sum()),
                images=most_confident[:_MAX_EXAMPLES].tolist(),
            )
        )
    return entries


def mistakes(
    classes: Sequence[str],
    targets: BoolArray,
    predicted: BoolArray,
    probs: DoubleArray,
    image_names: ImageNames | None,
    *,
    is_multiclass: bool,
) -> list[Mistake]:
    """List the most confident mistakes: per image for multi-class, per image and class for multilabel."""
    if is_multiclass:
        rows = np.flatnonzero((targets != predicted).any(axis=1))
        other_class, true = predicted[rows].argmax(axis=1), targets[rows].argmax(axis=1)
        scores = probs[rows, other_class]
        return [
            Mistake(
                **name_fields(int(rows[entry]), image_names),
                kind="classification",
                predicted=classes[other_class[entry]],
                true=classes[true[entry]],
                score=float(scores[entry]),
            )
            for entry in highest(scores)
        ]
    rows, labels = np.nonzero(targets != predicted)
    missed = targets[rows, labels]
    scores = np.where(missed, 1 - probs[rows, labels], probs[rows, labels])
    return [
        Mistake(
            **name_fields(int(rows[entry]), image_names),
            kind="overlooked" if missed[entry] else "superfluous",
            predicted="" if missed[entry] else classes[labels[entry]],
            true=classes[labels[entry]] if missed[entry] else "",
            score=float(scores[entry]),
        )
        for entry in highest(scores)
    ]


def worst_images(
    targets: BoolArray,
    predicted: BoolArray,
    probs: DoubleArray,
    image_names: ImageNames | None,
    *,
    is_multiclass: bool,
) -> list[WorstImage]:
    """List the images with a mistake by loss, the highest first."""
    rows_with_mistake = np.flatnonzero((targets != predicted).any(axis=1))
    likelihood = np.where(targets, probs, 1.0 if is_multiclass else 1 - probs)[rows_with_mistake].clip(_TINY)
    losses = -np.log(likelihood)
    loss = losses.sum(axis=1) if is_multiclass else losses.mean(axis=1)
    entries = []
    for entry in highest(loss):
        row = int(rows_with_mistake[entry])
        right = int((targets[row] & predicted[row]).sum())
        wrong = int((predicted[row] & ~targets[row]).sum())
        missed = int((targets[row] & ~predicted[row]).sum())
        entries.append(
            WorstImage(
                **name_fields(row, image_names),
                loss=float(loss[entry]),
                right=right,
                wrong=wrong,
                missed=missed,
                f1=2 * right / (2 * right + wrong + missed),
            )
        )
    return entries


def label_issues(
    classes: Sequence[str], targets: IntArray, probs: DoubleArray, image_names: ImageNames | None
) -> list[LabelIssue]:
    """List likely label errors by confident learning (Northcutt et al., JAIR 2021, section 3.1).

    A class is seen in an image if its probability is at least its mean probability in the images labelled
    with it. The most probable seen class is suggested if it differs from the label and its probability is
    above 0.5, which ignores the guesses of poor models. Entries are sorted by the probability of the
    suggestion minus that of the label; their score is the suggestion's probability.

    Args:
        targets: class indices [n].
    """
    one_hot = np.equal.outer(targets, np.arange(len(classes)))
    is_seen = probs >= _class_confidence(one_hot, probs)
    suggested = np.where(is_seen, probs, -1.0).argmax(axis=1)
    rows = np.flatnonzero(is_seen.any(axis=1) & (suggested != targets))
    margin = probs[rows, suggested[rows]] - probs[rows, targets[rows]]
    rows = rows[np.argsort(-margin, kind="stable")]
    rows = rows[probs[rows, suggested[rows]] > 0.5]
    return [
        LabelIssue(
            **name_fields(row, image_names),
            kind="wrong class",
            given=classes[targets[row]],
            suggested=classes[suggested[row]],
            score=float(probs[row, suggested[row]]),
        )
        for row in rows[:MAX_LISTED].tolist()
    ]


def multilabel_issues(
    classes: Sequence[str], targets: BoolArray, probs: DoubleArray, image_names: ImageNames | None
) -> list[LabelIssue]:
    """List labels that are likely missing or superfluous, by confident learning applied to each class.

    A class is likely present (absent) if its probability is at least (at most) its mean in the images with
    (without) it, and above (below) 0.5.
    """
    present = _class_confidence(targets, probs)
    absent = 1 - _class_confidence(~targets, 1 - probs)
    missing = ~targets & (probs >= present) & (probs > 0.5)
    superfluous = targets & (probs <= absent) & (probs < 0.5)
    rows, labels = np.nonzero(missing | superfluous)
    scores = np.where(missing[rows, labels], probs[rows, labels], 1 - probs[rows, labels])
    is_missing = missing[rows, labels]
    return [
        LabelIssue(
            **name_fields(int(rows[entry]), image_names),
            kind="missing" if is_missing[entry] else "superfluous",
            given="" if is_missing[entry] else classes[labels[entry]],
            suggested=classes[labels[entry]] if is_missing[entry] else "",
            score=float(scores[entry]),
        )
        for entry in highest(scores)
    ]


def _class_confidence(targets: BoolArray, probs: DoubleArray) -> DoubleArray:
    """The mean probability of each class in its images, [C]; ∞ if it has none."""
    support = targets.sum(axis=0)
    sums = np.where(targets, probs, 0).sum(axis=0)
    confidence: DoubleArray = np.divide(sums, support, out=np.full(len(support), np.inf), where=support > 0)
    return confidence
