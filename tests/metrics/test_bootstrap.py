"""Bootstrap intervals: their coverage, and metrics of weights against the evaluators on resampled lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from trainer import metrics
from trainer.annotations import Classification, Detections, Objects, Prediction, Target
from trainer.metric_names import COCO, VOC, names_of
from trainer.metrics import bootstrap, weighted_classes
from trainer.metrics.classification import MulticlassEvaluator, MultilabelEvaluator
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.intervals import Difference
from trainer.metrics.weighted_classes import class_metric
from trainer.metrics.weighted_objects import object_metric
from trainer.tasks import Task

CLASSES = ("a", "b", "c")
IMAGES = 14


def counts(seed: int) -> list[np.ndarray[Any, Any]]:
    """Weights: each image once, three resamples, and one image alone."""
    generator = np.random.default_rng(seed)
    resamples = [np.bincount(generator.integers(IMAGES, size=IMAGES), minlength=IMAGES) for _ in range(3)]
    return [np.ones(IMAGES, np.int64), *resamples, np.eye(IMAGES, dtype=np.int64)[3]]


def classified(task: Task) -> list[tuple[Prediction, Target]]:
    """Images whose rounded probabilities tie often; class c is rare."""
    generator = np.random.default_rng(1)
    pairs: list[tuple[Prediction, Target]] = []
    for number in range(IMAGES):
        if task is Task.CLASSIFICATION:
            probs = generator.dirichlet(np.ones(3)).round(1)
            probs[0] += 1 - probs.sum()
            pairs.append((Classification(probs), 2 if number == 0 else int(generator.integers(2))))
        else:
            probs = generator.uniform(size=3).round(1)
            target = generator.uniform(size=3) < (0.5, 0.7, 0.1)
            pairs.append((Classification(probs), target))
    return pairs


@pytest.mark.parametrize("max_pairs", [0, 1_000_000])  # as with classes of many positives, and of few
@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTILABEL])
def test_weighted_class_metrics_equal_those_of_the_resampled_list(
    task: Task, max_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighted_classes, "_MAX_PAIRS", max_pairs)
    pairs = classified(task)
    evaluator = metrics.create(task, CLASSES)
    assert isinstance(evaluator, MulticlassEvaluator | MultilabelEvaluator)
    for pair in pairs:
        evaluator.update(*pair)
    names = [name for name in names_of(task) if name != "log_loss_train"]
    names += [f"iou_classwise.{label}" for label in CLASSES if task is Task.MULTILABEL]
    resamples = counts(5)
    weighted = {}
    for name in names:
        metric = class_metric(evaluator, name)
        assert metric is not None, name
        weighted[name] = metric(np.array(resamples, np.float64))
    for row, weights in enumerate(resamples):
        plain = metrics.create(task, CLASSES)
        for pair, count in zip(pairs, weights, strict=True):
            for _ in range(count):
                plain.update(*pair)
        expected = plain.compute()
        if isinstance(plain, MultilabelEvaluator):
            expected |= {f"iou_classwise.{name}": iou for name, iou in plain.iou_classwise().items()}
        actual = {name: values[row] for name, values in weighted.items()}
        assert actual == pytest.approx({name: expected[name] for name in names}, nan_ok=True), row


def test_an_unknown_metric_is_none() -> None:
    evaluator = MulticlassEvaluator(CLASSES)
    for name in ("iou", "map", "iou_classwise.a", "log_loss_train"):
        assert class_metric(evaluator, name) is None


def detected() -> list[EvaluatedImage]:
    """Images with objects of all of COCO's sizes, crowds, duplicates, misses and false positives."""
    generator = np.random.default_rng(2)
    images = []
    for number in range(IMAGES):
        size, count = (300, 300), int(generator.integers(1, 6))
        corners, sides = generator.uniform(0, 0.6, (count, 2)), generator.uniform(0.03, 0.4, (count, 1))
        boxes = np.hstack([corners, corners + sides]).astype(np.float32)
        labels = generator.integers(2 if number else 3, size=count)
        found = np.repeat(np.arange(count), generator.integers(0, 3, size=count))
        moved = boxes[found] + generator.normal(0, 0.012, (len(found), 4))
        extra = generator.uniform(0, 0.5, (3, 2))
        proposals = np.vstack([moved, np.hstack([extra, extra + 0.2])]).astype(np.float32)
        prediction = Detections(
            proposals,
            np.r_[labels[found], generator.integers(3, size=3)],
            generator.uniform(size=len(proposals)).astype(np.float32),
            size,
        )
        target = Objects(boxes, labels, generator.uniform(size=count) < 0.15)
        images.append(EvaluatedImage.create(prediction, target, CLASSES, by_masks=False))
    return images


def test_weighted_object_metrics_equal_those_of_the_resampled_list() -> None:
    from trainer.metrics.analysis import analyse_objects

    images, resamples = detected(), counts(7)
    names = (*VOC, *COCO)
    weighted = {}
    for name in names:
        metric = object_metric(images, 3, name, iou_threshold=0.5, by_masks=False)
        assert metric is not None, name
        weighted[name] = metric(np.array(resamples, np.float64))
    for row, weights in enumerate(resamples):
        resampled = [image for image, count in zip(images, weights, strict=True) for _ in range(count)]
        expected = analyse_objects(Task.DETECTION, CLASSES, resampled).metrics
        actual = {name: -1.0 if np.isnan(values[row]) else values[row] for name, values in weighted.items()}
        assert actual == pytest.approx({name: expected[name] for name in names}, abs=1e-6), row


