"""VOC-style metrics: by hand, and against a slow oracle in plain Python."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as coco_masks

from trainer import metrics
from trainer.annotations import Classification, Detections, Mask, Objects
from trainer.errors import TrainingError
from trainer.metrics.detection import METRIC_TYPES
from trainer.metrics.masks import from_polygons
from trainer.tasks import Task

Cell = tuple[int, int]
Found = tuple[int, float, frozenset[Cell]]
True_ = tuple[int, bool, frozenset[Cell]]
Scene = tuple[list[Found], list[True_]]
GRID = 8  # power of two: cell edges are exact in 32-bit floats, so that the oracle's ties are ours
CLASSES = ("a", "b", "c", "never")


def rectangle(left: int, top: int, right: int, bottom: int) -> frozenset[Cell]:
    return frozenset(itertools.product(range(left, right), range(top, bottom)))


def box(cells: frozenset[Cell]) -> list[float]:
    xs, ys = [x for x, _ in cells], [y for _, y in cells]
    return [min(xs) / GRID, min(ys) / GRID, (max(xs) + 1) / GRID, (max(ys) + 1) / GRID]


def detections(found: Sequence[Found], masks: bool = False) -> Detections:
    return Detections(
        boxes=np.array([box(cells) for _, _, cells in found], dtype=np.float32).reshape(-1, 4),
        labels=np.array([label for label, _, _ in found], dtype=np.int64),
        scores=np.array([score for _, score, _ in found], dtype=np.float32),
        image_size=(GRID, GRID),
        masks=tuple(crop(cells) for _, _, cells in found) if masks else None,
    )


def crop(cells: frozenset[Cell]) -> Mask:
    left, top = min(x for x, _ in cells), min(y for _, y in cells)
    pixels = np.zeros((max(y for _, y in cells) - top + 1, max(x for x, _ in cells) - left + 1), dtype=bool)
    for x, y in cells:
        pixels[y - top, x - left] = True
    return Mask(left, top, pixels)


def objects(true: Sequence[True_], polygons: bool = False) -> Objects:
    """With polygons each cell becomes a square segment of its own."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32)
    return Objects(
        boxes=np.array([box(cells) for _, _, cells in true], dtype=np.float32).reshape(-1, 4),
        labels=np.array([label for label, _, _ in true], dtype=np.int64),
        crowd=np.array([crowd for _, crowd, _ in true], dtype=bool),
        polygons=tuple(tuple((corners + cell) / GRID for cell in cells) for _, _, cells in true)
        if polygons
        else None,
    )


def evaluate(
    scenes: Sequence[Scene], *, masks: bool = False, threshold: float = 0.5, metric_type: str = "voc"
) -> metrics.Evaluator:
    task = Task.SEGMENTATION if masks else Task.DETECTION
    evaluator = metrics.create(task, CLASSES, iou_threshold=threshold, metric_type=metric_type)
    for found, true in scenes:
        evaluator.update(detections(found, masks), objects(true, masks))
    return evaluator


def oracle(scenes: Sequence[Scene], threshold: float) -> dict[str, dict[str, float]]:
    """The definitions, word for word."""
    report = {}
    for label, name in enumerate(CLASSES):
        judged: list[tuple[float, bool]] = []
        to_find = 0
        for found, true in scenes:
            mine = [(crowd, cells) for other, crowd, cells in true if other == label]
            to_find += sum(not crowd for crowd, _ in mine)
            taken: set[int] = set()
            for _, score, cells in sorted((f for f in found if f[0] == label), key=lambda f: -f[1]):
                best, nearest = Fraction(-1), -1
                for index, (crowd, other_cells) in enumerate(mine):
                    whole = cells if crowd else cells | other_cells
                    overlap = Fraction(len(cells & other_cells), len(whole))
                    if overlap > best:
                        best, nearest = overlap, index
                if nearest < 0 or float(best) < threshold:
                    judged.append((score, False))
                elif mine[nearest][0]:
                    continue
                else:
                    judged.append((score, nearest not in taken))
                    taken.add(nearest)
        judged.sort(key=lambda pair: -pair[0])
        precisions, recalls = [], []
        for last in range(1, len(judged) + 1):
            hits = sum(right for _, right in judged[:last])
            precisions.append(hits / last)
            recalls.append(hits / to_find if to_find else -1)
        average_precision = before = 0.0
        for index, recall in enumerate(recalls):
            average_precision += (recall - before) * max(precisions[index:])
            before = recall
        report[name] = {
            "average_precision": average_precision if to_find else -1,
            "precision": precisions[-1] if precisions else -1,
            "recall": (recalls[-1] if recalls else 0) if to_find else -1,
        }
    return report


