"""Curves, thresholds and lists of errors for detection and segmentation; TIDE's errors are in `tide`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trainer.annotations import BoolArray, FloatArray
from trainer.metrics import voc
from trainer.metrics.class_errors import MAX_LISTED
from trainer.metrics.curves import Line, as_curve, thinned
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
    ImageNames,
    LabelIssue,
    Mistake,
    Threshold,
    WorstImage,
    name_fields,
)

MISSED = "Missed"
DEFAULT_THRESHOLD = 0.5
"""Score threshold of classes without a best one, and of predictions that may question a label."""
_STEP = 1 / 500
_MAX_EXAMPLES = 12


def curves(
    matches: Matches, classes: Sequence[str]
) -> tuple[dict[str, list[Curve]], dict[str, Threshold], dict[str, dict[str, float]]]:
    """Compute curves and thresholds of each class.

    Returns:
        Curves precision_recall and f1 of each class with objects and predictions; the threshold of highest F1
        of each such class; and the number of `objects` and `predictions` of every class. The threshold is
        midway between the lowest score to keep and the next lower one, so that small changes of scores do not
        matter; of several best thresholds, it is the highest.
    """
    curves_by_kind: dict[str, list[Curve]] = {"precision_recall": [], "f1": []}
    thresholds, counts = {}, {}
    for label, name in enumerate(classes):
        rows = np.flatnonzero(matches.labels == label)
        objects = int((matches.target_labels == label).sum())
        counts[name] = {"objects": float(objects), "predictions": float(len(rows))}
        if not objects or not len(rows):
            continue
        scores = np.sort(matches.scores[rows].astype(np.float64))[::-1]
        precision, recall = voc.curve(matches.scores[rows], matches.outcomes[rows], objects)
        last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])  # last of equal scores
        scores, precision, recall = scores[last], precision[last], recall[last]
        f1 = 2 * recall * objects / (objects + last + 1)
        line = Line(np.r_[0.0, recall], np.r_[precision[0], precision], np.r_[np.nan, scores])
        curves_by_kind["precision_recall"].append(as_curve(name, thinned(line, _STEP)))
        thin = thinned(Line(scores[::-1], f1[::-1], scores[::-1]), _STEP)
        curves_by_kind["f1"].append(Curve(name=name, x=thin.x.tolist(), y=thin.y.tolist()))
        best = int(f1.argmax())
        if f1[best] > 0:
            below = scores[best + 1] if best + 1 < len(scores) else scores[best]
            thresholds[name] = Threshold(
                score=float((scores[best] + below) / 2),
                f1=float(f1[best]),
                precision=float(precision[best]),
                recall=float(recall[best]),
            )
    return curves_by_kind, thresholds, counts


def at_thresholds(
    matches: Matches, classes: Sequence[str], thresholds: Mapping[str, float]
) -> dict[str, Threshold]:
    """Compute the metrics of classes at given thresholds."""
    entries = {}
    for label, name in enumerate(classes):
        if name not in thresholds:
            continue
        rows = (matches.labels == label) & (matches.scores >= thresholds[name])
        objects, predictions = int((matches.target_labels == label).sum()), int(rows.sum())
        right = int((matches.kinds[rows] == CORRECT).sum())
        entries[name] = Threshold(
            score=thresholds[name],
            f1=2 * right / (objects + predictions) if objects else voc.UNDEFINED,
            precision=right / predictions if predictions else voc.UNDEFINED,
            recall=right / objects if objects else voc.UNDEFINED,
        )
    return entries


def of_size(matches: Matches, classes: int, smallest: float, largest: float) -> tuple[int, dict[str, float]]:
    """Count the objects of an area in [smallest, largest) pixels, and compute the metrics on them.

    As in COCO, true positives on objects of another size and false positives of another size are left out.
    """
    inside = (matches.target_areas >= smallest) & (matches.target_areas < largest)
    counted = (matches.areas >= smallest) & (matches.areas < largest)
    right = matches.kinds == CORRECT
    counted[right] = inside[matches.matched_targets[right]]
    objects = np.bincount(matches.target_labels[inside], minlength=classes)
    by_class = voc.by_class(
        matches.scores[counted], matches.labels[counted], matches.outcomes[counted], objects
    )
    return int(inside.sum()), voc.means(by_class)


def image_level(matches: Matches) -> tuple[dict[str, float], list[Curve]]:
    """Evaluate whether images hold any object: average_precision, precision and recall, and their curve.

    At a score threshold, an image is a true positive if it has a true positive of any class, and a false
    positive if it has only false positives.
    """
    images = len(np.unique(matches.target_images))
    count = int(max(matches.images.max(initial=-1), matches.target_images.max(initial=-1))) + 1
    right = matches.kinds == CORRECT
    true, false = (np.full(count, -np.inf) for _ in range(2))
    np.maximum.at(true, matches.images[right], matches.scores[right])
    np.maximum.at(false, matches.images[~right], matches.scores[~right])
    scores = np.unique(matches.scores.astype(np.float64))[::-1]
    hits = _at_least(true, scores)
    # An image is a false positive down to the score of its first true positive.
    wrong = _at_least(false, scores) - _at_least(np.minimum(true, false), scores)
    recall = hits / images if images else np.full(len(hits), np.nan)
    with np.errstate(invalid="ignore"):
        precision = hits / (hits + wrong)
    metrics = voc.summarize(voc.Curve(precision, recall), images)._asdict()
    if not images or not len(scores):
        return metrics, []
    line = Line(np.r_[0.0, recall], np.r_[precision[0], precision], np.r_[np.nan, scores])
    return metrics, [as_curve("image_level", thinned(line, _STEP))]


def confusion_matrices(matches: Matches, classes: Sequence[str]) -> list[ConfusionMatrix]:
    """Confusion matrices of objects matched regardless of class, at score thresholds 0.0, 0.1 … 0.9."""
    matrices = []
    for tenth in range(10):
        threshold = tenth / 10
        counts = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
        is_seen = (matches.predicted_as != NONE) & (matches.predicted_score >= threshold)
        np.add.at(counts, (matches.target_labels, np.where(is_seen, matches.predicted_as, len(classes))), 1)
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
    """Find classes taken for another, by predictions of at least min(best threshold of their class, 0.5)."""
    is_confident = matches.scores >= _best_thresholds(matches, classes, thresholds).clip(
        max=DEFAULT_THRESHOLD
    )
    errors = np.flatnonzero(is_confident & (matches.kinds == CLASSIFICATION))
    true, predicted = matches.target_labels[matches.matched_targets[errors]], matches.labels[errors]
    pairs, which = np.unique(np.stack([true, predicted], axis=1), axis=0, return_inverse=True)
    objects = np.bincount(matches.target_labels, minlength=len(classes))
    entries = []
    for number, (of, taken_for) in enumerate(pairs.tolist()):
        rows = errors[which.ravel() == number]
        count = len(np.unique(matches.matched_targets[rows]))
        most_confident = matches.images[rows[np.argsort(-matches.scores[rows], kind="stable")]].tolist()
        entries.append(
            ConfusedPair(
                true=classes[of],
                predicted=classes[taken_for],
                count=count,
                share=float(count / objects[of]),
                images=list(dict.fromkeys(most_confident))[:_MAX_EXAMPLES],
            )
        )
    return sorted(entries, key=lambda pair: -pair.count)[:MAX_LISTED]


def mistakes(matches: Matches, classes: Sequence[str], image_names: ImageNames | None) -> list[Mistake]:
    """List the false positives of the highest scores."""
    wrong = np.flatnonzero(matches.kinds != CORRECT)
    entries = []
    for row in wrong[np.argsort(-matches.scores[wrong], kind="stable")][:MAX_LISTED].tolist():
        target = int(matches.matched_targets[row])
        entries.append(
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
    return entries


def worst_images(
    matches: Matches,
    images: int,
    classes: Sequence[str],
    thresholds: dict[str, Threshold],
    image_names: ImageNames | None,
) -> list[WorstImage]:
    """List the images of lowest F1 at the classes' best thresholds; of ties, those with most errors first."""
    is_confident = matches.scores >= _best_thresholds(matches, classes, thresholds)
    right = np.bincount(matches.images[is_confident & (matches.kinds == CORRECT)], minlength=images)
    wrong = np.bincount(matches.images[is_confident & (matches.kinds != CORRECT)], minlength=images)
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
        for image in order[errors[order] > 0][:MAX_LISTED].tolist()
    ]


