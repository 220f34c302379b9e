"""Slices of the data, by a key of the lines, image size or object size, and their metrics."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer import metrics
from trainer.annotations import Classification, Target
from trainer.data.reading.data_file import DataFile, pick_lines
from trainer.data.reading.records import Records
from trainer.errors import DataError, Problem
from trainer.metrics import matching, object_errors
from trainer.metrics.analysis import metrics_of_objects
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.results import Slice
from trainer.tasks import Task

OBJECT_SIZES = (
    ("small (under 32² px)", 0, 32**2),
    ("medium", 32**2, 96**2),
    ("large (from 96² px)", 96**2, math.inf),
)
"""Name, minimum area and (exclusive) maximum area in pixels of COCO's size classes."""
_SIDE_LIMITS = (512, 1024, 2048)
_MAX_VALUES = 50
_MAX_NUMBERS = 12
NO_VALUE = "(none)"

Partition = dict[str, list[int]]
"""Value → indices of the images that have it, in the order in which the slices are reported."""


def by_image_size(sizes: Sequence[tuple[int, int]]) -> Partition:
    """Divide images by their longer side in pixels; `sizes` are (height, width)."""
    names = ["up to 512 px", "513 to 1024 px", "1025 to 2048 px", "over 2048 px"]
    size_class = np.searchsorted(_SIDE_LIMITS, [max(size) for size in sizes])
    partition = {name: np.flatnonzero(size_class == number).tolist() for number, name in enumerate(names)}
    return {name: indices for name, indices in partition.items() if indices}


def by_key(records: Records, files: Sequence[DataFile], keys: Sequence[str]) -> dict[str, Partition]:
    """Divide records by the values of keys of the data's lines.

    Numbers with more than 12 different values are divided into quarters of about equally many images.

    Args:
        keys: such as `camera`, or `meta.camera` within an object.

    Returns:
        The partition for each key.

    Raises:
        DataError: no line has the key, its values are not strings, numbers or booleans, or there are too
        many.
    """
    values: dict[str, list[Any]] = {key: [None] * len(records) for key in keys}
    for number, file in enumerate(files):
        indices = np.flatnonzero(records.file_index == number)
        texts = pick_lines(file, records.lines[indices].tolist()) if len(indices) else {}
        for index in indices.tolist():
            line = json.loads(texts[int(records.lines[index])])
            for key in keys:
                values[key][index] = _value(line, key, records, index)
    return {key: _partition(key, values[key], records) for key in keys}


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


def _value(line: Any, key: str, records: Records, index: int) -> Any:
    value = line
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, (dict, list)):
        rule = "must be a string, a number or a boolean to slice by"
        raise _slicing_error(records.location(index), key, rule, str(value)[:60])
    return value


def _partition(key: str, values: Sequence[Any], records: Records) -> Partition:
    if all(value is None for value in values):
        raise _slicing_error(records.files[0], key, "must be a key of the lines", hint="no line has it")
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) == sum(value is not None for value in values) and len(set(numbers)) > _MAX_NUMBERS:
        return _quarters(values, np.array(numbers, dtype=np.float64))
    partition: Partition = defaultdict(list)
    for index, value in enumerate(values):
        name = NO_VALUE if value is None else value if isinstance(value, str) else json.dumps(value)
        partition[name].append(index)
    if len(partition) > _MAX_VALUES:
        rule = f"must have at most {_MAX_VALUES} different values to slice by"
        raise _slicing_error(records.files[0], key, rule, str(len(partition)))
    return dict(sorted(partition.items()))


def _quarters(values: Sequence[Any], numbers: np.ndarray[Any, np.dtype[np.float64]]) -> Partition:
    bounds = np.unique(np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    names = [f"{low:.6g} to {high:.6g}" for low, high in itertools.pairwise(bounds)]
    partition: Partition = {name: [] for name in names}
    for index, value in enumerate(values):
        if value is None:
            partition.setdefault(NO_VALUE, []).append(index)
        else:
            partition[names[int(np.searchsorted(bounds[1:-1], value))]].append(index)
    return {name: indices for name, indices in partition.items() if indices}


def _slicing_error(where: str, field: str, rule: str, got: str = "", hint: str = "") -> DataError:
    return DataError("the data cannot be sliced:", [Problem(where, field, rule, got, hint)])


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
