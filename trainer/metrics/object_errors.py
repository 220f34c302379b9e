"""What goes wrong in detection and segmentation, beside what TIDE counts: lists, matrices and thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trainer.annotations import BoolArray, FloatArray
from trainer.metrics import voc
from trainer.metrics.class_errors import LISTED
from trainer.metrics.curves import Line, as_curve, thinned
from trainer.metrics.matching import (
    BACKGROUND,
    CLASSIFICATION,
    KINDS,
    LOCALISATION,
    NONE,
    RIGHT,
    DoubleArray,
    Judged,
)
from trainer.metrics.results import (
    Box,
    ConfusedPair,
    ConfusionMatrix,
    Curve,
    LabelIssue,
    Mistake,
    Threshold,
    WorstImage,
)
from trainer.metrics.sources import Sources, place

MISSED = "Missed"
USUAL_THRESHOLD = 0.5
"""Where a class has no best one; and from which on a prediction is sure enough to speak against a label."""
_STEP = 1 / 500
_EXAMPLES = 12


def curves(
    judged: Judged, classes: Sequence[str]
) -> tuple[dict[str, list[Curve]], dict[str, Threshold], dict[str, dict[str, float]]]:
    """For each class with objects its curves precision_recall and f1 and its best threshold.

    And for every class how many `objects` and `predictions` it has.

    The best threshold lies midway between the lowest score that is to be kept and the next one below, so that
    it bears small changes of scores; of several best ones it is the highest.
    """
    lines: dict[str, list[Curve]] = {"precision_recall": [], "f1": []}
    thresholds, counts = {}, {}
    for label, name in enumerate(classes):
        rows = np.flatnonzero(judged.labels == label)
        objects = int((judged.true_labels == label).sum())
        counts[name] = {"objects": float(objects), "predictions": float(len(rows))}
        if not objects or not len(rows):
            continue
        scores = np.sort(judged.scores[rows].astype(np.float64))[::-1]
        precision, recall = voc.curve(judged.scores[rows], judged.verdicts[rows], objects)
        last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])  # of equal scores
        scores, precision, recall = scores[last], precision[last], recall[last]
        f1 = 2 * recall * objects / (objects + last + 1)
        line = Line(np.r_[0.0, recall], np.r_[precision[0], precision], np.r_[np.nan, scores])
        lines["precision_recall"].append(as_curve(name, thinned(line, _STEP)))
        thin = thinned(Line(scores[::-1], f1[::-1], scores[::-1]), _STEP)
        lines["f1"].append(Curve(name=name, x=thin.x.tolist(), y=thin.y.tolist()))
        best = int(f1.argmax())
        if f1[best] > 0:
            below = scores[best + 1] if best + 1 < len(scores) else scores[best]
            thresholds[name] = Threshold(
                score=float((scores[best] + below) / 2),
                f1=float(f1[best]),
                precision=float(precision[best]),
                recall=float(recall[best]),
            )
    return lines, thresholds, counts


def at_thresholds(
    judged: Judged, classes: Sequence[str], thresholds: Mapping[str, float]
) -> dict[str, Threshold]:
    """What each class has at a threshold given for it."""
    found = {}
    for label, name in enumerate(classes):
        if name not in thresholds:
            continue
        rows = (judged.labels == label) & (judged.scores >= thresholds[name])
        objects, predictions = int((judged.true_labels == label).sum()), int(rows.sum())
        right = int((judged.kinds[rows] == RIGHT).sum())
        found[name] = Threshold(
            score=thresholds[name],
            f1=2 * right / (objects + predictions) if objects else voc.UNDEFINED,
            precision=right / predictions if predictions else voc.UNDEFINED,
            recall=right / objects if objects else voc.UNDEFINED,
        )
    return found


def of_size(judged: Judged, classes: int, smallest: float, largest: float) -> tuple[int, dict[str, float]]:
    """How many objects have from `smallest` up to (less than) `largest` pixels, and the figures on these.

    As COCO has it, predictions that found an object of another size are left out, and wrong ones that are
    themselves of another size.
    """
    asked = (judged.true_sizes >= smallest) & (judged.true_sizes < largest)
    counted = (judged.sizes >= smallest) & (judged.sizes < largest)
    right = judged.kinds == RIGHT
    counted[right] = asked[judged.targets[right]]
    objects = np.bincount(judged.true_labels[asked], minlength=classes)
    by_class = voc.by_class(judged.scores[counted], judged.labels[counted], judged.verdicts[counted], objects)
    return int(asked.sum()), voc.means(by_class)


def image_level(judged: Judged) -> tuple[dict[str, float], list[Curve]]:
    """Whether an image holds any object: average_precision, precision, recall, and the curve of the two.

    At a score an image is a true positive if it holds a true positive there, of whatever class, and a false
    positive if it holds only false ones.
    """
    images = len(np.unique(judged.true_image))
    count = int(max(judged.image.max(initial=-1), judged.true_image.max(initial=-1))) + 1
    right = judged.kinds == RIGHT
    true, false = (np.full(count, -np.inf) for _ in range(2))
    np.maximum.at(true, judged.image[right], judged.scores[right])
    np.maximum.at(false, judged.image[~right], judged.scores[~right])
    scores = np.unique(judged.scores.astype(np.float64))[::-1]
    hits = _at_least(true, scores)
    # a false positive up to the score of the image's first true one
    wrong = _at_least(false, scores) - _at_least(np.minimum(true, false), scores)
    recall = hits / images if images else np.full(len(hits), np.nan)
    with np.errstate(invalid="ignore"):
        precision = hits / (hits + wrong)
    figures = voc.summarize(voc.Curve(precision, recall), images)._asdict()
    if not images or not len(scores):
        return figures, []
    line = Line(np.r_[0.0, recall], np.r_[precision[0], precision], np.r_[np.nan, scores])
    return figures, [as_curve("image_level", thinned(line, _STEP))]


def confusion_matrices(judged: Judged, classes: Sequence[str]) -> list[ConfusionMatrix]:
    """True against predicted classes of objects, matched without regard to class, at 0.0, 0.1 … 0.9."""
    matrices = []
    for tenth in range(10):
        threshold = tenth / 10
        counts = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
        seen = (judged.seen_as != NONE) & (judged.seen_score >= threshold)
        np.add.at(counts, (judged.true_labels, np.where(seen, judged.seen_as, len(classes))), 1)
        matrices.append(
            ConfusionMatrix(
                rows=list(classes),
                columns=[*classes, MISSED],
                counts=counts.tolist(),
                score_threshold=threshold,
            )
        )
    return matrices


def confused_pairs(
    judged: Judged, classes: Sequence[str], thresholds: dict[str, Threshold]
) -> list[ConfusedPair]:
    """Classes taken for another by predictions of at least their class's best threshold, or 0.5 if lower."""
    sure = judged.scores >= _of_each(judged, classes, thresholds).clip(max=USUAL_THRESHOLD)
    errors = np.flatnonzero(sure & (judged.kinds == CLASSIFICATION))
    true, predicted = judged.true_labels[judged.targets[errors]], judged.labels[errors]
    pairs, which = np.unique(np.stack([true, predicted], axis=1), axis=0, return_inverse=True)
    objects = np.bincount(judged.true_labels, minlength=len(classes))
    found = []
    for number, (of, taken_for) in enumerate(pairs.tolist()):
        rows = errors[which.ravel() == number]
        seen = len(np.unique(judged.targets[rows]))
        surest = judged.image[rows[np.argsort(-judged.scores[rows], kind="stable")]].tolist()
        found.append(
            ConfusedPair(
                true=classes[of],
                predicted=classes[taken_for],
                count=seen,
                share=float(seen / objects[of]),
                images=list(dict.fromkeys(surest))[:_EXAMPLES],
            )
        )
    return sorted(found, key=lambda pair: -pair.count)[:LISTED]


