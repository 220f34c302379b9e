"""Metrics of each slice of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trainer import metrics
from trainer.annotations import Classification, Target
from trainer.evaluating.slices import OBJECT_SIZES, Partition
from trainer.metrics import matching, object_errors
from trainer.metrics.analysis import metrics_of_objects
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.results import Slice
from trainer.tasks import Task


def of_classes(
    task: Task,
    classes: Sequence[str],
    predictions: Sequence[Classification],
    targets: Sequence[Target],
    partitions: Mapping[str, Partition],
) -> list[Slice]:
    """Compute the metrics of slices for multi-class and multilabel."""
    result = []
    for by, partition in partitions.items():
        for value, indices in partition.items():
            evaluator = metrics.create(task, classes)
            for index in indices:
                evaluator.update(predictions[index], targets[index])
            result.append(Slice(by=by, value=value, images=len(indices), metrics=evaluator.compute()))
    return result


def of_objects(
    task: Task,
    classes: Sequence[str],
    images: Sequence[EvaluatedImage],
    partitions: Mapping[str, Partition],
    iou_threshold: float,
) -> list[Slice]:
    """Compute the metrics of slices for detection and segmentation, by object size first."""
    result = _by_object_size(task, classes, images, iou_threshold)
    for by, partition in partitions.items():
        for value, indices in partition.items():
            chosen = [images[index] for index in indices]
            objects, values = metrics_of_objects(task, classes, chosen, iou_threshold)
            result.append(Slice(by=by, value=value, images=len(indices), objects=objects, metrics=values))
    return result


def _by_object_size(
    task: Task, classes: Sequence[str], images: Sequence[EvaluatedImage], iou_threshold: float
) -> list[Slice]:
    matches = matching.match_objects(images, iou_threshold, by_masks=task is Task.SEGMENTATION)
    result = []
    for name, smallest, largest in OBJECT_SIZES:
        objects, values = object_errors.of_size(matches, len(classes), smallest, largest)
        inside = (matches.target_areas >= smallest) & (matches.target_areas < largest)
        count = len(np.unique(matches.target_images[inside]))
        result.append(Slice(by="object size", value=name, images=count, objects=objects, metrics=values))
    return result
