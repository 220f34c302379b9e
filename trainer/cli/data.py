"""`trainer validate` and `trainer sample-data`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

from trainer.cli.application import app
from trainer.cli.arguments import Count, Datastores, TargetColumn, a_task, mapping
from trainer.tasks import Task


@app.command
def validate(
    data: list[str],
    *,
    task: Annotated[str, a_task("The task that the data are for.")],
    validation_data: list[str] | None = None,
    images: bool = False,
    report: Path | None = None,
    datastore: Datastores = None,
    target_column_name: TargetColumn = "label",
) -> int:
    """Check data against the schema, print every problem, and exit with 1 if there is an error.

    Example:

        trainer validate --task object-detection train.jsonl --validation-data validation.jsonl

    Parameters
    ----------
    data
        JSONL files and MLTable folders.
    validation_data
        Validation data to check too, also for images that are in the training data. May be repeated.
    images
        Also decode every image.
    report
        Write report.html into this folder, with its charts as SVG and its tables as CSV: classes, sizes,
        annotated examples, and suspicious data such as duplicates, training images among the validation data,
        tiny boxes and rare classes. Without --images it looks at no more than 20,000 images.
    """
    from trainer.api import validate as check

    checked = check(
        task,
        data,
        validation_data or (),
        images=images,
        datastores=mapping(datastore),
        target_column_name=target_column_name,
        progress=images,
    )
    for problem in checked.problems:
        print(problem)
    if checked.validation_summary is None:
        print(checked.summary)
    else:
        print(f"training data: {checked.summary}\nvalidation data: {checked.validation_summary}")
    if report is not None:
        from trainer.report.data_report import write_data_report

        print(f"report  {write_data_report(report, checked)}")
    return 1 if checked.errors else 0


@app.command
def sample_data(
    task: Annotated[str, a_task("The task that the data are for.")],
    directory: Path,
    /,
    *,
    images: Count = 200,
    seed: Count = 0,
) -> None:
    """Write a small real data set in the data schema: images composed of scikit-learn's handwritten digits.

    Example:

        trainer sample-data object-detection digits

    Parameters
    ----------
    directory
        Folder for train.jsonl, validation.jsonl and images/; files are never overwritten.
    images
        Number of images; a fifth of them is for validation.
    seed
        Another seed composes other images.
    """
    from trainer.data.samples import make

    made = make(Task.parse(task), directory, images=images, seed=seed, progress=sys.stdout.isatty())
    print(f"training data    {made.train}\nvalidation data  {made.validation}")
    print(
        f"\nnext:  trainer fit --task {Task.parse(task)} --data {shlex.quote(str(made.train))} "
        f"--validation-data {shlex.quote(str(made.validation))} --weights none"
    )
