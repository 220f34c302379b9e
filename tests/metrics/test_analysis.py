"""The error analysis, checked by hand on small examples, and its JSON form."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from trainer.annotations import Classification, Detections, Mask, Objects
from trainer.errors import RunError
from trainer.metrics.analysis import analyse_classes, analyse_objects
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.results import Analysis
from trainer.tasks import Task

CLASSES = ["can", "milk"]
Placed = tuple[int, tuple[float, float, float, float]]


class Lines:
    """Image i is line i + 1 of test.jsonl."""

    def location(self, index: int) -> str:
        return f"test.jsonl:{index + 1}"

    def image_url(self, index: int) -> str:
        return f"{index}.jpg"


def found(*objects: tuple[int, float, tuple[float, float, float, float]]) -> Detections:
    """Of (label, score, box), on an image of 100 x 100."""
    boxes = np.array([box for _, _, box in objects], np.float32).reshape(-1, 4)
    masks = tuple(
        Mask(round(a * 100), round(b * 100), np.ones((round((d - b) * 100), round((c - a) * 100)), bool))
        for _, _, (a, b, c, d) in objects
    )
    labels = np.array([label for label, _, _ in objects], np.int64)
    return Detections(boxes, labels, np.array([s for _, s, _ in objects], np.float32), (100, 100), masks)


def true(*objects: Placed, crowd: Sequence[int] = ()) -> Objects:
    boxes = np.array([box for _, box in objects], np.float32).reshape(-1, 4)
    polygons = tuple((np.array([[a, b], [c, b], [c, d], [a, d]], np.float32),) for _, (a, b, c, d) in objects)
    labels = np.array([label for label, _ in objects], np.int64)
    return Objects(boxes, labels, np.isin(np.arange(len(labels)), crowd), polygons)


HERE, SHIFTED = (0.1, 0.1, 0.3, 0.3), (0.2, 0.1, 0.4, 0.3)  # IoU 1/3
THERE, NOWHERE = (0.6, 0.6, 0.9, 0.9), (0.6, 0.1, 0.8, 0.3)


def run(task: Task, predictions: Sequence[Detections], targets: Sequence[Objects]) -> Analysis:
    images = [
        EvaluatedImage.create(prediction, target, CLASSES, by_masks=task is Task.SEGMENTATION)
        for prediction, target in zip(predictions, targets, strict=True)
    ]
    return analyse_objects(task, CLASSES, images, metric_type="voc", image_names=Lines())


def errors(analysis: Analysis) -> dict[str, tuple[int, float]]:
    return {each.kind: (each.count, round(each.cost, 6)) for each in analysis.errors}


TASKS = pytest.mark.parametrize("task", [Task.DETECTION, Task.SEGMENTATION])


@TASKS
@pytest.mark.parametrize(
    ("prediction", "target", "kind", "cost", "missed"),
    [
        (found((1, 0.9, HERE)), true((0, HERE)), "classification", 1.0, 0),
        (found((0, 0.9, SHIFTED)), true((0, HERE)), "localisation", 1.0, 0),
        (found((1, 0.9, SHIFTED)), true((0, HERE)), "both", 0.0, 1),
        (found((0, 0.9, HERE), (0, 0.8, HERE)), true((0, HERE)), "duplicate", 0.0, 0),
        (found((0, 0.9, NOWHERE), (0, 0.8, HERE)), true((0, HERE)), "background", 0.5, 0),
    ],
    ids=["classification", "localisation", "both", "duplicate", "background"],
)
def test_each_kind_of_error_has_its_cost(
    task: Task, prediction: Detections, target: Objects, kind: str, cost: float, missed: int
) -> None:
    split = errors(run(task, [prediction], [target]))
    assert split[kind] == (1, cost)
    assert split["missed"][0] == missed
    counted = {name: count for name, (count, _) in split.items() if count}
    assert counted.keys() <= {kind, "missed", "false positives", "false negatives"}


@TASKS
def test_cost_of_missed_objects(task: Task) -> None:
    split = errors(run(task, [found((0, 0.9, HERE))], [true((0, HERE), (0, THERE))]))
    assert split["missed"] == split["false negatives"] == (1, 0.5)
    assert split["false positives"] == (0, 0.0)


def test_fixing_an_error_on_a_found_object_gains_nothing() -> None:
    scene = found((1, 0.9, HERE), (0, 0.8, HERE)), true((0, HERE))
    split = errors(run(Task.DETECTION, [scene[0]], [scene[1]]))
    assert split["classification"] == (1, 0.0)
    # of two that could be fixed, one is, and the other is dropped
    scene = found((1, 0.9, HERE), (1, 0.8, HERE), (0, 0.7, THERE)), true((0, HERE), (0, THERE))
    split = errors(run(Task.DETECTION, [scene[0]], [scene[1]]))
    assert split["classification"] == (2, 0.5)


def test_cost_is_1_if_all_is_missed_and_0_without_data() -> None:
    split = errors(run(Task.DETECTION, [found()], [true((0, HERE))]))
    assert split["missed"] == (1, 1.0)
    empty = run(Task.DETECTION, [], [])
    assert all(each.count == 0 and each.cost == 0 for each in empty.errors)
    assert empty.metrics == {"mean_average_precision": -1, "precision": -1, "recall": -1}
    assert empty.image_level == {"average_precision": -1, "precision": -1, "recall": -1}


@TASKS
def test_crowds_are_ignored(task: Task) -> None:
    analysis = run(task, [found((0, 0.9, HERE))], [true((0, HERE), crowd=[0])])
    assert analysis.objects == 0
    assert all(each.count == 0 for each in analysis.errors)
    assert analysis.mistakes == analysis.worst_images == analysis.label_issues == []
    assert all(sum(map(sum, matrix.counts)) == 0 for matrix in analysis.confusion_matrices)


@TASKS
def test_confusion_matrices_by_score(task: Task) -> None:
    predictions = [found((1, 0.75, HERE), (0, 0.35, THERE)), found((0, 0.95, NOWHERE))]
    targets = [true((0, HERE), (0, THERE), (1, NOWHERE)), true()]
    matrices = run(task, predictions, targets).confusion_matrices
    assert [matrix.score_threshold for matrix in matrices] == pytest.approx(np.arange(10) / 10)
    assert matrices[0].rows == CLASSES
    assert matrices[0].columns == [*CLASSES, "Missed"]
    assert matrices[3].counts == [[1, 1, 0], [0, 0, 1]]
    assert matrices[7].counts == [[0, 1, 1], [0, 0, 1]]
    assert matrices[8].counts == [[0, 0, 2], [0, 0, 1]]


def test_score_thresholds_are_inclusive() -> None:
    matrices = run(Task.DETECTION, [found((0, 0.7, HERE))], [true((0, HERE))]).confusion_matrices
    assert matrices[7].counts[0] == [1, 0, 0]
    assert matrices[8].counts[0] == [0, 0, 1]


def test_image_level_metrics_by_hand() -> None:
    predictions = [
        found((0, 0.9, NOWHERE), (0, 0.8, HERE)),  # a false positive down to 0.8, true from there
        found((1, 0.85, HERE)),  # false for good
        found((0, 0.6, HERE), (1, 0.95, THERE)),  # true from 0.95 on
        found(),
    ]
    targets = [true((0, HERE)), true(), true((0, HERE), (1, THERE)), true((1, HERE))]
    analysis = run(Task.DETECTION, predictions, targets)
    # at .95: 1 of 1; .9: 1 of 2; .85: 1 of 3; .8: 2 of 3; .6 the same; of 3 images with objects
    assert analysis.image_level["recall"] == pytest.approx(2 / 3)
    assert analysis.image_level["precision"] == pytest.approx(2 / 3)
    assert analysis.image_level["average_precision"] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    (curve,) = analysis.curves["image_level"]
    assert curve.y == pytest.approx([1, 1, 1 / 2, 1 / 3, 2 / 3, 2 / 3])


def test_image_level_metrics_equal_their_definition() -> None:
    rng = np.random.default_rng(0)
    spots = [(x / 5, y / 5, (x + 1) / 5, (y + 1) / 5) for x in range(5) for y in range(5)]
    predictions, targets = [], []
    for _ in range(40):
        held = rng.choice(25, rng.integers(0, 4), replace=False)
        seen = rng.choice(25, rng.integers(0, 6), replace=False)
        targets.append(true(*((0, spots[at]) for at in held)))
        predictions.append(found(*((0, float(rng.integers(1, 20)) / 20, spots[at]) for at in seen)))
    analysis = run(Task.DETECTION, predictions, targets)
    points = []
    for score in sorted({float(s) for p in predictions for s in p.scores}, reverse=True):
        hits = wrong = 0
        for prediction, target in zip(predictions, targets, strict=True):
            boxes = {tuple(box) for box in target.boxes.tolist()}
            sure = [
                tuple(b)
                for b, s in zip(prediction.boxes.tolist(), prediction.scores, strict=True)
                if s >= score
            ]
            hits += any(box in boxes for box in sure)
            wrong += bool(sure) and not any(box in boxes for box in sure)
        points.append((hits / sum(len(t.labels) > 0 for t in targets), hits / (hits + wrong)))
    area = last = 0.0
    for at, (recall, _) in enumerate(points):
        area += (recall - last) * max(precision for _, precision in points[at:])
        last = recall
    assert analysis.image_level["average_precision"] == pytest.approx(area, abs=1e-9)
    assert (analysis.image_level["recall"], analysis.image_level["precision"]) == pytest.approx(points[-1])


def test_best_threshold_is_midway_between_scores() -> None:
    predictions = [found((0, 0.9, HERE), (0, 0.8, THERE), (0, 0.2, NOWHERE), (0, 0.1, SHIFTED))]
    analysis = run(Task.DETECTION, predictions, [true((0, HERE), (0, THERE))])
    best = analysis.thresholds["can"]
    assert (best.score, best.f1, best.precision, best.recall) == pytest.approx((0.5, 1, 1, 1))
    assert "milk" not in analysis.thresholds
    (curve,) = analysis.curves["f1"]
    assert curve.x == pytest.approx([0.1, 0.2, 0.8, 0.9])
    assert curve.y == pytest.approx([2 * 2 / (2 + 4), 2 * 2 / (2 + 3), 1, 2 / 3])


def test_lists_name_images_by_file_and_line() -> None:
    predictions = [
        found((0, 0.9, HERE)),
        found((1, 0.8, HERE), (0, 0.7, THERE)),
        found((0, 0.95, HERE), (0, 0.6, NOWHERE), (0, 0.3, SHIFTED)),
        found((0, 0.85, SHIFTED), (1, 0.9, THERE), (1, 0.88, HERE)),
    ]
    targets = [
        true((0, HERE)),
        true((0, HERE), (0, THERE)),
        true((0, HERE)),
        true((0, HERE), (1, THERE)),
    ]
    analysis = run(Task.DETECTION, predictions, targets)
    issues = [(each.location, each.kind, each.given, each.suggested) for each in analysis.label_issues]
    # of "milk" as sure as that on line 2 most are wrong, so it says nothing about the label
    assert issues == [
        ("test.jsonl:4", "wrong class", "can", "milk"),
        ("test.jsonl:3", "missing", "", "can"),
    ]
    assert analysis.label_issues[0].given_box == pytest.approx(HERE)
    first = analysis.mistakes[0]
    assert (first.image, first.location, first.image_url) == (3, "test.jsonl:4", "3.jpg")
    assert (first.kind, first.predicted, first.true, first.overlap) == ("classification", "milk", "can", 1)
    assert analysis.worst_images[0].location in ("test.jsonl:4", "test.jsonl:2")
    assert [(pair.true, pair.predicted, pair.count, pair.images) for pair in analysis.confused_pairs] == [
        ("can", "milk", 2, [3, 1])
    ]


def classified(task: Task, probs: Sequence[Sequence[float]], targets: Sequence[object]) -> Analysis:
    predictions = [Classification(np.array(row, np.float32)) for row in probs]
    return analyse_classes(task, ["a", "b", "c"], predictions, targets, Lines())  # type: ignore[arg-type]


def test_classification_lists() -> None:
    probs = [[0.9, 0.05, 0.05], [0.1, 0.85, 0.05], [0.03, 0.95, 0.02], [0.05, 0.05, 0.9], [0.2, 0.5, 0.3]]
    analysis = classified(Task.CLASSIFICATION, probs, [0, 1, 0, 2, 2])
    assert [(p.true, p.predicted, p.count, p.share, p.images) for p in analysis.confused_pairs] == [
        ("a", "b", 1, 0.5, [2]),
        ("c", "b", 1, 0.5, [4]),
    ]
    assert [(m.location, m.predicted, m.true) for m in analysis.mistakes] == [
        ("test.jsonl:3", "b", "a"),
        ("test.jsonl:5", "b", "c"),
    ]
    assert [worst.image for worst in analysis.worst_images] == [2, 4]
    assert analysis.worst_images[0].loss == pytest.approx(-math.log(0.03))
    issues = [(each.location, each.given, each.suggested) for each in analysis.label_issues]
    assert issues == [("test.jsonl:3", "a", "b")]
    assert analysis.confusion_matrices[0].counts == [[1, 1, 0], [0, 1, 0], [0, 1, 1]]


def test_swapped_labels_are_label_issues() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 300)
    logits = np.eye(3)[targets] * 6 + rng.normal(0, 1, (300, 3))
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    swapped = rng.choice(300, 15, replace=False)
    given = targets.copy()
    given[swapped] = (given[swapped] + 1) % 3
    issues = classified(Task.CLASSIFICATION, probs.tolist(), given.tolist()).label_issues
    assert len({each.image for each in issues[:15]} & set(swapped.tolist())) >= 14


def test_multilabel_lists() -> None:
    t, f = True, False
    targets = [np.array(row) for row in ([t, f, f], [f, t, f], [t, f, t], [f, f, f], [t, t, f])]
    probs = [[0.9, 0.1, 0.1], [0.2, 0.9, 0.2], [0.05, 0.1, 0.9], [0.97, 0.1, 0.1], [0.8, 0.7, 0.1]]
    analysis = classified(Task.MULTILABEL, probs, targets)
    assert [(m.location, m.kind, m.predicted, m.true) for m in analysis.mistakes] == [
        ("test.jsonl:4", "superfluous", "a", ""),
        ("test.jsonl:3", "overlooked", "", "a"),
    ]
    assert [(i.location, i.kind, i.given, i.suggested) for i in analysis.label_issues] == [
        ("test.jsonl:4", "missing", "", "a"),
        ("test.jsonl:3", "superfluous", "a", ""),
    ]
    assert [matrix.name for matrix in analysis.confusion_matrices] == ["a", "b", "c"]
    assert analysis.confusion_matrices[0].counts == [[1, 1], [1, 2]]
    assert analysis.per_class["c"]["iou"] == 1


@pytest.mark.parametrize("task", list(Task))
def test_analysis_round_trips_through_strict_json(task: Task, tmp_path: Path) -> None:
    if task.is_classification:
        targets: list[object] = (
            [0, 1] if task is Task.CLASSIFICATION else [np.array([True, False, False])] * 2
        )
        analysis = classified(task, [[0.5, 0.3, 0.2]] * 2, targets)
        assert math.isnan(analysis.per_class["c"]["auc"])
    else:
        analysis = run(task, [found((0, 0.9, HERE), (1, 0.8, NOWHERE))], [true((0, HERE))])
    path = tmp_path / "metrics.json"
    path.write_text(analysis.to_json())
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    again = Analysis.read(path)
    assert again.to_json() == analysis.to_json()
    path.write_text("{}")
    with pytest.raises(
        RunError, match=r"is not an evaluation of this version: \w+: field required; "
    ) as wrong:
        Analysis.read(path)
    assert "\n" not in str(wrong.value)
    with pytest.raises(RunError, match="cannot be read"):
        Analysis.read(tmp_path / "missing.json")


@pytest.mark.parametrize("task", list(Task))
def test_analysis_without_images(task: Task) -> None:
    analysis = (
        analyse_classes(task, CLASSES, [], [])
        if task.is_classification
        else analyse_objects(task, CLASSES, [])
    )
    assert analysis.images == 0
    assert Analysis.model_validate_json(analysis.to_json()).to_json() == analysis.to_json()
