"""What goes wrong in detection and segmentation, beside what TIDE counts: lists, matrices and thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trainer.annotations import BoolArray, FloatArray
from trainer.metrics import voc
from trainer.metrics.class_errors import LISTED
from trainer.metrics.curves import Line, as_curve, thinned
from trainer.metrics.image_names import ImageNames, name_fields
from trainer.metrics.matching import (
    BACKGROUND,
    CLASSIFICATION,
    CORRECT,
    KINDS,
    LOCALISATION,
    NONE,
    DoubleArray,
    Matches,
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

MISSED = "Missed"
USUAL_THRESHOLD = 0.5
"""Where a class has no best one; and from which on a prediction is sure enough to speak against a label."""
_STEP = 1 / 500
_EXAMPLES = 12


def curves(
    matches: Matches, classes: Sequence[str]
) -> tuple[dict[str, list[Curve]], dict[str, Threshold], dict[str, dict[str, float]]]:
    """For each class with objects its curves precision_recall and f1 and its best threshold.

    And for every class how many `objects` and `predictions` it has.

    The best threshold lies midway between the lowest score that is to be kept and the next one below, so that
    it bears small changes of scores; of several best ones it is the highest.
    """
    lines: dict[str, list[Curve]] = {"precision_recall": [], "f1": []}
    thresholds, counts = {}, {}
    for label, name in enumerate(classes):
        rows = np.flatnonzero(matches.labels == label)
        objects = int((matches.target_labels == label).sum())
        counts[name] = {"objects": float(objects), "predictions": float(len(rows))}
        if not objects or not len(rows):
            continue
        scores = np.sort(matches.scores[rows].astype(np.float64))[::-1]
        precision, recall = voc.curve(matches.scores[rows], matches.outcomes[rows], objects)
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
    matches: Matches, classes: Sequence[str], thresholds: Mapping[str, float]
) -> dict[str, Threshold]:
    """What each class has at a threshold given for it."""
    found = {}
    for label, name in enumerate(classes):
        if name not in thresholds:
            continue
        rows = (matches.labels == label) & (matches.scores >= thresholds[name])
        objects, predictions = int((matches.target_labels == label).sum()), int(rows.sum())
        right = int((matches.kinds[rows] == CORRECT).sum())
        found[name] = Threshold(
            score=thresholds[name],
            f1=2 * right / (objects + predictions) if objects else voc.UNDEFINED,
            precision=right / predictions if predictions else voc.UNDEFINED,
            recall=right / objects if objects else voc.UNDEFINED,
        )
    return found


def of_size(matches: Matches, classes: int, smallest: float, largest: float) -> tuple[int, dict[str, float]]:
    """How many objects have from `smallest` up to (less than) `largest` pixels, and the figures on these.

    As COCO has it, predictions that found an object of another size are left out, and wrong ones that are
    themselves of another size.
    """
    asked = (matches.target_areas >= smallest) & (matches.target_areas < largest)
    counted = (matches.areas >= smallest) & (matches.areas < largest)
    right = matches.kinds == CORRECT
    counted[right] = asked[matches.matched_targets[right]]
    objects = np.bincount(matches.target_labels[asked], minlength=classes)
    by_class = voc.by_class(
        matches.scores[counted], matches.labels[counted], matches.outcomes[counted], objects
    )
    return int(asked.sum()), voc.means(by_class)


def image_level(matches: Matches) -> tuple[dict[str, float], list[Curve]]:
    """Whether an image holds any object: average_precision, precision, recall, and the curve of the two.

    At a score an image is a true positive if it holds a true positive there, of whatever class, and a false
    positive if it holds only false ones.
    """
    images = len(np.unique(matches.target_images))
    count = int(max(matches.images.max(initial=-1), matches.target_images.max(initial=-1))) + 1
    right = matches.kinds == CORRECT
    true, false = (np.full(count, -np.inf) for _ in range(2))
    np.maximum.at(true, matches.images[right], matches.scores[right])
    np.maximum.at(false, matches.images[~right], matches.scores[~right])
    scores = np.unique(matches.scores.astype(np.float64))[::-1]
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


def confusion_matrices(matches: Matches, classes: Sequence[str]) -> list[ConfusionMatrix]:
    """True against predicted classes of objects, matched without regard to class, at 0.0, 0.1 … 0.9."""
    matrices = []
    for tenth in range(10):
        threshold = tenth / 10
        counts = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
        seen = (matches.predicted_as != NONE) & (matches.predicted_score >= threshold)
        np.add.at(counts, (matches.target_labels, np.where(seen, matches.predicted_as, len(classes))), 1)
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
    matches: Matches, classes: Sequence[str], thresholds: dict[str, Threshold]
) -> list[ConfusedPair]:
    """Classes taken for another by predictions of at least their class's best threshold, or 0.5 if lower."""
    sure = matches.scores >= _of_each(matches, classes, thresholds).clip(max=USUAL_THRESHOLD)
    errors = np.flatnonzero(sure & (matches.kinds == CLASSIFICATION))
    true, predicted = matches.target_labels[matches.matched_targets[errors]], matches.labels[errors]
    pairs, which = np.unique(np.stack([true, predicted], axis=1), axis=0, return_inverse=True)
    objects = np.bincount(matches.target_labels, minlength=len(classes))
    found = []
    for number, (of, taken_for) in enumerate(pairs.tolist()):
        rows = errors[which.ravel() == number]
        seen = len(np.unique(matches.matched_targets[rows]))
        surest = matches.images[rows[np.argsort(-matches.scores[rows], kind="stable")]].tolist()
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


