"""Checks training and validation data as a whole: empty sets, classes, images in both."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from trainer.data.reading.file_report import first_of
from trainer.data.reading.records import Records
from trainer.data.reading.schema import LABEL_KEY
from trainer.errors import Problem
from trainer.tasks import Task


def check_consistency(
    train: Records, validation: Records | None, task: Task, label_key: str = LABEL_KEY
) -> list[Problem]:
    """Find errors and warnings that no single line shows.

    Args:
        label_key: the key of the lines that holds the label.
    """
    problems = _nothing_to_learn(train, "training data")
    if not problems and task.is_classification and len(train.classes) < 2:
        rule = "should hold at least two classes"
        problems.append(Problem("training data", "", rule, f"only {train.classes[0]!r}", warning=True))
    if validation is not None:
        problems += _nothing_to_learn(validation, "validation data")
        problems += classes_without_training_images(train, validation, label_key)
        problems += _images_in_both(train, validation)
    elif len(train) > 1 and np.count_nonzero(train.has_targets()) == 1:
        where, noun = train.location(int(train.has_targets().argmax())), _noun(task)
        rule = f"at least two images with {noun}s are needed to split off validation data"
        hint = "add some, or give validation data"
        problems.append(Problem(where, label_key, rule, "only this one", hint, warning=True))
    classes = {*train.classes, *(validation.classes if validation is not None else ())}
    return problems + _similar_classes(sorted(classes), label_key)


def _nothing_to_learn(records: Records, name: str) -> list[Problem]:
    """The error about data without an image, or without anything to learn or to measure."""
    if not len(records):
        return [Problem(name, "", "must hold at least one valid image", "none")]
    if records.is_target().any():
        return []
    noun = _noun(records.task)
    got = "only crowds (isCrowd), which are not counted" if len(records.labels) else "images without any"
    hint = f"add images with {noun}s"
    if name == "validation data":
        hint = (
            "every metric would be undefined and no epoch the best; "
            f"{hint}, or leave the validation data out to have them split off the training data"
        )
    return [Problem(name, "", f"must hold at least one {noun}", got, hint)]


def _noun(task: Task) -> str:
    return "object" if task.has_boxes else "label"


def classes_without_training_images(
    train: Records, validation: Records, label_key: str = LABEL_KEY
) -> list[Problem]:
    """Warnings about the classes that only the validation data have."""
    trained = np.bincount(train.labels[train.is_target()], minlength=len(train.classes))
    known = {name for name, count in zip(train.classes, trained.tolist(), strict=True) if count}
    counts = np.bincount(validation.labels, minlength=len(validation.classes)).tolist()
    problems = []
    for index, (name, count) in enumerate(zip(validation.classes, counts, strict=True)):
        if not count or name in known:
            continue
        label = int((validation.labels == index).argmax())
        first = int(np.searchsorted(validation.starts, label, side="right")) - 1
        rule = "class has no training image and will never be predicted"
        problems.append(Problem(validation.location(first), label_key, rule, repr(name), warning=True))
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


def _similar_classes(classes: Sequence[str], label_key: str) -> list[Problem]:
    """Warn of class names that a reader would take for the same."""
    groups = defaultdict(list)
    for name in classes:
        groups[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    rule = "classes should differ in more than case, spaces or Unicode form"
    hint = "if they are one class, give them one name"
    return [
        Problem("classes", label_key, rule, ", ".join(map(repr, names)), hint, warning=True)
        for names in groups.values()
        if len(names) > 1
    ]