def label_issues(
    matches: Matches, classes: Sequence[str], image_names: ImageNames | None
) -> list[LabelIssue]:
    """List likely label errors, the most confident first.

    They come from predictions with a score of at least 0.5 for which at least half of the predictions of the
    class with at least this score are correct. They are on an object of another class that no prediction of
    its own class matches ("wrong class"), where nothing is labelled ("missing"), or near an unmatched object
    of their class ("badly placed").
    """
    kinds = {CLASSIFICATION: "wrong class", BACKGROUND: "missing", LOCALISATION: "badly placed"}
    is_confident = (matches.scores >= DEFAULT_THRESHOLD) & _is_class_reliable(matches, len(classes))
    rows = np.flatnonzero(is_confident & np.isin(matches.kinds, list(kinds)))
    entries: list[LabelIssue] = []
    reported = set()
    for row in rows[np.argsort(-matches.scores[rows], kind="stable")].tolist():
        target = int(matches.matched_targets[row])
        if target != NONE and (matches.found_by[target] != NONE or target in reported):
            continue
        reported.add(target)
        entries.append(
            LabelIssue(
                **name_fields(int(matches.images[row]), image_names),
                kind=kinds[int(matches.kinds[row])],
                given="" if target == NONE else classes[matches.target_labels[target]],
                suggested=classes[matches.labels[row]],
                score=float(matches.scores[row]),
                box=_box(matches.boxes[row]),
                given_box=None if target == NONE else _box(matches.target_boxes[target]),
            )
        )
        if len(entries) == MAX_LISTED:
            break
    return entries


def _is_class_reliable(matches: Matches, classes: int) -> BoolArray:
    """Whether at least half of a class's predictions with at least the same score are correct, bool [N]."""
    trusted = np.zeros(len(matches.images), dtype=np.bool_)
    for label in range(classes):
        rows = np.flatnonzero(matches.labels == label)
        rows = rows[np.argsort(-matches.scores[rows], kind="stable")]
        right = np.cumsum(matches.kinds[rows] == CORRECT)
        trusted[rows] = 2 * right >= np.arange(1, len(rows) + 1)
    return trusted


def _best_thresholds(
    matches: Matches, classes: Sequence[str], thresholds: dict[str, Threshold]
) -> FloatArray:
    """The best threshold of each prediction's class [N]."""
    values = [thresholds[name].score if name in thresholds else DEFAULT_THRESHOLD for name in classes]
    return np.array(values, dtype=np.float32)[matches.labels]


def _at_least(values: DoubleArray, scores: DoubleArray) -> DoubleArray:
    """The number of values that reach each of the scores [k]."""
    ordered = np.sort(values)
    return (len(ordered) - np.searchsorted(ordered, scores, side="left")).astype(np.float64)


def _box(box: FloatArray) -> Box:
    left, top, right, bottom = (float(side) for side in box)
    return left, top, right, bottom
