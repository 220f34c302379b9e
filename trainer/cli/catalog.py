"""`trainer models` and `trainer weights`."""

from __future__ import annotations

import sys
from typing import Annotated

from trainer.cli.application import app
from trainer.cli.arguments import a_task
from trainer.tasks import Task


@app.command
def models(*, task: Annotated[str | None, a_task("List only the models for this task.")] = None) -> None:
    """List the models: tasks, parameters, image size, licences, and whether this machine has the weights.

    One licence is that of the model's library, the other that of the published weights. The machine has the
    weights if they are in the directory that TRAINER_WEIGHTS names or in the library's own cache.
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
    Console(width=None if sys.stdout.isatty() else 220).print(table)
    print("\n`trainer weights --model NAME` lists what to download for a machine without a network.")
    for note in listing.other_versions():
        print(f"note: {note}")


@app.command
def weights(
    *,
    model: str,
    task: Annotated[str | None, a_task("Task for the `trainer fit` command to print.")] = None,
    backbone: str | None = None,
) -> None:
    """Print which file has a model's published weights, where to download it and where to put it.

    Parameters
    ----------
    model
        Name from `trainer models`, or timm/NAME.
    backbone
        Backbone of an R-CNN, timm/NAME, in the place of the one in the model's name.
    """
    from trainer.models import listing

    for line in listing.instructions(model, Task.parse(task) if task else None, backbone):
        print(line)
