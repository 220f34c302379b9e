"""An analysis as tables: rows of plain values, for CSV files and for the terminal."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trainer.metrics.results import Analysis

Row = Mapping[str, Any]

_UNDEFINED = -1.0


def tables(analysis: Analysis) -> dict[str, list[Row]]:
    """Every table of an analysis by name, without the empty ones."""
    made: dict[str, list[Row]] = {
        "figures": [{"figure": name, "value": value} for name, value in analysis.metrics.items()],
        "per_class": [{"class": name, **figures} for name, figures in analysis.per_class.items()],
        "image_level": [{"figure": name, "value": value} for name, value in analysis.image_level.items()],
        "errors": [each.model_dump() for each in analysis.errors],
        "thresholds": [
            {"class": name, **each.model_dump(), **_served(analysis, name)}
            for name, each in analysis.thresholds.items()
        ],
        "calibration": [analysis.calibration.model_dump()] if analysis.calibration else [],
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
        "confused_pairs": [_flat(each) for each in analysis.confused_pairs],
        "mistakes": [_flat(each) for each in analysis.mistakes],
        "worst_images": [_flat(each) for each in analysis.worst_images],
        "label_issues": [_flat(each) for each in analysis.label_issues],
        "slices": [
            {
                "by": each.by,
                "value": each.value,
                "images": each.images,
                "objects": each.objects,
                **each.metrics,
            }
            for each in analysis.slices
        ],
        "curves": [
            {
                "kind": kind,
                "name": curve.name,
                "x": x,
                "y": y,
                "score": curve.scores[point] if curve.scores else None,
            }
            for kind, curves in analysis.curves.items()
            for curve in curves
            for point, (x, y) in enumerate(zip(curve.x, curve.y, strict=True))
        ],
    }
    return {name: rows for name, rows in made.items() if rows}


def write_tables(analysis: Analysis, directory: Path) -> list[Path]:
    """Write each table as NAME.csv; what is undefined is empty in classification, and -1 else.

    Raises:
        OSError: they cannot be written.
    """
    written = []
    for name, rows in tables(analysis).items():
        path = directory / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(
                {key: "" if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()}
                for row in rows
            )
        written.append(path)
    return written


def shown(value: Any) -> str:
    """A value as a reader of the terminal wants it; a dash for what is undefined."""
    if value is None or (isinstance(value, float) and (math.isnan(value) or value == _UNDEFINED)):
        return "–"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) > 1 else f"{value:.4f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(each) if isinstance(each, float) else str(each) for each in value)
    return str(value)


def _served(analysis: Analysis, name: str) -> dict[str, float]:
    """What a class has at the threshold that the model answers with."""
    if name not in analysis.served:
        return {}
    return {f"served_{key}": value for key, value in analysis.served[name].model_dump().items()}


def _flat(entry: BaseModel) -> dict[str, Any]:
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


def sample(rows: Sequence[Row], columns: Sequence[str], most: int) -> tuple[list[list[str]], int]:
    """The first rows' cells under some columns, and how many more there are."""
    cells = [[shown(row.get(column)) for column in columns] for row in rows[:most]]
    return cells, max(0, len(rows) - most)
