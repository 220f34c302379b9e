"""Checks training and validation data as a whole: empty sets, classes, images in both."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from trainer.data.reading.file_report import first_of
from trainer.data.reading.records import Records
from trainer.errors import Problem
from trainer.tasks import Task


def check_consistency(train: Records, validation: Records | None, task: Task) -> list[Problem]:
    """Find errors and warnings that no single line shows."""
    problems = []
    if len(train) == 0:
        problems.append(Problem("training data", "", "must hold at least one valid image", "none"))
    elif task.has_boxes and not len(train.labels):
        problems.append(Problem("training data", "", "must hold at least one object", "images without any"))
    elif not train.classes:
        problems.append(Problem("training data", "", "must hold at least one class", "images without labels"))
    elif task.is_classification and len(train.classes) < 2:
        rule = "should hold at least two classes"
        problems.append(Problem("training data", "", rule, f"only {train.classes[0]!r}", warning=True))
    if validation is not None:
        if len(validation) == 0:
            problems.append(Problem("validation data", "", "must hold at least one valid image", "none"))
        problems += _classes_without_training_images(train, validation)
        problems += _images_in_both(train, validation)
    classes = {*train.classes, *(validation.classes if validation is not None else ())}
    return problems + _similar_classes(sorted(classes))


def _classes_without_training_images(train: Records, validation: Records) -> list[Problem]:
    problems = []
    for name in sorted(set(validation.classes) - set(train.classes)):
        label = np.flatnonzero(validation.labels == validation.classes.index(name))[0]
        first = int(np.searchsorted(validation.starts, label, side="right")) - 1
        rule = "class has no training image and will never be predicted"
        problems.append(Problem(validation.location(first), "label", rule, repr(name), warning=True))
    return problems


def _images_in_both(train: Records, validation: Records) -> list[Problem]:
    common = np.flatnonzero(np.isin(validation.source_hashes(), train.source_hashes()))
    if not len(common):
        return []
    first = int(common[0])
    hint = "metrics on images seen in training are too good"
    hint = f"{first_of(len(common), 'images in both')}; {hint}" if len(common) > 1 else hint
    rule = "image should not be in both training and validation data"
    got = repr(validation.image_url(first))
    return [Problem(validation.location(first), "image_url", rule, got, hint, warning=True)]


def _similar_classes(classes: Sequence[str]) -> list[Problem]:
    """Warn of class names that a reader would take for the same."""
    groups = defaultdict(list)
    for name in classes:
        groups[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    rule = "classes should differ in more than case, spaces or Unicode form"
    hint = "if they are one class, give them one name"
    return [
        Problem("classes", "label", rule, ", ".join(map(repr, names)), hint, warning=True)
        for names in groups.values()
        if len(names) > 1
    ]