def mistakes(judged: Judged, classes: Sequence[str], sources: Sources | None) -> list[Mistake]:
    """The false positives of the highest scores."""
    wrong = np.flatnonzero(judged.kinds != RIGHT)
    found = []
    for row in wrong[np.argsort(-judged.scores[wrong], kind="stable")][:LISTED].tolist():
        target = int(judged.targets[row])
        found.append(
            Mistake(
                **place(int(judged.image[row]), sources),
                kind=KINDS[judged.kinds[row]],
                predicted=classes[judged.labels[row]],
                true="" if target == NONE else classes[judged.true_labels[target]],
                score=float(judged.scores[row]),
                box=_box(judged.boxes[row]),
                overlap=float(judged.overlaps[row]),
            )
        )
    return found


def worst_images(
    judged: Judged,
    images: int,
    classes: Sequence[str],
    thresholds: dict[str, Threshold],
    sources: Sources | None,
) -> list[WorstImage]:
    """The images with the lowest F1 at the classes' best thresholds, of equal ones those with most errors."""
    sure = judged.scores >= _of_each(judged, classes, thresholds)
    right = np.bincount(judged.image[sure & (judged.kinds == RIGHT)], minlength=images)
    wrong = np.bincount(judged.image[sure & (judged.kinds != RIGHT)], minlength=images)
    missed = np.bincount(judged.true_image, minlength=images) - right
    errors = wrong + missed
    f1 = 2 * right / np.maximum(2 * right + errors, 1)
    order = np.lexsort((np.arange(images), -errors, f1))
    return [
        WorstImage(
            **place(image, sources),
            right=int(right[image]),
            wrong=int(wrong[image]),
            missed=int(missed[image]),
            f1=float(f1[image]),
        )
        for image in order[errors[order] > 0][:LISTED].tolist()
    ]


