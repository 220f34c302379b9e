"""`trainer report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from trainer.cli.application import app


@app.command
def report(
    runs: Annotated[list[Path], Parameter(consume_multiple=True)], /, *, output: Path | None = None
) -> None:
    """Rewrite a run's report.html, or compare several runs of one task side by side.

    A run writes its report when it ends; this command writes it again, for example after an update. Where the
    data have moved, the report says so and omits the parts that need them.

    Examples:

        trainer report runs/one
        trainer report runs/one runs/two --output comparison.html

    Parameters
    ----------
    runs
        Directories of finished runs.
    output
        File to write. [default: report.html in the run's directory; comparison.html here for several runs]
    """
    from trainer.training.report_writing import remake

    print(f"report  {remake(runs, output)}")
