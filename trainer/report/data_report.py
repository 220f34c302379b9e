"""Writes the report of `trainer validate --report`: the sections about the data, before any training."""

from __future__ import annotations

from pathlib import Path

from trainer.data.quality.examined_images import examine
from trainer.data.validate import ValidationReport
from trainer.errors import RunError
from trainer.report.embedded_images import EmbeddedImages
from trainer.report.page import Page
from trainer.report.sections.data_overview import add_data_overview
from trainer.report.sections.data_problems import add_data_problems


def write_data_report(directory: Path, checked: ValidationReport) -> Path:
    """Write report.html into a directory, with its charts as SVG and its tables as CSV next to it.

    Raises:
        RunError: the directory or a file cannot be written.
    """
    page = Page(f"Data for {checked.train.task}", ", ".join(checked.train.files))
    embedded = EmbeddedImages()
    images = examine(checked.train, checked.validation) if len(checked.train) else None
    if images is not None:
        add_data_overview(page, images, embedded)
    add_data_problems(page, images, embedded, checked.problems)
    path = directory / "report.html"
    try:
        page.write_parts(directory)
        page.write(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path
