"""The sections of example predictions: the worst and the best ones, next to their labels."""

from __future__ import annotations

import numpy as np

from trainer.annotations import Objects
from trainer.metrics import masks, matching
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.report.embedded_images import EmbeddedImages, card, gallery
from trainer.report.evaluated_run import EvaluatedRun
from trainer.report.markup import Html, element, note, source_location
from trainer.report.outlines import Outline, Verdict, describe_labels, legend, outlines_of
from trainer.report.page import Page
from trainer.tasks import Task

_WRONG, _CORRECT = 12, 6
_WRONG_PAIRS, _CORRECT_PAIRS = 8, 4
_MAX_WORST_IMAGES = 100
"""An evaluation lists at most this many of the images with errors."""
_DEFAULT_THRESHOLD = _DEFAULT_IOU = 0.5


def add_prediction_examples(page: Page, evaluated: EvaluatedRun, embedded: EmbeddedImages) -> None:
    """Add a gallery of wrong predictions and one of correct predictions."""
    if evaluated.analysis.task.has_boxes:
        _add_pairs(page, evaluated, embedded)
    else:
        wrong = gallery(_wrong_classifications(evaluated, embedded))
        page.add("Most confident errors", wrong or element("p", "No errors, or no image that can be read."))
        correct = gallery(_correct_classifications(evaluated, embedded))
        nothing = element("p", "No correct predictions, or no image that can be read.")
        page.add("Correct predictions", correct or nothing)


def _add_pairs(page: Page, evaluated: EvaluatedRun, embedded: EmbeddedImages) -> None:
    wrong = [image.image for image in evaluated.analysis.worst_images]
    best = _images_without_errors(evaluated, set(wrong)) or wrong[::-1]
    worst_cards = [_pair(evaluated, index, embedded) for index in wrong[:_WRONG_PAIRS]]
    page.add(
        "Images with the most errors",
        legend("labelled", "correct", "wrong", "missed"),
        note("Labels are on the left, predictions at each class's best score threshold on the right."),
        gallery(worst_cards, pairs=True) or element("p", "No errors."),
    )
    best_cards = [_pair(evaluated, index, embedded) for index in best[:_CORRECT_PAIRS]]
    page.add("Images with the fewest errors", gallery(best_cards, pairs=True))


def _images_without_errors(evaluated: EvaluatedRun, wrong: set[int]) -> list[int]:
    """Return the images with objects and without errors; none if not all images with errors are known."""
    if len(wrong) >= _MAX_WORST_IMAGES:
        return []
    counts = np.diff(evaluated.records.starts)
    return [index for index in np.flatnonzero(counts > 0).tolist() if index not in wrong]


def _wrong_classifications(evaluated: EvaluatedRun, embedded: EmbeddedImages) -> list[Html | None]:
    cards = []
    for index in list(dict.fromkeys(mistake.image for mistake in evaluated.analysis.mistakes))[:_WRONG]:
        labels = describe_labels(evaluated.records, index)
        answer = _describe_answer(evaluated, index)
        pane = embedded.pane(evaluated.records, index, alt=f"{labels}, predicted {answer}")
        verdict = element("span", f"predicted {answer}", class_="bad")
        location = source_location(evaluated.records.location(index))
        cards.append(card([pane], verdict, f", labelled {labels} · ", location))
    return cards


def _correct_classifications(evaluated: EvaluatedRun, embedded: EmbeddedImages) -> list[Html | None]:
    """Show correct predictions of each class in turn, the least confident first."""
    scores_of: dict[str, list[tuple[float, int]]] = {}
    classes = tuple(evaluated.analysis.classes)
    for index in range(len(evaluated.records)):
        probs = evaluated.answers.classification(index, classes).probs
        target = evaluated.records.target(index, classes)
        if isinstance(target, np.ndarray):
            is_correct, score = bool(((probs >= 0.5) == target).all()), float(probs.max())
        else:
            assert isinstance(target, int), "a multiclass target is a class index"
            is_correct, score = int(probs.argmax()) == target, float(probs[target])
        if is_correct:
            scores_of.setdefault(describe_labels(evaluated.records, index), []).append((score, index))
    cards = []
    for index in _in_turn([sorted(scores) for scores in scores_of.values()])[:_CORRECT]:
        answer = _describe_answer(evaluated, index)
        pane = embedded.pane(evaluated.records, index, alt=f"Correctly predicted {answer}")
        verdict = element("span", f"predicted {answer}", class_="good")
        cards.append(card([pane], verdict, " · ", source_location(evaluated.records.location(index))))
    return cards


