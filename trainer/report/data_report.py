"""`trainer validate --report`: the report's part about the data alone, before any training."""

from __future__ import annotations

from pathlib import Path

from trainer.data.quality.examined_images import look_at
from trainer.data.validate import Report
from trainer.errors import RunError
from trainer.report.embedded_images import Pictures
from trainer.report.markup import paragraph
from trainer.report.page import Page
from trainer.report.sections import data_overview


def write(directory: Path, checked: Report) -> Path:
    """Write report.html into a directory, its charts as SVG and its tables as CSV beside it.

    Raises:
        RunError: that cannot be written there.
    """
    task = checked.train.task
    page = Page(f"Data for {task}", ", ".join(checked.train.files))
    if len(checked.train):
        images = look_at(checked.train, checked.validation)
        data_overview.add(page, images, Pictures(), checked.problems)
    else:
        page.add(
            "Problems found",
            paragraph("No line is without an error."),
            *data_overview.of_the_schema(checked.problems),
        )
    path = directory / "report.html"
    try:
        page.write_parts(directory)
        page.write(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path
