"""The report's galleries: right and wrong predictions beside the truth, and labels that are likely wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trainer.annotations import Classification, Detections, FloatArray, Objects
from trainer.data.reading.records import Records
from trainer.metrics import masks, matching
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.results import Analysis, LabelIssue
from trainer.report.embedded_images import Kind, Outline, Pictures, card, gallery, key, outlines_of
from trainer.report.markup import Html, Table, element, note, paragraph, place
from trainer.report.page import Folded, Page
from trainer.report.sections.data_overview import label_text
from trainer.tasks import Task

_WRONG, _RIGHT, _ISSUES = 12, 6, 8
_PAIRS_WRONG, _PAIRS_RIGHT = 8, 4
_LISTED = 100
_USUAL_THRESHOLD = _USUAL_IOU = 0.5


class Answers(Protocol):
    """What a model answered, one answer an image in the data's order; their readers have this form."""

    def classification(self, index: int, classes: Sequence[str]) -> Classification:
        """A classifier's answer as probabilities of these classes."""

    def detections(
        self, index: int, classes: Sequence[str], size: tuple[int, int]
    ) -> tuple[Detections, list[tuple[FloatArray, ...]]]:
        """A detector's answer without masks, and the polygons [points, 2] of each; size: (height, width)."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation with what it was made of; all of one order.

    Attributes:
        records: the images, and what is true of them.
        sizes: (height, width) of each image in pixels; empty for classification.
    """

    analysis: Analysis
    records: Records
    answers: Answers
    sizes: Sequence[tuple[int, int]] = ()


def add(page: Page, evaluated: Evaluated, pictures: Pictures) -> None:
    """Add the galleries and the list of likely label errors."""
    analysis = evaluated.analysis
    if analysis.task.has_boxes:
        wrong = [each.image for each in analysis.worst_images]
        right = _right_images(evaluated, set(wrong))[:_PAIRS_RIGHT] or wrong[::-1][:_PAIRS_RIGHT]
        drawn = _Beside(evaluated)
        legend = key("true", "hit", "wrong", "missed")
        said = paragraph(
            "Labels stand left, predictions right, at each class's best score threshold.", kind="note"
        )
        blocks = [drawn.card(index, pictures) for index in wrong[:_PAIRS_WRONG]]
        page.add(
            "Images with most mistakes", legend, said, gallery(blocks, pairs=True) or _nothing("No mistake.")
        )
        page.add("Images answered well", gallery([drawn.card(each, pictures) for each in right], pairs=True))
    else:
        page.add("Answered wrongly, the surest first", _wrong_classes(evaluated, pictures))
        page.add("Answered rightly", _right_classes(evaluated, pictures))
    page.add("Likely label errors", *_issues(evaluated, pictures))


def _nothing(said: str) -> Html:
    return paragraph(said)


def _wrong_classes(evaluated: Evaluated, pictures: Pictures) -> Html:
    cards: list[Html | None] = []
    seen: set[int] = set()
    for mistake in evaluated.analysis.mistakes:
        if mistake.image in seen or len(seen) == _WRONG:
            continue
        seen.add(mistake.image)
        true = label_text(evaluated.records, mistake.image)
        said = _said_of(evaluated, mistake.image)
        pane = pictures.pane(evaluated.records, mistake.image, alt=f"{true}, taken for {said}")
        where = place(mistake.location)
        verdict = element("span", f"answered {said}", class_="bad")
        cards.append(card([pane], verdict, f", labelled {true} · ", where))
    return gallery(cards) or _nothing("No mistake, or no picture that can be read.")


def _right_classes(evaluated: Evaluated, pictures: Pictures) -> Html:
    """Images answered rightly, one of each class in turn, the least sure first."""
    by_class: dict[str, list[tuple[float, int]]] = {}
    classes = tuple(evaluated.analysis.classes)
    for index in range(len(evaluated.records)):
        prediction = evaluated.answers.classification(index, classes)
        target = evaluated.records.target(index, classes)
        if isinstance(target, np.ndarray):
            right, score = bool(((prediction.probs >= 0.5) == target).all()), float(prediction.probs.max())
        else:
            assert isinstance(target, int), "it is a class index"
            right, score = int(prediction.probs.argmax()) == target, float(prediction.probs[target])
        if right:
            by_class.setdefault(label_text(evaluated.records, index), []).append((score, index))
    queues = [sorted(found) for found in by_class.values()]
    chosen: list[int] = []
    while queues and len(chosen) < _RIGHT:
        chosen += [queue.pop(0)[1] for queue in queues]
        queues = [queue for queue in queues if queue]
    cards = []
    for index in chosen[:_RIGHT]:
        said = _said_of(evaluated, index)
        pane = pictures.pane(evaluated.records, index, alt=f"Rightly answered {said}")
        where = place(evaluated.records.location(index))
        cards.append(card([pane], element("span", f"answered {said}", class_="good"), " · ", where))
    return gallery(cards) or _nothing("No image is answered rightly, or no picture can be read.")


def _said_of(evaluated: Evaluated, index: int) -> str:
    """A classifier's answer in words."""
    classes = evaluated.analysis.classes
    prediction = evaluated.answers.classification(index, classes)
    if evaluated.analysis.task is Task.MULTILABEL:
        named = [
            f"{classes[i]} {prediction.probs[i]:.2f}"
            for i in np.flatnonzero(prediction.probs >= 0.5).tolist()
        ]
        return ", ".join(named) or "no class"
    best = int(prediction.probs.argmax())
    return f"{classes[best]} {prediction.probs[best]:.2f}"


