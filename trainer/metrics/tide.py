"""What each kind of error costs in mean average precision (TIDE: Bolya et al., ECCV 2020, section 2.3).

The cost of a kind is the mean average precision after mending its errors alone, less what it is:

- classification: the prediction gets the class of the object, localisation: it gets its box; either way it is
  dropped if the object is found already, or by a mended error of a higher score;
- both, duplicate, background: the prediction is dropped;
- missed: the object is not asked for;
- false positives: all of them are dropped; false negatives: objects not found are not asked for.

Average precision is that of `trainer.metrics.voc`, so the costs are in the unit of mean_average_precision;
TIDE's own program samples the curve at 101 points instead, and its matching is COCO's. Costs of single kinds
do not add up to what is missing from 1, as mending one kind lets others matter more or less.
"""

from __future__ import annotations

import numpy as np

from trainer.annotations import BoolArray, IntArray
from trainer.metrics import voc
from trainer.metrics.matching import CLASSIFICATION, CORRECT, KINDS, LOCALISATION, NONE, Matches
from trainer.metrics.results import ErrorKind


def split(matches: Matches, classes: int) -> list[ErrorKind]:
    """The six kinds, then false positives and false negatives, with what each costs."""
    objects = np.bincount(matches.target_labels, minlength=classes)
    everything = np.ones(len(matches.image), dtype=np.bool_)
    before = _mean_precision(matches, matches.labels, matches.outcomes, everything, objects)

    def entry(kind: str, count: int, after: float) -> ErrorKind:
        # without any object there is nothing to gain
        cost = after - before if voc.UNDEFINED not in (before, after) else 0.0
        return ErrorKind(kind=kind, count=count, cost=cost)

    found = []
    for number, kind in enumerate(KINDS):
        of_kind = matches.kinds == number
        if number in (CLASSIFICATION, LOCALISATION):
            labels, outcomes, kept = _mended(matches, of_kind)
        else:
            labels, outcomes, kept = matches.labels, matches.outcomes, ~of_kind
        after = _mean_precision(matches, labels, outcomes, kept, objects)
        found.append(entry(kind, int(of_kind.sum()), after))
    for kind, lost in (("missed", matches.missed), ("false negatives", matches.found_by == NONE)):
        asked = objects - np.bincount(matches.target_labels[lost], minlength=classes)
        after = _mean_precision(matches, matches.labels, matches.outcomes, everything, asked, of=objects)
        found.append(entry(kind, int(lost.sum()), after))
    right = matches.kinds == CORRECT
    after = _mean_precision(matches, matches.labels, matches.outcomes, right, objects)
    found.insert(-1, entry("false positives", int((~right).sum()), after))
    return found


def _mended(matches: Matches, of_kind: BoolArray) -> tuple[IntArray, IntArray, BoolArray]:
    """Labels, verdicts and which predictions are kept, after mending errors that have an object."""
    labels, outcomes, kept = matches.labels.copy(), matches.outcomes, ~of_kind
    wrong = np.flatnonzero(of_kind)
    wrong = wrong[matches.found_by[matches.matched_targets[wrong]] == NONE]
    wrong = wrong[np.argsort(-matches.scores[wrong], kind="stable")]
    _, first = np.unique(matches.matched_targets[wrong], return_index=True)
    mended = wrong[first]
    labels[mended] = matches.target_labels[matches.matched_targets[mended]]
    outcomes[mended] = voc.TRUE_POSITIVE
    kept[mended] = True
    return labels, outcomes, kept


def _mean_precision(
    matches: Matches,
    labels: IntArray,
    outcomes: IntArray,
    kept: BoolArray,
    objects: IntArray,
    of: IntArray | None = None,
) -> float:
    """The mean average precision over the classes.

    of: objects [C] there were before some were struck off. A class of which all were struck off has a
        precision of 1 if nothing is predicted to be of it, else 0.
    """
    values = []
    for label, count in enumerate(objects.tolist()):
        rows = np.flatnonzero(kept & (labels == label))
        if not count and of is not None and of[label]:
            values.append(float(not len(rows)))
            continue
        curve = voc.curve(matches.scores[rows], outcomes[rows], count)
        values.append(voc.summarize(curve, count).average_precision)
    return voc.mean(values)
