"""Parts of the data, by what a user wrote on each line, by image size and by object size."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.data.reading.data_file import DataFile, pick_lines
from trainer.data.reading.records import Records
from trainer.errors import DataError, Problem

OBJECT_SIZES = (
    ("small (under 32² px)", 0, 32**2),
    ("medium", 32**2, 96**2),
    ("large (from 96² px)", 96**2, math.inf),
)
"""COCO's."""
_SIDES = (512, 1024, 2048)
_MOST_VALUES = 50
_MOST_NUMBERS = 12
NO_VALUE = "(none)"

Parts = dict[str, list[int]]
"""For each value the indices of the images that have it, in the order in which they are told."""


def by_image_size(sizes: Sequence[tuple[int, int]]) -> Parts:
    """By the longer side in pixels; `sizes` are (height, width)."""
    names = ["up to 512 px", "513 to 1024 px", "1025 to 2048 px", "over 2048 px"]
    which = np.searchsorted(_SIDES, [max(size) for size in sizes])
    parts = {name: np.flatnonzero(which == number).tolist() for number, name in enumerate(names)}
    return {name: indices for name, indices in parts.items() if indices}


def by_key(records: Records, files: Sequence[DataFile], keys: Sequence[str]) -> dict[str, Parts]:
    """For each key of the data's lines (`camera`, or `meta.camera` within an object) the parts by its value.

    Numbers of more than 12 different values become four parts of about as many images each.

    Raises:
        DataError: no line has the key, or its values are too many or no texts, numbers or truth values.
    """
    values: dict[str, list[Any]] = {key: [None] * len(records) for key in keys}
    for number, file in enumerate(files):
        indices = np.flatnonzero(records.file_index == number)
        texts = pick_lines(file, records.lines[indices].tolist()) if len(indices) else {}
        for index in indices.tolist():
            line = json.loads(texts[int(records.lines[index])])
            for key in keys:
                values[key][index] = _value(line, key, records, index)
    return {key: _parted(key, values[key], records) for key in keys}


def _value(line: Any, key: str, records: Records, index: int) -> Any:
    value = line
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, (dict, list)):
        rule = "must be a text, a number or a truth value to slice by"
        raise DataError(
            "the data cannot be sliced:", [Problem(records.location(index), key, rule, str(value)[:60])]
        )
    return value


def _parted(key: str, values: Sequence[Any], records: Records) -> Parts:
    if all(value is None for value in values):
        raise DataError(
            "the data cannot be sliced:",
            [Problem(records.files[0], key, "must be a key of the lines", hint="no line has it")],
        )
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) == sum(value is not None for value in values) and len(set(numbers)) > _MOST_NUMBERS:
        return _by_quarters(values, np.array(numbers, dtype=np.float64))
    parts: Parts = defaultdict(list)
    for index, value in enumerate(values):
        parts[NO_VALUE if value is None else value if isinstance(value, str) else json.dumps(value)].append(
            index
        )
    if len(parts) > _MOST_VALUES:
        rule = f"must have at most {_MOST_VALUES} different values to slice by"
        raise DataError("the data cannot be sliced:", [Problem(records.files[0], key, rule, str(len(parts)))])
    return dict(sorted(parts.items()))


def _by_quarters(values: Sequence[Any], numbers: np.ndarray[Any, np.dtype[np.float64]]) -> Parts:
    bounds = np.unique(np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    names = [f"{low:.6g} to {high:.6g}" for low, high in itertools.pairwise(bounds)]
    parts: Parts = {name: [] for name in names}
    for index, value in enumerate(values):
        if value is None:
            parts.setdefault(NO_VALUE, []).append(index)
        else:
            parts[names[int(np.searchsorted(bounds[1:-1], value))]].append(index)
    return {name: indices for name, indices in parts.items() if indices}