def test_mean_average_precision_of_coco_is_map_50() -> None:
    images = detected()
    weights = np.ones((1, IMAGES))
    by_name = {
        (name, kind): object_metric(images, 3, name, iou_threshold=0.75, by_masks=False, metric_type=kind)
        for name, kind in (("mean_average_precision", "coco"), ("map_50", "coco_voc"))
    }
    first, second = (metric(weights) for metric in by_name.values() if metric is not None)
    assert first == second
    assert object_metric(images, 3, "accuracy", iou_threshold=0.5, by_masks=False) is None


def mean(values: Sequence[float]) -> Callable[..., Any]:
    numbers = np.array(values, np.float64)
    return lambda weights: weights @ numbers / weights.sum(axis=1)


@pytest.mark.parametrize(("images", "least", "most"), [(200, 0.92, 0.98), (15, 0.70, 0.90)])
def test_intervals_cover_the_true_value_as_often_as_they_say(images: int, least: float, most: float) -> None:
    """Of few images less often: bootstrap.FEW_IMAGES."""
    generator = np.random.default_rng(3)
    covered = 0
    for seed in range(300):
        answers = generator.uniform(size=images) < 0.9
        low, high = bootstrap.percentile_interval(
            bootstrap.draw([mean(answers)], images, resamples=300, seed=seed)[0]
        )
        covered += low <= 0.9 <= high
    assert least < covered / 300 < most


def test_paired_differences_cover_the_true_difference() -> None:
    generator = np.random.default_rng(4)
    covered = narrower = 0
    for seed in range(200):
        hardness = generator.uniform(size=150)
        one, other = hardness < 0.75, hardness + generator.normal(0, 0.05, 150) < 0.80
        draws = bootstrap.draw([mean(one), mean(other)], 150, resamples=300, seed=seed)
        low, high = bootstrap.percentile_interval(draws[1] - draws[0])
        covered += low <= 0.05 <= high
        alone = bootstrap.percentile_interval(draws[0])
        narrower += high - low < alone[1] - alone[0]
    assert 0.90 < covered / 200 < 0.985
    assert narrower == 200  # since images that are hard for both do not count


def test_draws_depend_on_the_seed_alone() -> None:
    metric = mean(np.arange(50.0))
    first, again, other = (bootstrap.draw([metric], 50, resamples=20, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (1, 20)


def test_undefined_draws_are_left_out() -> None:
    interval = bootstrap.interval_of("recall", 0.5, np.array([0.4, np.nan, 0.4]), images=40, seed=0)
    assert (interval.low, interval.high, interval.undefined, interval.resamples) == (0.4, 0.4, 1, 3)
    assert np.isnan(bootstrap.percentile_interval(np.array([np.nan]))).all()


def test_cautions_name_few_images_and_resamples_that_agree() -> None:
    assert bootstrap.caution(30, 0.1, 0.9) == ""
    assert bootstrap.caution(29, 0.1, 0.9) == "with fewer than 30 images the true interval is wider"
    assert "up to 3 / n of new images (6.0%)" in bootstrap.caution(50, 1.0, 1.0)


def difference(low: float, high: float, metric: str = "accuracy") -> Difference:
    return bootstrap.difference_of(
        metric, ("old", 0.5, np.zeros(2)), ("new", 0.5 + high, np.array([low, high])), images=1200, seed=0
    )


def test_verdict_says_whether_models_can_be_told_apart() -> None:
    assert difference(-0.1, 0.2).verdict == "old and new cannot be told apart on these 1,200 images"
    assert difference(0.0, 0.0).verdict == "old and new cannot be told apart on these 1,200 images"
    assert difference(0.1, 0.2).verdict == "new is better than old on these 1,200 images"
    assert difference(-0.2, -0.1).verdict == "old is better than new on these 1,200 images"
    assert difference(0.1, 0.2, "log_loss").verdict == "old is better than new on these 1,200 images"


def test_objects_are_matched_once_for_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.metrics import coco_matching, weighted_objects

    matched = []
    match_objects, match = weighted_objects.match_objects, coco_matching.match
    monkeypatch.setattr(
        weighted_objects, "match_objects", lambda *a, **k: (matched.append("voc"), match_objects(*a, **k))[1]
    )
    monkeypatch.setattr(coco_matching, "match", lambda *a, **k: (matched.append("coco"), match(*a, **k))[1])
    for name in ("mean_average_precision", "map"):
        metric = object_metric(detected(), 3, name, iou_threshold=0.5, by_masks=False)
        assert metric is not None
        bootstrap.draw([metric], IMAGES, resamples=200)
    assert matched == ["voc", "coco"]


def test_progress_is_shown_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_CHUNK_WEIGHTS", 100)
    told = []

    def track(chunks: Any, description: str, total: int) -> Any:
        told.append((description, total))
        return chunks

    draws = bootstrap.draw([mean(np.arange(10.0))], 10, resamples=25, seed=1, track=track)
    assert told == [("resampling images", 3)]
    monkeypatch.setattr(bootstrap, "_CHUNK_WEIGHTS", 10**6)
    assert np.array_equal(draws, bootstrap.draw([mean(np.arange(10.0))], 10, resamples=25, seed=1))
