"""Loads the training and validation data of a run: reads, checks and splits them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.quality.consistency import check_consistency, classes_without_training_images
from trainer.data.quality.image_checks import check_images as check_images_of
from trainer.data.reading.jsonl import read
from trainer.data.reading.records import Records
from trainer.data.reading.schema import LABEL_KEY
from trainer.data.reading.skipped import SkippedCount, write_skipped
from trainer.data.splitting import split
from trainer.errors import DataError, Problem
from trainer.tasks import Task

log = logging.getLogger("trainer")
_MAX_SHOWN_PER_RULE = 50


@dataclass(frozen=True, slots=True)
class Data:
    """The data of a training run.

    Attributes:
        train: labels are indices into `classes`.
        validation: the same for the validation data.
        classes: sorted union of the classes of both.
        warnings: suspicious findings that do not stop the run.
        skipped: number of lines and objects left out.
    """

    train: Records
    validation: Records
    classes: tuple[str, ...]
    warnings: list[Problem]
    skipped: SkippedCount

    def log_findings(self, skipped_path: Path) -> None:
        """Log the warnings, and how much is left out and listed in a file."""
        for warning in self.warnings:
            log.warning("%s", warning)
        if left_out := str(self.skipped):
            log.warning("left out %s, listed with the reasons in %s", left_out, skipped_path)


def load(
    task: Task,
    data: Sequence[str | os.PathLike[str]],
    validation_data: Sequence[str | os.PathLike[str]] = (),
    *,
    validation_size: float = 0.2,
    seed: int = 0,
    datastores: Mapping[str, str] | None = None,
    label_key: str = LABEL_KEY,
    skip_invalid: bool = False,
    skipped_path: Path | None = None,
    check_images: bool = True,
    check_classes: Callable[[Sequence[str]], None] = lambda _: None,
    progress: bool = True,
) -> Data:
    """Read and check data; split off validation data if none are given.

    Args:
        data: .jsonl files and MLTable folders, local or by URL.
        validation_data: the same.
        validation_size: fraction of the training data to validate on if there are no validation data.
        seed: determines the split.
        datastores: Azure datastore name → local directory or URL with its content.
        label_key: the key of each line that holds the label, Azure's target_column_name.
        skip_invalid: leave out invalid objects, lines and images instead of rejecting the data.
        skipped_path: gets the lines and objects left out, with the reasons; not written if there are none.
        check_images: decode every image once; otherwise only check that local files exist.
        check_classes: called with the classes once all lines are read, before the images are decoded, which
            may take long. Its errors are passed on.
        progress: show progress.

    Raises:
        DataError: the data are invalid; lists the problems, at most 50 for each rule.
    """
    results = [
        read(paths, task, datastores=datastores, label_key=label_key)
        for paths in ([data, validation_data] if validation_data else [data])
    ]
    if all(result.is_complete for result in results):
        check_classes(sorted({name for result in results for name in result.records.classes}))
    results = [check_images_of(result, decode=check_images, progress=progress) for result in results]
    train, validation = results[0].records, results[1].records if validation_data else None
    problems = [problem for result in results for problem in result.problems]
    is_complete = all(result.is_complete for result in results)
    overall = check_consistency(train, validation, task, label_key) if is_complete else []
    if not is_complete or _has_errors(overall) or (_has_errors(problems) and not skip_invalid):
        skipping_helps = is_complete and not skip_invalid and not _has_errors(overall)
        raise _data_error([*problems, *overall], skipping_helps)

    skipped = [entry for result in results for entry in result.skipped]
    if skipped and skipped_path is not None:
        write_skipped(skipped_path, skipped)
    if validation is None:
        try:
            training_indices, validation_indices = split(train, task, validation_size, seed)
        except DataError as error:
            # If lines were skipped, they are the likely cause: report both.
            raise _data_error([*problems, *overall, *error.problems], False) if skipped else error from None
        train, validation = train.subset(training_indices), train.subset(validation_indices)
        overall += classes_without_training_images(train, validation, label_key)
    classes = tuple(sorted({*train.classes, *validation.classes}))
    return Data(
        train=train.relabelled(classes),
        validation=validation.relabelled(classes),
        classes=classes,
        warnings=[problem for problem in [*problems, *overall] if problem.warning],
        skipped=SkippedCount.of(skipped),
    )


def errors_found(count: int, skipping_helps: bool) -> str:
    """The first line of an error about invalid data."""
    summary = f"the data have {count:,} error{'s' if count > 1 else ''}"
    return summary + "; fix them, or leave them out with --skip-invalid" if skipping_helps else summary


def _has_errors(problems: Iterable[Problem]) -> bool:
    return not all(problem.warning for problem in problems)


def _data_error(problems: Sequence[Problem], skipping_helps: bool) -> DataError:
    shown, counts = [], Counter[tuple[str, bool]]()
    for problem in problems:
        counts[problem.rule, problem.warning] += 1
        if counts[problem.rule, problem.warning] <= _MAX_SHOWN_PER_RULE:
            shown.append(problem)
    errors = sum(not problem.warning for problem in problems)
    if len(shown) < len(problems):
        hidden = f"{len(problems) - len(shown):,} more of the same kinds are not shown"
        shown.append(Problem("", "", hidden, hint="`trainer validate` lists all"))
    return DataError(errors_found(errors, skipping_helps), shown)
