"""Checks data as a whole, images included, and loads what a training needs."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trainer.data.quality.image_checks import inspect
from trainer.data.reading.jsonl import ReadResult, Skipped, read, write_skipped
from trainer.data.reading.records import Records
from trainer.data.splitting import split
from trainer.errors import DataError, Problem
from trainer.tasks import Task

_SHOWN_OF_EACH_KIND = 50


@dataclass(frozen=True, slots=True)
class Data:
    """What a training needs.

    Attributes:
        train, validation: their labels count in `classes`.
        classes: sorted union of both.
        warnings: what is odd but does not stop the training.
        skipped: how many lines were left out.
    """

    train: Records
    validation: Records
    classes: tuple[str, ...]
    warnings: list[Problem]
    skipped: int


@dataclass(frozen=True, slots=True)
class Checked:
    """One set of data whose images have been checked.

    Attributes:
        records: those without any error.
        problems, skipped: of reading and of checking.
        is_complete: as in ReadResult.
    """

    records: Records
    problems: list[Problem]
    skipped: list[Skipped]
    is_complete: bool


def load(
    task: Task,
    data: Sequence[str | os.PathLike[str]],
    validation_data: Sequence[str | os.PathLike[str]] = (),
    *,
    validation_size: float = 0.2,
    seed: int = 0,
    datastores: Mapping[str, str] | None = None,
    skip_invalid: bool = False,
    skipped_path: Path | None = None,
    check_images: bool = True,
    progress: bool = True,
) -> Data:
    """Read, check and, where no validation data are given, split.

    Args:
        data, validation_data: .jsonl files and MLTable folders, local or by URL.
        validation_size: the share of the training data to validate on, if there are no validation data.
        datastores: Azure datastore name → local directory or URL with its content.
        skip_invalid: leave wrong lines out instead of refusing the data.
        skipped_path: where to write the lines left out, with the reasons; only if there are any.
        check_images: decode every image once, rather than only look whether local files exist.

    Raises:
        DataError: with everything that is wrong (of each kind the first 50).
    """
    given = [data, validation_data] if validation_data else [data]
    sets = [
        check(read(paths, task, datastores=datastores), images=check_images, progress=progress)
        for paths in given
    ]
    train, validation = sets[0].records, sets[1].records if validation_data else None
    found = [problem for part in sets for problem in part.problems]
    is_complete = all(part.is_complete for part in sets)
    of_all = across(train, validation, task) if is_complete else []
    if not is_complete or _has_errors(of_all) or (_has_errors(found) and not skip_invalid):
        skipping_helps = is_complete and not skip_invalid and not _has_errors(of_all)
        raise _refusal([*found, *of_all], skipping_helps)

    skipped = [entry for part in sets for entry in part.skipped]
    if skipped and skipped_path is not None:
        write_skipped(skipped_path, skipped)
    if validation is None:
        try:
            training_indices, validation_indices = split(train, task, validation_size, seed)
        except DataError as error:
            # The lines left out are likely why.
            raise _refusal([*found, *of_all, *error.problems], False) if skipped else error from None
        train, validation = train.subset(training_indices), train.subset(validation_indices)
    classes = tuple(sorted({*train.classes, *validation.classes}))
    return Data(
        train=train.relabelled(classes),
        validation=validation.relabelled(classes),
        classes=classes,
        warnings=[problem for problem in [*found, *of_all] if problem.warning],
        skipped=len(skipped),
    )


def check(result: ReadResult, *, images: bool, progress: bool = False) -> Checked:
    """Check the images of records.

    Args:
        images: decode every image (remote ones are fetched), rather than only look whether local files exist.
    """
    records = result.records
    found = inspect(records, decode=images, progress=progress)
    records = replace(records, looks=found.looks)
    problems = [*result.problems, *found.problems]
    if not found.reasons:
        return Checked(records, problems, result.skipped, result.is_complete)
    skipped = [
        Skipped(result.files[records.file_index[index]], int(records.lines[index]), (reason,))
        for index, reason in found.reasons.items()
    ]
    order = {file: position for position, file in enumerate(result.files)}
    skipped = sorted([*result.skipped, *skipped], key=lambda entry: (order[entry.file], entry.line))
    keep = np.setdiff1d(np.arange(len(records)), np.fromiter(found.reasons, dtype=np.int64))
    return Checked(records.subset(keep).without_unused_classes(), problems, skipped, result.is_complete)


def across(train: Records, validation: Records | None, task: Task) -> list[Problem]:
    """What is wrong or odd with the data as a whole."""
    problems = []
    if len(train) == 0:
        problems.append(Problem("training data", "", "nothing is left to train on"))
    elif task.has_boxes and not len(train.labels):
        problems.append(Problem("training data", "", "must hold at least one object", "images without any"))
    elif not train.classes:
        problems.append(Problem("training data", "", "must hold at least one class", "images without labels"))
    elif task.is_classification and len(train.classes) < 2:
        rule = "should hold at least two classes"
        problems.append(Problem("training data", "", rule, f"only {train.classes[0]!r}", warning=True))
    if validation is not None:
        if len(validation) == 0:
            problems.append(Problem("validation data", "", "nothing is left to validate on"))
        problems += _untrained(train, validation)
        problems += _in_both(train, validation)
    classes = {*train.classes, *(validation.classes if validation is not None else ())}
    return problems + _alike(sorted(classes))


def _untrained(train: Records, validation: Records) -> list[Problem]:
    """Warn of classes that only validation data have."""
    problems = []
    for name in sorted(set(validation.classes) - set(train.classes)):
        label = np.flatnonzero(validation.labels == validation.classes.index(name))[0]
        first = int(np.searchsorted(validation.starts, label, side="right")) - 1
        rule = "class has no training image and will never be predicted"
        problems.append(Problem(validation.location(first), "label", rule, repr(name), warning=True))
    return problems


def _in_both(train: Records, validation: Records) -> list[Problem]:
    """Warn of images that are in both sets."""
    in_train = np.isin(validation.source_hashes(), train.source_hashes())
    common = np.flatnonzero(in_train)
    if not len(common):
        return []
    first = int(common[0])
    hint = "figures on images seen in training flatter the model"
    hint = f"{len(common):,} images are in both, here the first; {hint}" if len(common) > 1 else hint
    rule = "image should not be in training data and in validation data"
    got = repr(validation.image_url(first))
    return [Problem(validation.location(first), "image_url", rule, got, hint, warning=True)]


def _alike(classes: Sequence[str]) -> list[Problem]:
    """Warn of class names that a reader would take for the same."""
    groups = defaultdict(list)
    for name in classes:
        groups[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    rule = "classes should differ in more than case, spaces or Unicode form"
    return [
        Problem(
            "classes",
            "label",
            rule,
            ", ".join(map(repr, names)),
            "if they are one class, name it alike",
            True,
        )
        for names in groups.values()
        if len(names) > 1
    ]


def _has_errors(problems: Iterable[Problem]) -> bool:
    return not all(problem.warning for problem in problems)


def _refusal(problems: Sequence[Problem], skipping_helps: bool) -> DataError:
    shown, seen = [], Counter[tuple[str, bool]]()
    for problem in problems:
        seen[problem.rule, problem.warning] += 1
        if seen[problem.rule, problem.warning] <= _SHOWN_OF_EACH_KIND:
            shown.append(problem)
    errors = sum(not problem.warning for problem in problems)
    summary = f"the data have {errors:,} error{'s' if errors > 1 else ''}"
    if skipping_helps:
        summary += "; mend them, or leave the wrong lines out with --skip-invalid"
    if len(shown) < len(problems):
        rest = f"{len(problems) - len(shown):,} more of the same kinds are not shown"
        shown.append(Problem("", "", rest, hint="`trainer validate` lists all"))
    return DataError(summary, shown)
