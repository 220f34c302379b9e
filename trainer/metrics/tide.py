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
from trainer.metrics.matching import CLASSIFICATION, KINDS, LOCALISATION, NONE, RIGHT, Judged
from trainer.metrics.results import ErrorKind


def split(judged: Judged, classes: int) -> list[ErrorKind]:
    """The six kinds, then false positives and false negatives, with what each costs."""
    objects = np.bincount(judged.true_labels, minlength=classes)
    everything = np.ones(len(judged.image), dtype=np.bool_)
    before = _mean_precision(judged, judged.labels, judged.verdicts, everything, objects)

    def entry(kind: str, count: int, after: float) -> ErrorKind:
        # without any object there is nothing to gain
        cost = after - before if voc.UNDEFINED not in (before, after) else 0.0
        return ErrorKind(kind=kind, count=count, cost=cost)

    found = []
    for number, kind in enumerate(KINDS):
        of_kind = judged.kinds == number
        if number in (CLASSIFICATION, LOCALISATION):
            labels, verdicts, kept = _mended(judged, of_kind)
        else:
            labels, verdicts, kept = judged.labels, judged.verdicts, ~of_kind
        after = _mean_precision(judged, labels, verdicts, kept, objects)
        found.append(entry(kind, int(of_kind.sum()), after))
    for kind, lost in (("missed", judged.missed), ("false negatives", judged.taken_by == NONE)):
        asked = objects - np.bincount(judged.true_labels[lost], minlength=classes)
        after = _mean_precision(judged, judged.labels, judged.verdicts, everything, asked, of=objects)
        found.append(entry(kind, int(lost.sum()), after))
    right = judged.kinds == RIGHT
    after = _mean_precision(judged, judged.labels, judged.verdicts, right, objects)
    found.insert(-1, entry("false positives", int((~right).sum()), after))
    return found


def _mended(judged: Judged, of_kind: BoolArray) -> tuple[IntArray, IntArray, BoolArray]:
    """Labels, verdicts and which predictions are kept, after mending errors that have an object."""
    labels, verdicts, kept = judged.labels.copy(), judged.verdicts, ~of_kind
    wrong = np.flatnonzero(of_kind)
    wrong = wrong[judged.taken_by[judged.targets[wrong]] == NONE]
    wrong = wrong[np.argsort(-judged.scores[wrong], kind="stable")]
    _, first = np.unique(judged.targets[wrong], return_index=True)
    mended = wrong[first]
    labels[mended] = judged.true_labels[judged.targets[mended]]
    verdicts[mended] = voc.TRUE_POSITIVE
    kept[mended] = True
    return labels, verdicts, kept


def _mean_precision(
    judged: Judged,
    labels: IntArray,
    verdicts: IntArray,
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
        curve = voc.curve(judged.scores[rows], verdicts[rows], count)
        values.append(voc.summarize(curve, count).average_precision)
    return voc.mean(values)
