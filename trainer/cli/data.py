"""`trainer validate` and `trainer sample-data`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

from trainer.cli.application import app
from trainer.cli.arguments import Count, Datastores, a_task, mapping
from trainer.tasks import Task


@app.command
def validate(
    data: list[str],
    /,
    *,
    task: Annotated[str, a_task("What the data are for.")],
    validation_data: list[str] | None = None,
    images: bool = False,
    report: Path | None = None,
    datastore: Datastores = None,
) -> int:
    """Check data against the schema; prints every problem and exits with 1 if there is an error.

    Example:

        trainer validate --task object-detection train.jsonl --validation-data validation.jsonl --report data

    Parameters
    ----------
    data
        .jsonl files and MLTable folders.
    validation_data
        Validation data, to be checked likewise, and for images that are in both; may be given several times.
    images
        Also read every image to its end.
    report
        Write report.html into this folder: classes, sizes, annotated examples, and what is odd, such as
        copies, training images among the validation data, tiny boxes, rare classes; its charts as SVG and its
        tables as CSV beside it. Without --images at most 20,000 images are looked at for it.
    """
    from trainer.data.validate import validate as check

    kind = Task.parse(task)
    found = check(
        kind, data, validation_data or (), images=images, datastores=mapping(datastore), progress=images
    )
    for problem in found.problems:
        print(problem)
    if found.validation_summary is None:
        print(found.summary)
    else:
        print(f"training data: {found.summary}\nvalidation data: {found.validation_summary}")
    if report is not None:
        from trainer.report.data_report import write_data_report

        print(f"report  {write_data_report(report, found)}")
    return 1 if found.errors else 0


@app.command
def sample_data(
    task: Annotated[str, a_task("What the data are for.")],
    directory: Path,
    /,
    *,
    images: Count = 200,
    seed: Count = 0,
) -> None:
    """Write a small real data set: scenes of scikit-learn's handwritten digits, in the data schema.

    Parameters
    ----------
    directory
        Where to write train.jsonl, validation.jsonl and images/.
    images
        How many, a fifth of them for validation.
    seed
        Another seed, other scenes.
    """
    from trainer.data.samples import make

    made = make(Task.parse(task), directory, images=images, seed=seed, progress=sys.stdout.isatty())
    print(f"training data    {made.train}\nvalidation data  {made.validation}")
    print(
        f"\nnext:  trainer fit --task {Task.parse(task)} --data {shlex.quote(str(made.train))} "
        f"--validation-data {shlex.quote(str(made.validation))} --weights none"
    )
