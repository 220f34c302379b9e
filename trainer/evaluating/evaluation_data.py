"""The data of an evaluation: what is true of each image, in the classes of what is evaluated."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.annotations import Objects, Target
from trainer.data.reading.data_file import DataFile
from trainer.data.reading.jsonl import read
from trainer.data.reading.records import Records
from trainer.data.training_data import Checked, check
from trainer.errors import DataError, Problem
from trainer.tasks import Task

UNKNOWN_CLASSES = ("error", "missed", "ignored")
"""What to do with classes of the data that a model does not know."""
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Subject:
    """Attributes:
    records: the images that are evaluated.
    files: `records.file_index` counts in these.
    classes: labels count in these: the model's, and unknown ones that count as missed.
    ignored: classes of the data that play no part.
    """

    records: Records
    files: tuple[DataFile, ...]
    classes: tuple[str, ...]
    ignored: frozenset[str] = frozenset()

    def target(self, index: int) -> Target:
        """What is true of an image."""
        if not self.ignored:
            return self.records.target(index, self.classes)
        everything = tuple(sorted({*self.classes, *self.records.classes}))
        target = self.records.target(index, everything)
        known = np.array([name in self.classes for name in everything])
        if isinstance(target, np.ndarray):
            return np.asarray(target[known], dtype=np.bool_)
        if not isinstance(target, Objects):
            return self.classes.index(everything[target])
        kept = known[target.labels]
        labels = (np.cumsum(known) - 1)[target.labels[kept]]
        polygons = target.polygons
        if polygons is not None:
            polygons = tuple(each for each, is_kept in zip(polygons, kept, strict=True) if is_kept)
        return Objects(target.boxes[kept], labels, target.crowd[kept], polygons)


def load(
    task: Task,
    data: Sequence[str | os.PathLike[str]],
    *,
    datastores: Mapping[str, str] | None = None,
    skip_invalid: bool = False,
    extra_keys: Sequence[str] = (),
    needs_images: bool = True,
) -> tuple[Checked, tuple[DataFile, ...]]:
    """Read data, whose problems are warnings only.

    Args:
        skip_invalid: leave wrong lines out instead of refusing the data.
        extra_keys: keys of the lines, none of the schema's, that nobody is to be warned of.
        needs_images: local image files must exist.

    Raises:
        DataError: with everything that is wrong.
    """
    result = read(data, task, datastores=datastores)
    checked = Checked(result.records, result.problems, result.skipped, result.is_complete)
    if needs_images:
        checked = check(result, images=False)
    errors = [problem for problem in checked.problems if not problem.warning]
    if errors and not (skip_invalid and checked.is_complete):
        summary = f"the data have {len(errors):,} error{'s' if len(errors) > 1 else ''}"
        if checked.is_complete:
            summary += "; mend them, or leave the wrong lines out with --skip-invalid"
        raise DataError(summary, errors[:_SHOWN])
    if not len(checked.records):
        raise DataError("there is nothing to evaluate", [Problem(str(data[0]), "", "must hold an image")])
    extra = {key.split(".")[0] for key in extra_keys}
    problems = [problem for problem in checked.problems if problem.field not in extra]
    return Checked(checked.records, problems, checked.skipped, checked.is_complete), result.files


def make(
    records: Records, files: tuple[DataFile, ...], known: Sequence[str], unknown_classes: str = "error"
) -> tuple[Subject, list[str]]:
    """Bring data and the classes that a model knows together, with what is to be said about it.

    Args:
        unknown_classes: what to do with classes of the data that the model does not know: "error";
            "missed": they count, and are never found; "ignored": their objects and labels are left out, and
            in multi-class their images.

    Raises:
        DataError: there are unknown classes, and that is an error; or nothing is left.
    """
    unknown = [name for name in records.classes if name not in known]
    unseen = [name for name in known if name not in records.classes]
    remarks = []
    if unseen:
        remarks.append(f"the data have nothing of {_listed(unseen)}: figures of these classes are undefined")
    if not unknown:
        return Subject(records, files, tuple(known)), remarks
    if unknown_classes == "error":
        raise DataError(
            "the data have classes that the model does not know; --unknown-classes missed counts them as "
            "never found, --unknown-classes ignored leaves them out",
            [_unknown(records, name, known) for name in unknown[:_SHOWN]],
        )
    if unknown_classes == "missed":
        remarks.append(f"the model does not know {_listed(unknown)}: what there is of them counts as missed")
        return Subject(records, files, tuple(sorted({*known, *unknown}))), remarks
    remarks.append(f"the model does not know {_listed(unknown)}: they are left out")
    if records.task is Task.CLASSIFICATION:
        is_known = np.isin(np.array(records.classes), known)[records.labels]
        records = records.subset(np.flatnonzero(is_known)).without_unused_classes()
        if not len(records):
            problem = Problem("", "", "some image must be of a class that the model knows", _listed(unknown))
            raise DataError("nothing is left to evaluate", [problem])
        return Subject(records, files, tuple(known)), remarks
    return Subject(records, files, tuple(known), frozenset(unknown)), remarks


def _unknown(records: Records, name: str, known: Sequence[str]) -> Problem:
    labels = np.flatnonzero(records.labels == records.classes.index(name))
    first = int(np.searchsorted(records.starts, labels[0], side="right")) - 1
    count = f"{len(labels):,} labels, here the first; " if len(labels) > 1 else ""
    rule = "must be a class that the model knows"
    return Problem(records.location(first), "label", rule, repr(name), f"{count}it knows {_listed(known)}")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