def mean(report: dict[str, dict[str, float]], name: str) -> float:
    defined = [result[name] for result in report.values() if result[name] != -1]
    return sum(defined) / len(defined) if defined else -1


def random_scenes(seed: int, *, masks: bool = False) -> list[Scene]:
    """Crowded, so that predictions compete, with tied scores, crowds, absent classes and empty images."""
    rng = np.random.default_rng(seed)

    def shape() -> frozenset[Cell]:
        left, top = (int(value) for value in rng.integers(0, GRID - 1, 2))
        right, bottom = int(rng.integers(left + 1, GRID + 1)), int(rng.integers(top + 1, GRID + 1))
        cells = rectangle(left, top, right, bottom)
        if masks:  # any set of cells, also in several parts
            cells = frozenset(cell for cell in sorted(cells) if rng.random() < 0.7) or cells
        return cells

    scenes: list[Scene] = []
    for _ in range(rng.integers(0, 6)):
        true = [
            (int(rng.integers(0, 3)), bool(rng.random() < 0.2), shape()) for _ in range(rng.integers(0, 8))
        ]
        found = [
            (int(rng.integers(0, 3)), float(rng.integers(0, 5)) / 4, shape())
            for _ in range(rng.integers(0, 12))
        ]
        # many predictions near the truth
        found += [
            (label, float(rng.integers(0, 5)) / 4, cells) for label, _, cells in true if rng.random() < 0.6
        ]
        scenes.append((found, true))
    return scenes


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.75, 1.0])
def test_metrics_equal_their_definitions(masks: bool, threshold: float) -> None:
    for seed in range(60):
        scenes = random_scenes(seed, masks=masks)
        evaluator = evaluate(scenes, masks=masks, threshold=threshold)
        expected = oracle(scenes, threshold)
        for name, result in evaluator.per_class().items():
            assert result == pytest.approx(expected[name], abs=1e-12), (seed, name)
        overall = {
            "mean_average_precision": mean(expected, "average_precision"),
            "precision": mean(expected, "precision"),
            "recall": mean(expected, "recall"),
        }
        assert evaluator.compute() == pytest.approx(overall, abs=1e-12), seed


def test_average_precision_by_hand() -> None:
    """Right, wrong, right of three objects: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3."""
    first, second, third = rectangle(0, 0, 2, 2), rectangle(3, 3, 5, 5), rectangle(6, 6, 8, 8)
    scene: Scene = (
        [(0, 0.7, second), (0, 0.9, first), (0, 0.8, rectangle(0, 6, 2, 8))],
        [(0, False, first), (0, False, second), (0, False, third)],
    )
    result = evaluate([scene]).compute()
    assert result["mean_average_precision"] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    assert result["precision"] == pytest.approx(2 / 3)
    assert result["recall"] == pytest.approx(2 / 3)


def test_average_precision_uses_the_precision_envelope() -> None:
    """Wrong, then right twice: precision 0, 1/2, 2/3; from recall 0 on the envelope is 2/3."""
    scene: Scene = (
        [(0, 0.9, rectangle(6, 0, 8, 2)), (0, 0.8, rectangle(0, 0, 2, 2)), (0, 0.7, rectangle(3, 3, 5, 5))],
        [(0, False, rectangle(0, 0, 2, 2)), (0, False, rectangle(3, 3, 5, 5))],
    )
    assert evaluate([scene]).compute()["mean_average_precision"] == pytest.approx(2 / 3)


def test_a_prediction_is_compared_only_with_its_nearest_target() -> None:
    """COCO's matching would give the second prediction the other object; here it is a false positive."""
    one, other = rectangle(0, 0, 4, 4), rectangle(0, 0, 4, 3)
    scene: Scene = ([(0, 0.9, one), (0, 0.8, one)], [(0, False, one), (0, False, other)])
    result = evaluate([scene]).compute()
    assert result["recall"] == 0.5
    assert result["precision"] == 0.5


def test_iou_threshold_is_inclusive() -> None:
    scene: Scene = ([(0, 0.9, rectangle(0, 0, 4, 2))], [(0, False, rectangle(0, 0, 4, 4))])
    assert evaluate([scene], threshold=0.5).compute()["mean_average_precision"] == 1
    assert evaluate([scene], threshold=0.51).compute()["mean_average_precision"] == 0


