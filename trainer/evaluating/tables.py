"""Turns an analysis into tables, rows of plain values for CSV files and the terminal."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trainer.metrics.results import Analysis

Row = Mapping[str, Any]

_UNDEFINED = -1.0


def tables(analysis: Analysis) -> dict[str, list[Row]]:
    """The non-empty tables of an analysis by name."""
    result: dict[str, list[Row]] = {
        "figures": [{"figure": name, "value": value} for name, value in analysis.metrics.items()],
        "interval": [analysis.interval.model_dump()] if analysis.interval else [],
        "per_class": [{"class": name, **figures} for name, figures in analysis.per_class.items()],
        "image_level": [{"figure": name, "value": value} for name, value in analysis.image_level.items()],
        "errors": [each.model_dump() for each in analysis.errors],
        "thresholds": [
            {"class": name, **each.model_dump(), **_at_served_threshold(analysis, name)}
            for name, each in analysis.thresholds.items()
        ],
        "calibration": [analysis.calibration.model_dump(exclude={"reliability"})]
        if analysis.calibration
        else [],
        "confusion": [
            {
                **({} if matrix.score_threshold is None else {"score_threshold": matrix.score_threshold}),
                **({"class": matrix.name} if matrix.name else {}),
                "true": true,
                "predicted": predicted,
                "count": count,
            }
            for matrix in analysis.confusion_matrices
            for true, counts in zip(matrix.rows, matrix.counts, strict=True)
            for predicted, count in zip(matrix.columns, counts, strict=True)
        ],
        "confused_pairs": [_flat_row(each) for each in analysis.confused_pairs],
        "mistakes": [_flat_row(each) for each in analysis.mistakes],
        "worst_images": [_flat_row(each) for each in analysis.worst_images],
        "label_issues": [_flat_row(each) for each in analysis.label_issues],
        "slices": [{**each.model_dump(exclude={"metrics"}), **each.metrics} for each in analysis.slices],
        "curves": [
            {"kind": kind, "name": curve.name, "x": x, "y": y, "score": score}
            for kind, curves in analysis.curves.items()
            for curve in curves
            for x, y, score in itertools.zip_longest(curve.x, curve.y, curve.scores)
        ],
    }
    return {name: rows for name, rows in result.items() if rows}


def write_tables(analysis: Analysis, directory: Path) -> None:
    """Write each table as NAME.csv; undefined values are empty in classification, otherwise -1.

    Raises:
        OSError: a file cannot be written.
    """
    for name, rows in tables(analysis).items():
        with (directory / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(
                {key: "" if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()}
                for row in rows
            )


def text_of(value: Any) -> str:
    """A value for the terminal; a dash if it is undefined."""
    if value is None or (isinstance(value, float) and (math.isnan(value) or value == _UNDEFINED)):
        return "–"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) > 1 else f"{value:.4f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(text_of(each) if isinstance(each, float) else str(each) for each in value)
    return str(value)


def _at_served_threshold(analysis: Analysis, name: str) -> dict[str, float]:
    """The metrics of a class at the threshold that the model is served with."""
    if name not in analysis.served:
        return {}
    return {f"served_{key}": value for key, value in analysis.served[name].model_dump().items()}


def _flat_row(entry: BaseModel) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in entry.model_dump().items():
        if key in ("box", "given_box"):
            sides = value or ("", "", "", "")
            prefix = "given_" if key == "given_box" else ""
            names = ("topX", "topY", "bottomX", "bottomY")
            row |= {f"{prefix}{side}": number for side, number in zip(names, sides, strict=True)}
        else:
            row[key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return row


def sample(rows: Sequence[Row], columns: Sequence[str], limit: int) -> tuple[list[list[str]], int]:
    """The cells of the first rows in the given columns, and the number of rows left out."""
    cells = [[text_of(row.get(column)) for column in columns] for row in rows[:limit]]
    return cells, max(0, len(rows) - limit)
