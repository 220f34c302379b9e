"""`trainer validate` and `trainer sample-data`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from trainer.cli.application import app
from trainer.cli.arguments import Count, Datastores, TaskName, mapping
from trainer.tasks import Task


@app.command
def validate(
    data: list[str],
    /,
    *,
    task: TaskName,
    images: bool = False,
    datastore: Datastores = None,
) -> int:
    """Check data against the schema; prints every problem and exits with 1 if there is an error.

    Parameters
    ----------
    data
        .jsonl files and MLTable folders.
    images
        Also read every image to its end.
    """
    from trainer.data.validate import validate as check

    report = check(Task.parse(task), data, images=images, datastores=mapping(datastore, {}), progress=images)
    for problem in report.problems:
        print(problem)
    print(report.summary)
    return 1 if report.errors else 0


@app.command
def sample_data(task: TaskName, directory: Path, /, *, images: Count = 200, seed: Count = 0) -> None:
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
