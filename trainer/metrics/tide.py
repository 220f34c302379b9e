"""What each kind of error costs in mean average precision (TIDE: Bolya et al., ECCV 2020, section 2.3).

The cost of a kind is the mean average precision after fixing only its errors, minus the actual one. Fixes:

- classification, localisation: the prediction gets the target's class or box; it is dropped if the target is
  already found, or found by a fixed prediction of a higher score;
- both, duplicate, background: the prediction is dropped;
- missed: the target is dropped;
- false positives: all of them are dropped; false negatives: all targets that are not found are dropped.

Average precision is that of trainer.metrics.voc, so the costs are in the unit of mean_average_precision;
TIDE's own program samples the curve at 101 points and matches as COCO does. Costs do not add up to what is
missing from 1, since fixing one kind changes how much the others matter.
"""

from __future__ import annotations

import numpy as np

from trainer.annotations import BoolArray, IntArray
from trainer.metrics import voc
from trainer.metrics.matching import CLASSIFICATION, CORRECT, KINDS, LOCALISATION, NONE, Matches
from trainer.metrics.results import ErrorKind


def split(matches: Matches, classes: int) -> list[ErrorKind]:
    """Compute count and cost of the six kinds of errors, and of all false positives and false negatives."""
    objects = np.bincount(matches.target_labels, minlength=classes)
    all_kept = np.ones(len(matches.images), dtype=np.bool_)

    def mean_precision(
        kept: BoolArray, labels: IntArray = matches.labels, outcomes: IntArray = matches.outcomes
    ) -> float:
        return voc.mean(_precisions(matches, labels, outcomes, kept, objects))

    actual = mean_precision(all_kept)

    def entry(kind: str, count: int, fixed: float) -> ErrorKind:
        # Without any object there is nothing to gain.
        cost = fixed - actual if voc.UNDEFINED not in (actual, fixed) else 0.0
        return ErrorKind(kind=kind, count=count, cost=cost)

    entries = []
    for number, kind in enumerate(KINDS):
        of_kind = matches.kinds == number
        if number in (CLASSIFICATION, LOCALISATION):
            fixed = mean_precision(*_fixed(matches, of_kind))
        else:
            fixed = mean_precision(~of_kind)
        entries.append(entry(kind, int(of_kind.sum()), fixed))
    is_correct = matches.kinds == CORRECT
    false_positives = entry("false positives", int((~is_correct).sum()), mean_precision(is_correct))
    missed, false_negatives = (
        entry(kind, int(dropped.sum()), _without_targets(matches, dropped, objects))
        for kind, dropped in (("missed", matches.missed), ("false negatives", matches.found_by == NONE))
    )
    return [*entries, missed, false_positives, false_negatives]


def _fixed(matches: Matches, of_kind: BoolArray) -> tuple[BoolArray, IntArray, IntArray]:
    """Which predictions are kept, and the labels and outcomes, after fixing errors that have a target."""
    kept, labels, outcomes = ~of_kind, matches.labels.copy(), matches.outcomes
    errors = np.flatnonzero(of_kind)
    errors = errors[matches.found_by[matches.matched_targets[errors]] == NONE]
    errors = errors[np.argsort(-matches.scores[errors], kind="stable")]
    _, first = np.unique(matches.matched_targets[errors], return_index=True)
    fixed = errors[first]
    labels[fixed] = matches.target_labels[matches.matched_targets[fixed]]
    outcomes[fixed] = voc.TRUE_POSITIVE
    kept[fixed] = True
    return kept, labels, outcomes


def _without_targets(matches: Matches, dropped: BoolArray, objects: IntArray) -> float:
    """The mean average precision if some targets are dropped, bool [M].

    A class that loses all its targets has an average precision of 1 if it is never predicted, else 0.
    """
    remaining = objects - np.bincount(matches.target_labels[dropped], minlength=len(objects))
    all_kept = np.ones(len(matches.images), dtype=np.bool_)
    values = _precisions(matches, matches.labels, matches.outcomes, all_kept, remaining)
    for label in np.flatnonzero((remaining == 0) & (objects > 0)).tolist():
        values[label] = float(not (matches.labels == label).any())
    return voc.mean(values)


def _precisions(
    matches: Matches, labels: IntArray, outcomes: IntArray, kept: BoolArray, objects: IntArray
) -> list[float]:
    """The average precision of each class; `objects` is the number of targets of each class, [C]."""
    by_class = voc.by_class(matches.scores[kept], labels[kept], outcomes[kept], objects)
    return [each.average_precision for each in by_class]
