"""Checks data without training on them, as `trainer validate` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.quality.consistency import check_consistency
from trainer.data.quality.image_checks import check_images
from trainer.data.reading.input_paths import PathLike
from trainer.data.reading.jsonl import read
from trainer.data.reading.records import Records
from trainer.data.reading.schema import LABEL_KEY
from trainer.errors import Problem
from trainer.tasks import Task


@dataclass(frozen=True, slots=True)
class Summary:
    """What the valid lines hold.

    Attributes:
        images: number of images.
        objects: number of boxes or polygons; None for classification.
        backgrounds: number of images without a label.
        class_counts: class name → number of its images, or for detection and segmentation of its objects.
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
class ValidationReport:
    """The result of checking data.

    Attributes:
        problems: errors and warnings, first those of single lines in the order of the input.
        errors: number of problems that are errors.
        summary: of the training data.
        validation_summary: of the validation data; None without any.
        train: the valid lines of the training data.
        validation: the valid lines of the validation data; None without any.
    """

    problems: list[Problem]
    errors: int
    summary: Summary
    validation_summary: Summary | None
    train: Records
    validation: Records | None


def validate(
    task: Task,
    data: Sequence[PathLike],
    validation_data: Sequence[PathLike] = (),
    *,
    images: bool = False,
    datastores: Mapping[str, str] | None = None,
    label_key: str = LABEL_KEY,
    progress: bool = False,
) -> ValidationReport:
    """Check data against the data schema.

    Invalid data raise no error: everything wrong with them is in the report.

    Args:
        data: .jsonl files and MLTable folders, local or by URL.
        validation_data: the same; also checked for images that are in the training data.
        images: fetch and decode every image; otherwise local files only have to exist.
        datastores: Azure datastore name → local directory or URL with its content.
        label_key: the key of each line that holds the label, Azure's target_column_name.
        progress: show progress while images are decoded.
    """
    results = [
        check_images(
            read(paths, task, datastores=datastores, label_key=label_key), decode=images, progress=progress
        )
        for paths in (data, validation_data)
        if paths
    ]
    train, validation = results[0].records, results[1].records if len(results) > 1 else None
    problems = [problem for result in results for problem in result.problems]
    if all(result.is_complete for result in results):
        problems += check_consistency(train, validation, task, label_key)
    return ValidationReport(
        problems=problems,
        errors=sum(not problem.warning for problem in problems),
        summary=_summarise(train),
        validation_summary=None if validation is None else _summarise(validation),
        train=train,
        validation=validation,
    )


def _summarise(records: Records) -> Summary:
    counts = np.bincount(records.labels, minlength=len(records.classes)).tolist()
    return Summary(
        images=len(records),
        objects=len(records.labels) if records.task.has_boxes else None,
        backgrounds=int(np.count_nonzero(np.diff(records.starts) == 0)),
        class_counts=dict(zip(records.classes, counts, strict=True)),
    )