def test_crowds_count_neither_as_missed_nor_as_false_positives() -> None:
    crowd, lone = rectangle(0, 0, 8, 4), rectangle(0, 5, 2, 7)
    targets: list[True_] = [(0, True, crowd), (0, False, lone)]
    in_crowd: list[Found] = [(0, 0.95, rectangle(x, 0, x + 2, 2)) for x in range(6)]
    perfect = {"mean_average_precision": 1.0, "precision": 1.0, "recall": 1.0}
    assert evaluate([([(0, 0.9, lone)], targets)]).compute() == perfect
    assert evaluate([([*in_crowd, (0, 0.9, lone)], targets)]).compute() == perfect


def test_a_crowd_of_another_class_is_no_match() -> None:
    scene: Scene = ([(0, 0.9, rectangle(0, 0, 2, 2))], [(1, True, rectangle(0, 0, 8, 8))])
    assert evaluate([scene]).per_class()["a"]["precision"] == 0


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        (([], []), (-1, -1, -1)),
        (([(0, 0.9, rectangle(0, 0, 2, 2))], []), (-1, 0, -1)),
        (([], [(0, False, rectangle(0, 0, 2, 2))]), (0, -1, 0)),
        (([], [(0, True, rectangle(0, 0, 2, 2))]), (-1, -1, -1)),
        (([(0, 0.9, rectangle(0, 0, 2, 2))], [(0, True, rectangle(0, 0, 2, 2))]), (-1, -1, -1)),
    ],
    ids=["nothing", "only found", "only true", "only a crowd", "a crowd found"],
)
@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_undefined_metrics(scene: Scene, expected: tuple[float, float, float], masks: bool) -> None:
    evaluator = evaluate([scene], masks=masks)
    names = ("average_precision", "precision", "recall")
    assert evaluator.per_class()["a"] == dict(zip(names, expected, strict=True))
    assert tuple(evaluator.compute().values()) == expected


def test_undefined_metrics_are_left_out_of_means() -> None:
    """Class a perfect; b found without being there: no recall, precision 0; c missed: no precision."""
    cells = rectangle(0, 0, 2, 2)
    scene: Scene = (
        [(0, 0.9, cells), (1, 0.9, cells)],
        [(0, False, cells), (2, False, rectangle(4, 4, 6, 6))],
    )
    assert evaluate([scene]).compute() == {"mean_average_precision": 0.5, "precision": 0.5, "recall": 0.5}


@pytest.mark.parametrize("metric_type", METRIC_TYPES)
@pytest.mark.parametrize("task", [Task.DETECTION, Task.SEGMENTATION])
def test_evaluation_without_images(task: Task, metric_type: str) -> None:
    evaluator = metrics.create(task, CLASSES, metric_type=metric_type)
    assert all(value == -1 for value in evaluator.compute().values())
    assert ("mean_average_precision" in evaluator.compute()) is (metric_type != "none")


def test_segmentation_compares_masks_not_boxes() -> None:
    """Two diagonal halves share their bounding box and no pixel."""
    upper = frozenset(
        (x, y) for x, y in rectangle(0, 0, 8, 8) if x > y or (x, y) == (0, 0) or (x, y) == (7, 7)
    )
    lower = frozenset((x, y) for x, y in rectangle(0, 0, 8, 8) if x < y) | {(0, 0), (7, 7)}
    scene: Scene = ([(0, 0.9, upper)], [(0, False, lower)])
    assert evaluate([scene]).compute()["mean_average_precision"] == 1
    assert evaluate([scene], masks=True).compute()["mean_average_precision"] == 0


def test_an_image_without_objects_needs_neither_masks_nor_polygons() -> None:
    cells = rectangle(0, 0, 2, 2)
    evaluator = evaluate([([(0, 0.9, cells)], [(0, False, cells)])], masks=True)
    evaluator.update(detections([]), objects([]))
    assert evaluator.compute()["mean_average_precision"] == 1