def _in_turn(queues: list[list[tuple[float, int]]]) -> list[int]:
    """Return the images of several queues: the first of each, the second of each, and so on."""
    longest = max(map(len, queues), default=0)
    return [queue[place][1] for place in range(longest) for queue in queues if place < len(queue)]


def _describe_answer(evaluated: EvaluatedRun, index: int) -> str:
    """Describe a classifier's answer: `dog 0.93`, `no class`."""
    classes = evaluated.analysis.classes
    probs = evaluated.answers.classification(index, classes).probs
    if evaluated.analysis.task is Task.MULTILABEL:
        present = np.flatnonzero(probs >= 0.5).tolist()
        return ", ".join(f"{classes[label]} {probs[label]:.2f}" for label in present) or "no class"
    best = int(probs.argmax())
    return f"{classes[best]} {probs[best]:.2f}"


def _pair(evaluated: EvaluatedRun, index: int, embedded: EmbeddedImages) -> Html | None:
    """Show an image twice: with its labels and with the predictions."""
    classes, records = evaluated.analysis.classes, evaluated.records
    target = records.target(index, tuple(classes))
    assert isinstance(target, Objects), "a detector's target is objects"
    predicted, missed = _matched_outlines(evaluated, index, target)
    labelled = outlines_of(target, classes, dict.fromkeys(missed, "missed"))
    location = records.location(index)
    correct = sum(outline.verdict == "correct" for outline in predicted)
    counts = f"{correct} correct, {len(predicted) - correct} wrong, {len(missed)} missed"
    panes = [
        embedded.pane(records, index, labelled, title="labelled", alt=f"{location} as labelled"),
        embedded.pane(records, index, predicted, title="predicted", alt=f"{location} as predicted: {counts}"),
    ]
    return card(panes, counts, " · ", source_location(location))


def _matched_outlines(
    evaluated: EvaluatedRun, index: int, target: Objects
) -> tuple[list[Outline], list[int]]:
    """Match an image's predictions with its objects.

    Returns:
        The outlines of predictions above their class's threshold, each correct or wrong, and the indices of
        objects that are missed.
    """
    analysis, size = evaluated.analysis, evaluated.sizes[index]
    classes, by_masks = analysis.classes, analysis.task is Task.SEGMENTATION
    found, polygons = evaluated.answers.detections(index, classes, size)
    best = analysis.thresholds
    thresholds = [best[name].score if name in best else _DEFAULT_THRESHOLD for name in classes]
    kept = np.flatnonzero(found.scores >= np.array(thresholds, np.float32)[found.labels]).tolist()
    counted, labelled = np.flatnonzero(~target.crowd), target.polygons or ()
    image = EvaluatedImage(
        size=size,
        boxes=found.boxes[kept],
        labels=found.labels[kept],
        scores=found.scores[kept],
        target_boxes=target.boxes[counted],
        target_labels=target.labels[counted],
        crowd=target.crowd[counted],
        masks=[masks.from_polygons(polygons[i], size) for i in kept if by_masks],
        target_masks=[masks.from_polygons(labelled[i], size) for i in counted.tolist() if by_masks],
    )
    matches = matching.match_objects([image], analysis.iou_threshold or _DEFAULT_IOU, by_masks=by_masks)
    outlines = []
    for i, kind in zip(kept, matches.kinds.tolist(), strict=True):
        left, top, right, bottom = found.boxes[i].tolist()
        text = f"{classes[int(found.labels[i])]} {float(found.scores[i]):.2f}"
        verdict: Verdict = "correct" if kind == matching.CORRECT else "wrong"
        flat_polygons = tuple(tuple(map(float, polygon.ravel())) for polygon in polygons[i])
        outlines.append(Outline((left, top, right, bottom), text, verdict, flat_polygons))
    missed = counted[np.flatnonzero(matches.found_by == matching.NONE)].tolist()
    return outlines, missed
