"""Loads the data that a job names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.data.training_data import Data, load
from trainer.errors import JobError, Problem, did_you_mean
from trainer.job.job import Job
from trainer.metric_names import CLASSWISE

_MOST_LISTED = 30
"""Classes that the error of a metric of an unknown class lists."""


def load_data(
    job: Job,
    seed: int | None,
    *,
    skipped_path: Path | None = None,
    check_images: bool = True,
    progress: bool = False,
) -> Data:
    """Check and load the data of a job, split where it has no validation data.

    Args:
        seed: the job's random_seed, which decides the split.
        skipped_path: gets the records that are skipped, if there are any.
        check_images: decode every image once.
        progress: show the progress of the check.

    Raises:
        DataError: the data are missing or break the schema; lists all problems.
        JobError: the primary metric is that of a class that the data lack.
    """

    def check_classes(classes: Sequence[str]) -> None:
        name = job.metric.removeprefix(CLASSWISE)
        if name != job.metric and name not in classes:
            listed = ", ".join(classes[:_MOST_LISTED]) + (", …" if len(classes) > _MOST_LISTED else "")
            hint = did_you_mean(name, classes, otherwise=f"there are {listed}")
            problem = Problem("", "primary_metric", "must name a class of the data", repr(name), hint)
            raise JobError("the job cannot be run:", [problem])

    data = load(
        job.task,
        job.training_data,
        job.validation_data,
        validation_size=job.validation_data_size,
        seed=seed or 0,
        datastores=job.datastores,
        label_key=job.target_column_name,
        skip_invalid=job.skip_invalid,
        skipped_path=skipped_path,
        check_images=check_images,
        check_classes=check_classes,
        progress=progress,
    )
    check_classes(data.classes)  # again: all images of a class may have been skipped
    return data