def _right_images(evaluated: Evaluated, wrong: set[int]) -> list[int]:
    """Images with objects and without a mistake."""
    if len(wrong) >= _LISTED:  # not all that are wrong are listed
        return []
    counts = np.diff(evaluated.records.starts)
    return [index for index in np.flatnonzero(counts > 0).tolist() if index not in wrong]


class _Beside:
    """Cards with the truth left and the predictions right."""

    def __init__(self, evaluated: Evaluated) -> None:
        self._of = evaluated
        analysis = evaluated.analysis
        self._least = [
            analysis.thresholds[name].score if name in analysis.thresholds else _USUAL_THRESHOLD
            for name in analysis.classes
        ]

    def card(self, index: int, pictures: Pictures) -> Html | None:
        of = self._of
        classes = of.analysis.classes
        target = of.records.target(index, tuple(classes))
        assert isinstance(target, Objects), "it is a detector's"
        found, missed = self._matched(index, target)
        labelled = outlines_of(target, classes, missed)
        where = of.records.location(index)
        right = sum(outline.kind == "hit" for outline in found)
        numbers = f"{right} right, {len(found) - right} wrong, {len(missed)} missed"
        panes = [
            pictures.pane(of.records, index, labelled, title="labelled", alt=f"{where} as it is labelled"),
            pictures.pane(
                of.records, index, found, title="predicted", alt=f"{where} as predicted: {numbers}"
            ),
        ]
        return card(panes, numbers, " · ", place(where))

    def _matched(self, index: int, target: Objects) -> tuple[list[Outline], dict[int, Kind]]:
        """The predictions that are sure enough, each hit or wrong; and the true objects that are missed."""
        analysis, size = self._of.analysis, self._of.sizes[index]
        classes, by_masks = analysis.classes, analysis.task is Task.SEGMENTATION
        found, polygons = self._of.answers.detections(index, classes, size)
        sure = np.flatnonzero(found.scores >= np.array(self._least, np.float32)[found.labels]).tolist()
        real = np.flatnonzero(~target.crowd)
        scene = EvaluatedImage(
            size=size,
            boxes=found.boxes[sure],
            labels=found.labels[sure],
            scores=found.scores[sure],
            target_boxes=target.boxes[real],
            target_labels=target.labels[real],
            crowd=target.crowd[real],
            masks=[masks.from_polygons(polygons[each], size) for each in sure] if by_masks else (),
            target_masks=[masks.from_polygons((target.polygons or ())[each], size) for each in real.tolist()]
            if by_masks
            else (),
        )
        matches = matching.match_objects([scene], analysis.iou_threshold or _USUAL_IOU, by_masks=by_masks)
        outlines = []
        for each, kind in zip(sure, matches.kinds.tolist(), strict=True):
            left, top, right, bottom = found.boxes[each].tolist()
            segments = tuple(tuple(map(float, segment.ravel())) for segment in polygons[each])
            text = f"{classes[int(found.labels[each])]} {float(found.scores[each]):.2f}"
            verdict: Kind = "hit" if kind == matching.CORRECT else "wrong"
            outlines.append(Outline((left, top, right, bottom), text, verdict, segments))
        lost = np.flatnonzero(matches.found_by == matching.NONE)
        return outlines, dict.fromkeys(real[lost].tolist(), "missed")


def _issues(evaluated: Evaluated, pictures: Pictures) -> list[object]:
    issues = evaluated.analysis.label_issues
    if not issues:
        return [paragraph("None: nowhere is the model sure of something that the labels do not say.")]
    said = note(
        "The model is sure of something else than the label says. That is worth a look, no more: it may as "
        "well be the model that is wrong."
    )
    rows = [
        (element("code", each.location), each.kind, each.given, each.suggested, each.score) for each in issues
    ]
    table = Table("label-issues", "Likely label errors, the likeliest first",
                  ("where", "kind", "labelled", "the model sees", "score"), rows, limit=_LISTED)  # fmt: skip
    cards = [_issue_card(evaluated.records, each, pictures) for each in _of_each_image(issues)[:_ISSUES]]
    shown = gallery(cards)
    legend = key("true", "wrong") if evaluated.analysis.task.has_boxes else None
    remark = pictures.remark
    return [
        said,
        legend,
        shown,
        Folded(f"All {len(rows)}, by file and line", table),
        note(remark) if remark else None,
    ]


def _of_each_image(issues: Sequence[LabelIssue]) -> list[LabelIssue]:
    first: dict[int, LabelIssue] = {}
    for issue in issues:
        first.setdefault(issue.image, issue)
    return list(first.values())


def _issue_card(records: Records, issue: LabelIssue, pictures: Pictures) -> Html | None:
    outlines = []
    if issue.given_box is not None:
        outlines.append(Outline(issue.given_box, issue.given, "true"))
    if issue.box is not None:
        outlines.append(Outline(issue.box, f"{issue.suggested} {issue.score:.2f}", "wrong"))
    told = {
        "missing": f"{issue.suggested} seems to be missing",
        "superfluous": f"{issue.given} seems not to be there",
        "badly placed": f"{issue.given} seems to be badly placed",
    }.get(issue.kind, f"labelled {issue.given}, seems to be {issue.suggested}")
    pane = pictures.pane(records, issue.image, outlines, alt=told)
    return card([pane], told, f" ({issue.score:.2f}) · ", place(issue.location))
