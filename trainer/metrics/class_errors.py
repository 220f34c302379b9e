"""What goes wrong in classification: confused pairs, confident mistakes, worst images, likely label errors.

Arrays are truths bool [n, C], predicted bool [n, C] and probs [n, C]; an image is its row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, IntArray
from trainer.metrics.image_names import ImageNames, name_fields
from trainer.metrics.results import ConfusedPair, LabelIssue, Mistake, WorstImage

DoubleArray = npt.NDArray[np.float64]

LISTED = 100
"""Entries of each list at most."""
_EXAMPLES = 12
_TINY = 1e-12


def confused_pairs(
    classes: Sequence[str], targets: BoolArray, predicted: BoolArray, probs: DoubleArray
) -> list[ConfusedPair]:
    """Pairs by how often the first was taken for the second, the most frequent first.

    In multi-label, an image counts for a pair if it shows the first class, which was overlooked, and not the
    second, which was named.
    """
    overlooked, superfluous = targets & ~predicted, predicted & ~targets
    counts = overlooked.T.astype(np.int64) @ superfluous.astype(np.int64)
    pairs = np.argwhere(counts)
    by_count = np.argsort(-counts[tuple(pairs.T)], kind="stable")[:LISTED]
    found = []
    for true, taken_for in pairs[by_count].tolist():
        rows = np.flatnonzero(overlooked[:, true] & superfluous[:, taken_for])
        surest = rows[np.argsort(-probs[rows, taken_for], kind="stable")]
        found.append(
            ConfusedPair(
                true=classes[true],
                predicted=classes[taken_for],
                count=len(rows),
                share=float(len(rows) / targets[:, true].sum()),
                images=surest[:_EXAMPLES].tolist(),
            )
        )
    return found


def mistakes(
    classes: Sequence[str],
    targets: BoolArray,
    predicted: BoolArray,
    probs: DoubleArray,
    image_names: ImageNames | None,
    *,
    is_multiclass: bool,
) -> list[Mistake]:
    """The most confident mistakes. single: each image has one class, else each class is a decision."""
    found = []
    if is_multiclass:
        rows = np.flatnonzero((targets != predicted).any(axis=1))
        taken_for, true = predicted[rows].argmax(axis=1), targets[rows].argmax(axis=1)
        scores = probs[rows, taken_for]
        for entry in np.argsort(-scores, kind="stable")[:LISTED].tolist():
            found.append(
                Mistake(
                    **name_fields(int(rows[entry]), image_names),
                    kind="classification",
                    predicted=classes[taken_for[entry]],
                    true=classes[true[entry]],
                    score=float(scores[entry]),
                )
            )
        return found
    rows, labels = np.nonzero(targets != predicted)
    scores = np.where(targets[rows, labels], 1 - probs[rows, labels], probs[rows, labels])
    for entry in np.argsort(-scores, kind="stable")[:LISTED].tolist():
        name = classes[labels[entry]]
        overlooked = bool(targets[rows[entry], labels[entry]])
        found.append(
            Mistake(
                **name_fields(int(rows[entry]), image_names),
                kind="overlooked" if overlooked else "superfluous",
                predicted="" if overlooked else name,
                true=name if overlooked else "",
                score=float(scores[entry]),
            )
        )
    return found


def worst_images(
    targets: BoolArray,
    predicted: BoolArray,
    probs: DoubleArray,
    image_names: ImageNames | None,
    *,
    is_multiclass: bool,
) -> list[WorstImage]:
    """The images of the highest loss among those with a mistake."""
    wrong_ones = np.flatnonzero((targets != predicted).any(axis=1))
    likelihood = np.where(targets, probs, 1.0 if is_multiclass else 1 - probs)[wrong_ones].clip(_TINY)
    losses = -np.log(likelihood)
    loss = losses.sum(axis=1) if is_multiclass else losses.mean(axis=1)
    found = []
    for entry in np.argsort(-loss, kind="stable")[:LISTED].tolist():
        row = int(wrong_ones[entry])
        right = int((targets[row] & predicted[row]).sum())
        wrong = int((predicted[row] & ~targets[row]).sum())
        missed = int((targets[row] & ~predicted[row]).sum())
        found.append(
            WorstImage(
                **name_fields(row, image_names),
                loss=float(loss[entry]),
                right=right,
                wrong=wrong,
                missed=missed,
                f1=2 * right / (2 * right + wrong + missed),
            )
        )
    return found


def label_issues(
    classes: Sequence[str], targets: IntArray, probs: DoubleArray, image_names: ImageNames | None
) -> list[LabelIssue]:
    """Images whose label is likely wrong, by confident learning (Northcutt et al., JAIR 2021, section 3.1).

    A class counts as seen in an image if its probability is at least the mean of those that images labelled
    so have; the most probable of these is suggested where it is not the label and its probability is over
    one half, lest the guesses of a poor model be taken for more. Sorted by the probability of the suggestion
    less that of the label; the score is the suggestion's probability.

    Args:
        truths: class indices [n].
    """
    one_hot = np.equal.outer(targets, np.arange(len(classes)))
    seen = probs >= _own_confidence(one_hot, probs)
    suggested = np.where(seen, probs, -1.0).argmax(axis=1)
    rows = np.flatnonzero(seen.any(axis=1) & (suggested != targets))
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
        for row in rows[:LISTED].tolist()
    ]


def multilabel_issues(
    classes: Sequence[str], targets: BoolArray, probs: DoubleArray, image_names: ImageNames | None
) -> list[LabelIssue]:
    """The same where each class is present or absent by itself: what is likely missing or superfluous.

    A class counts as seen (as not seen) if its probability is at least (at most) the mean of those of the
    images that have it (that have it not), and over (under) one half.
    """
    present = _own_confidence(targets, probs)
    absent = 1 - _own_confidence(~targets, 1 - probs)
    missing = ~targets & (probs >= present) & (probs > 0.5)
    superfluous = targets & (probs <= absent) & (probs < 0.5)
    rows, labels = np.nonzero(missing | superfluous)
    scores = np.where(missing[rows, labels], probs[rows, labels], 1 - probs[rows, labels])
    found = []
    for entry in np.argsort(-scores, kind="stable")[:LISTED].tolist():
        row, name = int(rows[entry]), classes[labels[entry]]
        is_missing = bool(missing[row, labels[entry]])
        found.append(
            LabelIssue(
                **name_fields(row, image_names),
                kind="missing" if is_missing else "superfluous",
                given="" if is_missing else name,
                suggested=name if is_missing else "",
                score=float(scores[entry]),
            )
        )
    return found


def _own_confidence(targets: BoolArray, probs: DoubleArray) -> DoubleArray:
    """[C]: the mean probability of each class in the images that have it; ∞ where none has."""
    support = targets.sum(axis=0)
    sums = np.where(targets, probs, 0).sum(axis=0)
    confidence: DoubleArray = np.divide(sums, support, out=np.full(len(support), np.inf), where=support > 0)
    return confidence
