"""Finds keys that occur twice in an object of a line; JSON parsers silently keep the last value."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from msgspec import UNSET, UnsetType
from msgspec.structs import astuple

from trainer.data.reading.record_builder import FlatLabels
from trainer.data.reading.schema import SHAPE_KEYS, Details, show
from trainer.errors import Problem
from trainer.tasks import Task

AnyDetails: TypeAlias = Details | UnsetType | None
"""The image_details of a line, UNSET if it has none."""


RULE = "must be once in its object"
"""What the error of a repeated key says."""

_COLON = ord(":")
_ESCAPED_COLONS = (b"\\u003a", b"\\u003A")


class KeyCounter:
    """Finds by the number of colons whether lines may repeat a key.

    A million lines pass here, so it is kept tight.

    Args:
        label_key: the key of the label.
    """

    def __init__(self, task: Task, label_key: str) -> None:
        self._task = task
        self._in_line = 2 + label_key.count(":")  # image_url and label
        self._in_object = 2 + len(SHAPE_KEYS.get(task, ()))  # label and isCrowd
        self._in_details = _DetailsKeys()

    def may_repeat(
        self,
        lines: Sequence[bytes],
        image_urls: Sequence[str],
        details: Sequence[AnyDetails],
        labels: FlatLabels,
    ) -> bool:
        """Whether lines have more colons than follow their keys and are in their texts.

        Args:
            lines: as they are in the file.
            image_urls, details: what the fast reader has parsed in each of them.
            labels: those of all lines.
        """
        expected: int = self._in_line * len(lines) + sum(map(self._in_details.__getitem__, details))
        expected += "".join(image_urls).count(":")
        if self._task.has_boxes:
            expected += self._in_object * len(labels.objects) - labels.crowd.count(UNSET)
        content = b"".join(lines)
        if b"\\" in content and any(each in content for each in _ESCAPED_COLONS):
            return True  # colons in texts that are not in the lines would hide those of repeated keys
        colons = int(np.count_nonzero(np.frombuffer(content, dtype=np.uint8) == _COLON))
        if colons == expected:
            return False
        in_names = sum(str(name).count(":") for name in labels.names)
        return colons != expected + in_names


class _DetailsKeys(dict[AnyDetails, int]):
    """How many keys a line has for its image_details, those inside included."""

    def __missing__(self, details: AnyDetails) -> int:
        inside = astuple(details) if isinstance(details, Details) else ()
        count = self[details] = (details is not UNSET) + sum(value is not UNSET for value in inside)
        return count


def parse(text: str) -> tuple[Any, list[Problem]]:
    """Parse JSON, in which NaN and Infinity are allowed.

    Returns:
        The value, and the errors for the keys that have two different values in one object.

    Raises:
        ValueError, RecursionError: the text is not JSON.
    """
    problems: list[Problem] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        problems.extend(_repeated(pairs))
        return dict(pairs)

    return json.loads(text, object_pairs_hook=unique), problems


def parse_literal(text: str) -> tuple[Any, list[Problem]]:
    """Parse a list or dictionary in Python's notation, as pandas writes it to CSV; see `parse`.

    Raises:
        ValueError, SyntaxError, TypeError, RecursionError, MemoryError: the text is not such a literal.
    """
    tree = ast.parse(text.strip(), mode="eval")
    value = ast.literal_eval(tree)
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            pairs = zip(map(ast.literal_eval, filter(None, node.keys)), node.values, strict=True)
            problems += _repeated([(str(name), ast.literal_eval(each)) for name, each in pairs])
    return value, problems


def _repeated(pairs: list[tuple[str, Any]]) -> list[Problem]:
    names = dict.fromkeys(name for name, _ in pairs)
    if len(names) == len(pairs):
        return []
    problems = []
    for key in names:
        values = [value for name, value in pairs if name == key]
        if len(set(map(json.dumps, values))) > 1:
            problems.append(Problem("", key, RULE, " and ".join(map(show, values)), "keep one of them"))
    return problems
