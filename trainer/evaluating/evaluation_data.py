"""The images and targets of an evaluation, in the classes of what is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.annotations import Target
from trainer.data.quality.finding import names_text
from trainer.data.quality.image_checks import check_images
from trainer.data.reading.data_file import DataFile
from trainer.data.reading.file_report import first_of
from trainer.data.reading.input_paths import PathLike
from trainer.data.reading.jsonl import ReadResult, read
from trainer.data.reading.records import Records
from trainer.data.reading.schema import LABEL_KEY
from trainer.data.reading.skipped import SkippedCount
from trainer.data.training_data import errors_found
from trainer.errors import DataError, Problem
from trainer.tasks import Task

UNKNOWN_CLASSES = ("error", "missed", "ignored")
"""What to do with classes of the data that the model does not know; see `for_classes`."""
_MAX_SHOWN = 20
_MAX_SHOWN_WARNINGS = 10


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """Images with their targets, in the classes of an evaluation.

    Attributes:
        records: the images to evaluate.
        files: the data files; `records.file_index` points into them.
        classes: names that labels index: those of the model, and unknown ones that count as missed.
        notes: one-line notes for the user: on classes, warnings, and the number of skipped lines.
    """

    records: Records
    files: tuple[DataFile, ...]
    classes: tuple[str, ...]
    notes: list[str]

    def target(self, index: int) -> Target:
        """The target of an image, its labels as indices into `classes`."""
        return self.records.target(index, self.classes)


def load(
    task: Task,
    data: Sequence[PathLike],
    *,
    datastores: Mapping[str, str] | None = None,
    label_key: str = LABEL_KEY,
    skip_invalid: bool = False,
    extra_keys: Sequence[str] = (),
    needs_images: bool = True,
) -> ReadResult:
    """Read data; the problems that are left in the result are warnings or belong to skipped lines.

    Args:
        label_key: the key of each line that holds the label, Azure's target_column_name.
        skip_invalid: leave out invalid objects and lines instead of rejecting the data.
        extra_keys: keys of the lines that are used although they are not in the schema: no warnings for them.
        needs_images: local image files must exist.

    Raises:
        DataError: the data are invalid or empty.
    """
    result = read(data, task, datastores=datastores, label_key=label_key)
    if needs_images:
        result = check_images(result, decode=False)
    errors = [problem for problem in result.problems if not problem.warning]
    if errors and not (skip_invalid and result.is_complete):
        raise DataError(errors_found(len(errors), result.is_complete), errors[:_MAX_SHOWN])
    if not len(result.records):
        raise DataError("there is nothing to evaluate", [Problem(str(data[0]), "", "must hold an image")])
    extra = {key.split(".")[0] for key in extra_keys}
    return replace(result, problems=[problem for problem in result.problems if problem.field not in extra])


def for_classes(
    result: ReadResult, known: Sequence[str], unknown_classes: str = "error", label_key: str = LABEL_KEY
) -> EvaluationData:
    """Relate data to the classes that a model knows.

    Args:
        known: the model's classes.
        unknown_classes: what to do with classes of the data that the model does not know. "error": raise an
            error; "missed": count their objects and labels as missed; "ignored": leave them out, for
            multi-class including the images.
        label_key: the key of the lines that holds the label.

    Raises:
        DataError: there are unknown classes and that is an error, or no image is left.
    """
    records = result.records
    unknown = [name for name in records.classes if name not in known]
    absent = [name for name in known if name not in records.classes]
    notes: list[str] = []
    if absent:
        notes.append(f"the data have no {names_text(absent)}: the metrics of these classes are undefined")
    if unknown and unknown_classes == "error":
        raise DataError(
            "the data have classes that the model does not know; --unknown-classes missed counts them as "
            "missed, --unknown-classes ignored leaves them out",
            [_unknown_class(records, name, known, label_key) for name in unknown[:_MAX_SHOWN]],
        )
    classes = tuple(known)
    if unknown and unknown_classes == "missed":
        notes.append(f"the model does not know {names_text(unknown)}: counted as missed")
        classes = tuple(sorted({*known, *unknown}))
    elif unknown:
        notes.append(f"the model does not know {names_text(unknown)}: left out")
        if records.task is Task.CLASSIFICATION:
            is_known = np.isin(np.array(records.classes), known)[records.labels]
            records = records.subset(np.flatnonzero(is_known))
        records = records.with_only(known)
        if not len(records):
            rule = "must hold an image of a class that the model knows"
            raise DataError("there is nothing to evaluate", [Problem("data", "", rule, names_text(unknown))])
    notes += [str(problem) for problem in result.problems if problem.warning][:_MAX_SHOWN_WARNINGS]
    if left_out := str(SkippedCount.of(result.skipped)):
        notes.append(f"left out: {left_out}")
    return EvaluationData(records, result.files, classes, notes)


def _unknown_class(records: Records, name: str, known: Sequence[str], label_key: str) -> Problem:
    labels = np.flatnonzero(records.labels == records.classes.index(name))
    image = int(np.searchsorted(records.starts, labels[0], side="right")) - 1
    known_text = f"the model knows {names_text(known)}"
    hint = "; ".join(part for part in (first_of(len(labels), "such labels"), known_text) if part)
    rule = "must be a class that the model knows"
    return Problem(records.location(image), label_key, rule, repr(name), hint)