def label_issues(judged: Judged, classes: Sequence[str], sources: Sources | None) -> list[LabelIssue]:
    """Where the model is sure of something that the labels do not say, the surest first.

    Of predictions with a score of at least 0.5, of which those of their class that are as sure are mostly
    right: those on an object of another class, which nothing found under its own ("wrong class"); those where
    nothing is labelled ("missing"); and those beside an object of their class that nothing found ("badly
    placed").
    """
    kinds = {CLASSIFICATION: "wrong class", BACKGROUND: "missing", LOCALISATION: "badly placed"}
    sure = (judged.scores >= USUAL_THRESHOLD) & _mostly_right(judged, len(classes))
    rows = np.flatnonzero(sure & np.isin(judged.kinds, list(kinds)))
    found: list[LabelIssue] = []
    told = set()
    for row in rows[np.argsort(-judged.scores[rows], kind="stable")].tolist():
        target = int(judged.targets[row])
        if target != NONE and (judged.taken_by[target] != NONE or target in told):
            continue
        told.add(target)
        kind = int(judged.kinds[row])
        name = classes[judged.labels[row]]
        found.append(
            LabelIssue(
                **place(int(judged.image[row]), sources),
                kind=kinds[kind],
                given="" if target == NONE else classes[judged.true_labels[target]],
                suggested=name,
                score=float(judged.scores[row]),
                box=_box(judged.boxes[row]),
                given_box=None if target == NONE else _box(judged.true_boxes[target]),
            )
        )
        if len(found) == LISTED:
            break
    return found


def _mostly_right(judged: Judged, classes: int) -> BoolArray:
    """Of each prediction whether at least half of those of its class that are as sure are right [N]."""
    trusted = np.zeros(len(judged.image), dtype=np.bool_)
    for label in range(classes):
        rows = np.flatnonzero(judged.labels == label)
        rows = rows[np.argsort(-judged.scores[rows], kind="stable")]
        right = np.cumsum(judged.kinds[rows] == RIGHT)
        trusted[rows] = 2 * right >= np.arange(1, len(rows) + 1)
    return trusted


def _of_each(judged: Judged, classes: Sequence[str], thresholds: dict[str, Threshold]) -> FloatArray:
    """For each prediction the best threshold of its class [N]."""
    values = [thresholds[name].score if name in thresholds else USUAL_THRESHOLD for name in classes]
    return np.array(values, dtype=np.float32)[judged.labels]


def _at_least(values: DoubleArray, scores: DoubleArray) -> DoubleArray:
    """For each of falling scores [k] how many of the values are at least it."""
    ordered = np.sort(values)
    return (len(ordered) - np.searchsorted(ordered, scores, side="left")).astype(np.float64)


def _box(box: FloatArray) -> Box:
    left, top, right, bottom = (float(side) for side in box)
    return left, top, right, bottom