def mistakes(matches: Matches, classes: Sequence[str], image_names: ImageNames | None) -> list[Mistake]:
    """The false positives of the highest scores."""
    wrong = np.flatnonzero(matches.kinds != CORRECT)
    found = []
    for row in wrong[np.argsort(-matches.scores[wrong], kind="stable")][:LISTED].tolist():
        target = int(matches.matched_targets[row])
        found.append(
            Mistake(
                **name_fields(int(matches.images[row]), image_names),
                kind=KINDS[matches.kinds[row]],
                predicted=classes[matches.labels[row]],
                true="" if target == NONE else classes[matches.target_labels[target]],
                score=float(matches.scores[row]),
                box=_box(matches.boxes[row]),
                overlap=float(matches.overlaps[row]),
            )
        )
    return found


def worst_images(
    matches: Matches,
    images: int,
    classes: Sequence[str],
    thresholds: dict[str, Threshold],
    image_names: ImageNames | None,
) -> list[WorstImage]:
    """The images with the lowest F1 at the classes' best thresholds, of equal ones those with most errors."""
    sure = matches.scores >= _of_each(matches, classes, thresholds)
    right = np.bincount(matches.images[sure & (matches.kinds == CORRECT)], minlength=images)
    wrong = np.bincount(matches.images[sure & (matches.kinds != CORRECT)], minlength=images)
    missed = np.bincount(matches.target_images, minlength=images) - right
    errors = wrong + missed
    f1 = 2 * right / np.maximum(2 * right + errors, 1)
    order = np.lexsort((np.arange(images), -errors, f1))
    return [
        WorstImage(
            **name_fields(image, image_names),
            right=int(right[image]),
            wrong=int(wrong[image]),
            missed=int(missed[image]),
            f1=float(f1[image]),
        )
        for image in order[errors[order] > 0][:LISTED].tolist()
    ]


def label_issues(
    matches: Matches, classes: Sequence[str], image_names: ImageNames | None
) -> list[LabelIssue]:
    """Where the model is sure of something that the labels do not say, the surest first.

    Of predictions with a score of at least 0.5, of which those of their class that are as sure are mostly
    right: those on an object of another class, which nothing found under its own ("wrong class"); those where
    nothing is labelled ("missing"); and those beside an object of their class that nothing found ("badly
    placed").
    """
    kinds = {CLASSIFICATION: "wrong class", BACKGROUND: "missing", LOCALISATION: "badly placed"}
    sure = (matches.scores >= USUAL_THRESHOLD) & _mostly_right(matches, len(classes))
    rows = np.flatnonzero(sure & np.isin(matches.kinds, list(kinds)))
    found: list[LabelIssue] = []
    told = set()
    for row in rows[np.argsort(-matches.scores[rows], kind="stable")].tolist():
        target = int(matches.matched_targets[row])
        if target != NONE and (matches.found_by[target] != NONE or target in told):
            continue
        told.add(target)
        kind = int(matches.kinds[row])
        name = classes[matches.labels[row]]
        found.append(
            LabelIssue(
                **name_fields(int(matches.images[row]), image_names),
                kind=kinds[kind],
                given="" if target == NONE else classes[matches.target_labels[target]],
                suggested=name,
                score=float(matches.scores[row]),
                box=_box(matches.boxes[row]),
                given_box=None if target == NONE else _box(matches.target_boxes[target]),
            )
        )
        if len(found) == LISTED:
            break
    return found


def _mostly_right(matches: Matches, classes: int) -> BoolArray:
    """Of each prediction whether at least half of those of its class that are as sure are right [N]."""
    trusted = np.zeros(len(matches.images), dtype=np.bool_)
    for label in range(classes):
        rows = np.flatnonzero(matches.labels == label)
        rows = rows[np.argsort(-matches.scores[rows], kind="stable")]
        right = np.cumsum(matches.kinds[rows] == CORRECT)
        trusted[rows] = 2 * right >= np.arange(1, len(rows) + 1)
    return trusted


def _of_each(matches: Matches, classes: Sequence[str], thresholds: dict[str, Threshold]) -> FloatArray:
    """For each prediction the best threshold of its class [N]."""
    values = [thresholds[name].score if name in thresholds else USUAL_THRESHOLD for name in classes]
    return np.array(values, dtype=np.float32)[matches.labels]


def _at_least(values: DoubleArray, scores: DoubleArray) -> DoubleArray:
    """For each of falling scores [k] how many of the values are at least it."""
    ordered = np.sort(values)
    return (len(ordered) - np.searchsorted(ordered, scores, side="left")).astype(np.float64)


def _box(box: FloatArray) -> Box:
    left, top, right, bottom = (float(side) for side in box)
    return left, top, right, bottom
