"""`trainer models` and `trainer weights`."""

from __future__ import annotations

import sys
from typing import Annotated

from trainer.cli.application import app
from trainer.cli.arguments import a_task
from trainer.tasks import Task


@app.command
def models(*, task: Annotated[str | None, a_task("List the models for this task alone.")] = None) -> None:
    """List the models: name, tasks, parameters, image size, licences, and whether their weights are here.

    The licences are those of the library that has the model, and of the weights that it publishes. Weights
    are here if TRAINER_WEIGHTS names a directory with them, or the library's own cache holds them.
    """
    from rich.console import Console
    from rich.table import Table

    from trainer.models import listing

    columns = ("model", "tasks", "parameters", "image size", "library", "weights", "here")
    table = Table(*columns, box=None, header_style="bold")
    table.columns[2].justify = "right"
    for row in listing.rows(Task.parse(task) if task else None):
        count = f"{row.parameters / 1e6:.1f} M" if row.parameters else ""
        cells = (row.model, ", ".join(row.tasks), count, row.image_size, row.library, row.weights)
        table.add_row(*cells, row.here)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    print("\n`trainer weights --model NAME` says what to download for a machine without a network.")
    for remark in listing.other_versions():
        print(f"note: {remark}")


@app.command
def weights(
    *,
    model: str,
    task: Annotated[str | None, a_task("The task in the `trainer fit` line that is printed.")] = None,
) -> None:
    """Say which file holds a model's published weights, from where to get it, and where to put it.

    Parameters
    ----------
    model
        A name from `trainer models`, or timm/NAME.
    """
    from trainer.models import listing

    for line in listing.instructions(model, Task.parse(task) if task else None):
        print(line)
