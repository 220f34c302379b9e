"""Confidence intervals of a metric, and whether two models can be told apart by it on the same images."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer import metrics
from trainer.annotations import Classification, Target
from trainer.data.progress import track
from trainer.data.reading.records import Records
from trainer.errors import JobError, Problem
from trainer.metric_names import CLASSWISE, is_minimised, names_of
from trainer.metrics.bootstrap import RESAMPLES, WeightedMetric, difference_of, draw, interval_of
from trainer.metrics.classification import MulticlassEvaluator, MultilabelEvaluator
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.intervals import Difference, Interval
from trainer.metrics.weighted_classes import class_metric
from trainer.metrics.weighted_objects import object_metric
from trainer.tasks import Task

DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Resampling:
    """How a metric is resampled.

    Attributes:
        resamples: number of resamples; 0 computes no interval.
        seed: of the resamples.
        progress: show the progress.
    """

    resamples: int = RESAMPLES
    seed: int = 0
    progress: bool = False


@dataclass(frozen=True, slots=True)
class MeasuredMetric:
    """A model's metric on images, which can be computed again for any resample of them.

    Attributes:
        name: the metric's name.
        images: a name for each image that is the same in every evaluation of it.
        weighted: the metric as a function of the images' weights.
    """

    name: str
    images: tuple[str, ...]
    weighted: WeightedMetric

    def interval(self, options: Resampling) -> Interval | None:
        """The metric's confidence interval; None without resamples or if the metric is undefined."""
        count = len(self.images)
        if not count or not options.resamples:
            return None
        value = float(self.weighted(np.ones((1, count)))[0])
        if math.isnan(value):
            return None
        (draws,) = _draw([self.weighted], count, options)
        return interval_of(self.name, value, draws, count, options.seed)

    def on(self, images: Sequence[str]) -> WeightedMetric:
        """The metric as a function of the weights of some of its images, in the given order."""
        position = {image: index for index, image in enumerate(self.images)}
        columns = np.array([position[image] for image in images], np.int64)

        def metric(weights: DoubleArray, /) -> DoubleArray:
            spread = np.zeros((len(weights), len(self.images)))
            spread[:, columns] = weights
            return self.weighted(spread)

        return metric


def measure_classes(
    task: Task,
    classes: Sequence[str],
    predictions: Sequence[Classification],
    targets: Sequence[Target],
    records: Records,
    metric: str,
) -> MeasuredMetric | None:
    """A metric of multi-class or multilabel predictions; None if evaluations do not have it."""
    evaluator = metrics.create(task, classes)
    for prediction, target in zip(predictions, targets, strict=True):
        evaluator.update(prediction, target)
    assert isinstance(evaluator, MulticlassEvaluator | MultilabelEvaluator), "the task is a classification"
    weighted = class_metric(evaluator, metric)
    return None if weighted is None else MeasuredMetric(metric, _image_names(records), weighted)


def measure_objects(
    task: Task,
    classes: Sequence[str],
    images: Sequence[EvaluatedImage],
    records: Records,
    metric: str,
    *,
    iou_threshold: float,
    metric_type: str = "coco_voc",
) -> MeasuredMetric | None:
    """A metric of detections or segmentations; None if evaluations do not have it."""
    weighted = object_metric(
        images,
        len(classes),
        metric,
        iou_threshold=iou_threshold,
        by_masks=task is Task.SEGMENTATION,
        metric_type=metric_type,
    )
    return None if weighted is None else MeasuredMetric(metric, _image_names(records), weighted)


def compare(
    measured: Sequence[tuple[str, MeasuredMetric]], options: Resampling | None = None
) -> list[Difference]:
    """The paired difference of every two models, on the images that both were measured on.

    Pairs without a common image, or whose difference is undefined, are left out.

    Args:
        measured: name and metric of each model; the same metric for all.
    """
    options = options or Resampling()
    differences = []
    for (first, one), (second, other) in itertools.combinations(measured, 2):
        is_common = set(other.images).__contains__
        common = [image for image in one.images if is_common(image)]
        if not common or not options.resamples:
            continue
        pair = [one.on(common), other.on(common)]
        values = [float(metric(np.ones((1, len(common))))[0]) for metric in pair]
        if any(map(math.isnan, values)):
            continue
        draws = _draw(pair, len(common), options)
        entries = (first, values[0], draws[0]), (second, values[1], draws[1])
        differences.append(difference_of(one.name, *entries, images=len(common), seed=options.seed))
    return differences


def check(options: Resampling) -> list[Problem]:
    """The problems of the options."""
    if options.resamples < 0 or 0 < options.resamples < _LEAST:
        rule = f"must be at least {_LEAST}, or 0 for no interval"
        return [Problem("--resamples", "", rule, str(options.resamples))]
    if options.seed < 0:
        return [Problem("--random-seed", "", "must be at least 0", str(options.seed))]
    return []


_LEAST = 100
"""Fewer resamples leave two or fewer beyond each end of a 95 % interval."""


def default_metric(task: Task, metric: str) -> str:
    """The metric to resample for a job's primary metric: that one if evaluations have it, else the task's.

    The loss of a network's boxes, and that of the training images, are measured in training only.
    """
    is_measured = not is_minimised(metric) or (metric == "log_loss" and task.is_classification)
    return metric if is_measured else task.primary_metric


def check_metric(name: str, task: Task, classes: Sequence[str]) -> None:
    """Check that an evaluation of this task and these classes computes a metric.

    Raises:
        JobError: it does not.
    """
    known = [known for known in names_of(task) if known != "log_loss_train"]
    if task.has_boxes:
        known.remove("log_loss")
    if name.startswith(CLASSWISE):
        known = [CLASSWISE + label for label in classes]
    if name not in known:
        rule = "must be a metric that evaluations compute"
        problem = Problem("--primary-metric", "", rule, repr(name), f"there are {', '.join(known)}")
        raise JobError("the evaluation cannot be run:", [problem])


def _draw(weighted: Sequence[WeightedMetric], images: int, options: Resampling) -> DoubleArray:
    shown = track if options.progress else None
    return draw(weighted, images, resamples=options.resamples, seed=options.seed, track=shown)


def _image_names(records: Records) -> tuple[str, ...]:
    """Each image's place, numbered if several records have it."""
    count: Counter[str] = Counter()
    names = []
    for index in range(len(records)):
        place = records.source(index)
        names.append(f"{place}#{count[place]}")
        count[place] += 1
    return tuple(names)
