"""Compares the evaluations of several models on the same data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import RunError
from trainer.evaluating.evaluate import Evaluation
from trainer.evaluating.intervals import Resampling, compare
from trainer.files import write_atomically
from trainer.metrics.intervals import Difference
from trainer.report.comparison_report import write_evaluations

COMPARISON_FILE, COMPARISON_PAGE = "comparison.json", "comparison.html"


def compare_evaluations(
    evaluations: Sequence[tuple[str, Evaluation]], options: Resampling, output: Path | None = None
) -> list[Difference]:
    """The paired difference of the primary metric between every two models.

    Args:
        evaluations: name and evaluation of each model.
        output: directory to write comparison.json and comparison.html to.

    Raises:
        RunError: the output cannot be written, or the models have different tasks or primary metrics.
    """
    measured = [(name, each.primary) for name, each in evaluations if each.primary is not None]
    metrics = sorted({each.name for _, each in measured})
    if len(metrics) > 1:
        raise RunError(
            f"the runs have different primary metrics: {', '.join(metrics)}; name the one to compare them by "
            "with --primary-metric"
        )
    differences = compare(measured, options)
    if output is not None:
        entries = [
            {**json.loads(each.model_dump_json()), "is_clear": each.is_clear, "verdict": each.verdict}
            for each in differences
        ]
        try:
            text = json.dumps({"differences": entries}, indent=1, ensure_ascii=False)
            write_atomically(output / COMPARISON_FILE, text + "\n")
            analyses = [(name, each.analysis) for name, each in evaluations]
            write_evaluations(analyses, differences, output / COMPARISON_PAGE)
        except OSError as error:
            raise RunError(f"{output}: cannot be written to: {error.strerror}") from error
    return differences