def test_targets_of_real_images_score_perfectly(shared_data: Path) -> None:
    """Dozens of touching nuclei an image; their polygons, drawn and cropped, must be found as themselves."""
    evaluator = metrics.create(Task.SEGMENTATION, ["nucleus"], metric_type="coco_voc")
    lines = (shared_data / "nuclei" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    for record in map(json.loads, lines[:5]):
        size = tuple(int(str(record["image_details"][key]).removesuffix("px")) for key in ("height", "width"))
        segments = [
            tuple(np.array(segment, dtype=np.float32).reshape(-1, 2) for segment in each["polygon"])
            for each in record["label"]
        ]
        dense = [coco_masks.decode(from_polygons(polygons, size)).astype(bool) for polygons in segments]
        count = len(segments)
        boxes, labels = np.zeros((count, 4), dtype=np.float32), np.zeros(count, dtype=np.int64)
        scores = np.linspace(0.9, 0.5, count, dtype=np.float32)
        prediction = Detections(boxes, labels, scores, size, tuple(Mask(0, 0, mask) for mask in dense))
        evaluator.update(prediction, Objects(boxes, labels, np.zeros(count, dtype=bool), tuple(segments)))
    result = evaluator.compute()
    assert result["mean_average_precision"] == result["precision"] == result["recall"] == 1
    assert result["map"] == pytest.approx(1)


def test_ties_are_ranked_in_the_order_of_images() -> None:
    cells = rectangle(0, 0, 2, 2)
    right: Scene = ([(0, 0.5, cells)], [(0, False, cells)])
    wrong: Scene = ([(0, 0.5, cells)], [])
    assert evaluate([right, wrong]).compute()["mean_average_precision"] == 1
    assert evaluate([wrong, right]).compute()["mean_average_precision"] == 0.5


def test_the_order_of_images_does_not_matter_without_ties() -> None:
    rng = np.random.default_rng(3)
    scenes = [
        ([(label, float(rng.random()), cells) for label, _, cells in found], true)
        for seed in range(10)
        for found, true in random_scenes(seed)
    ]
    result = evaluate(scenes).compute()
    assert evaluate([scenes[i] for i in rng.permutation(len(scenes))]).compute() == pytest.approx(result)


def test_compute_reset_and_pickling_of_evaluators() -> None:
    evaluator = evaluate(random_scenes(4), metric_type="coco_voc")
    result = evaluator.compute()
    assert evaluator.compute() == result
    assert pickle.loads(pickle.dumps(evaluator)).compute() == result
    evaluator.reset()
    assert set(evaluator.compute().values()) == {-1}


def test_degenerate_boxes_overlap_nothing() -> None:
    """A box without area, or one turned inside out, is a false positive and no crash."""
    prediction = Detections(
        np.array([[0.5, 0.5, 0.5, 0.5], [0.8, 0.8, 0.2, 0.2]], dtype=np.float32),
        np.array([0, 0]),
        np.array([0.9, 0.8], dtype=np.float32),
        (10, 10),
    )
    target = Objects(np.array([[0.5, 0.5, 0.5, 0.5]], dtype=np.float32), np.array([0]), np.array([False]))
    evaluator = metrics.create(Task.DETECTION, ["a"], metric_type="coco_voc")
    evaluator.update(prediction, target)
    assert evaluator.compute()["mean_average_precision"] == 0
    assert evaluator.compute()["precision"] == 0


def test_a_diverged_network_is_an_error() -> None:
    prediction = Detections(
        np.array([[0, 0, np.nan, 1]], dtype=np.float32), np.array([0]), np.ones(1, np.float32), (8, 8)
    )
    with pytest.raises(TrainingError, match="diverged"):
        metrics.create(Task.DETECTION, ["a"]).update(prediction, objects([]))


def test_unfitting_predictions_and_targets_are_errors() -> None:
    cells = rectangle(0, 0, 2, 2)
    found, true = detections([(0, 0.9, cells)]), objects([(0, False, cells)])
    segmentation = metrics.create(Task.SEGMENTATION, CLASSES)
    with pytest.raises(ValueError, match="each of 1 predicted objects must have a mask"):
        segmentation.update(found, true)
    with pytest.raises(ValueError, match="each of 1 target objects must have polygons"):
        segmentation.update(detections([(0, 0.9, cells)], masks=True), true)
    detection = metrics.create(Task.DETECTION, CLASSES)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\], got 4 to 4"):
        detection.update(detections([(4, 0.9, cells)]), true)
    with pytest.raises(ValueError, match="labels must be in"):
        detection.update(found, objects([(-1, False, cells)]))
    with pytest.raises(TypeError, match="Objects"):
        detection.update(found, 1)
    with pytest.raises(TypeError, match="Detections"):
        detection.update(Classification(np.ones(4, dtype=np.float32)), true)
    assert set(detection.compute().values()) == {-1}  # nothing of it was taken
    for threshold in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="iou_threshold"):
            metrics.create(Task.DETECTION, CLASSES, iou_threshold=threshold)
    with pytest.raises(ValueError, match="none, coco, voc, coco_voc"):
        metrics.create(Task.DETECTION, CLASSES, metric_type="pascal")
