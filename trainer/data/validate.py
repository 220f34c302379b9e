"""What `trainer validate` reports: every problem of the data, and what the data hold."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.reading.jsonl import read
from trainer.data.reading.records import Records
from trainer.data.training_data import across, check
from trainer.errors import Problem
from trainer.tasks import Task


@dataclass(frozen=True, slots=True)
class Summary:
    """What the faultless lines hold.

    Attributes:
        images: how many.
        objects: boxes or polygons; None for classification.
        backgrounds: images without any label.
        class_counts: class name → images that have it, for detection and segmentation objects of it.
    """

    images: int
    objects: int | None
    backgrounds: int
    class_counts: dict[str, int]

    def __str__(self) -> str:
        text = f"{self.images:,} images"
        text += f", {self.objects:,} objects" if self.objects is not None else ""
        text += f", {self.backgrounds:,} images without a label" if self.backgrounds else ""
        text += f", {len(self.class_counts):,} classes"
        width = max((len(name) for name in self.class_counts), default=0)
        return "\n".join([text, *(f"  {name:{width}}  {n:,}" for name, n in self.class_counts.items())])


@dataclass(frozen=True, slots=True)
class Report:
    """Attributes:
    problems: errors and warnings; those of lines in the order of the input.
    errors: how many of the problems are errors.
    summary, validation_summary: the latter None without validation data.
    train, validation: the faultless lines.
    """

    problems: list[Problem]
    errors: int
    summary: Summary
    validation_summary: Summary | None
    train: Records
    validation: Records | None


def validate(
    task: Task,
    paths: Sequence[str | os.PathLike[str]],
    validation_paths: Sequence[str | os.PathLike[str]] = (),
    *,
    images: bool = False,
    datastores: Mapping[str, str] | None = None,
    progress: bool = False,
) -> Report:
    """Check data against the schema without training.

    Args:
        validation_paths: validation data, checked likewise, and against the others.
        images: also fetch and decode every image; otherwise local files only have to exist.
        datastores: Azure datastore name → local directory or URL with its content.
    """
    parts = [
        check(read(given, task, datastores=datastores), images=images, progress=progress)
        for given in (paths, validation_paths)
        if given
    ]
    train, validation = parts[0].records, parts[1].records if len(parts) > 1 else None
    problems = [problem for part in parts for problem in part.problems]
    if all(part.is_complete for part in parts):
        problems += across(train, validation, task)
    return Report(
        problems=problems,
        errors=sum(not problem.warning for problem in problems),
        summary=summarise(train),
        validation_summary=None if validation is None else summarise(validation),
        train=train,
        validation=validation,
    )


def summarise(records: Records) -> Summary:
    counts = np.bincount(records.labels, minlength=len(records.classes)).tolist()
    return Summary(
        images=len(records),
        objects=len(records.labels) if records.task.has_boxes else None,
        backgrounds=int(np.count_nonzero(np.diff(records.starts) == 0)),
        class_counts=dict(zip(records.classes, counts, strict=True)),
    )
