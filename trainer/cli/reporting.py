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
    """Write a run's report.html anew, or compare several runs of one task side by side.

    Examples:

        trainer report runs/one
        trainer report runs/one runs/two --output comparison.html

    A training writes its report at its end; this does it again, for example after an update. The report holds
    what the data let it: where they have been moved, it says so and leaves out what needs them.

    Parameters
    ----------
    runs
        Directories of finished runs.
    output
        The file to write. [default: report.html in the run's directory; comparison.html here for several]
    """
    from trainer.training.report_writing import remake

    print(f"report  {remake(runs, output)}")
