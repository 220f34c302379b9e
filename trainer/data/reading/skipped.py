"""Lines and objects that are left out of the records, and the file that lists them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.reading.data_file import DataFile, pick_lines
from trainer.data.reading.repeated_keys import parse


@dataclass(frozen=True, slots=True)
class Skipped:
    """What is left out of a line, and why.

    Attributes:
        file: the data file.
        line: counted from 1.
        reasons: what is wrong with it.
        objects: indices of the objects left out, none if it is only segments of objects; None if the whole
            line is left out.
    """

    file: DataFile
    line: int
    reasons: tuple[str, ...]
    objects: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class SkippedCount:
    """How much is left out.

    Attributes:
        lines: number of whole lines.
        objects: number of objects of other lines.
    """

    lines: int = 0
    objects: int = 0

    @classmethod
    def of(cls, skipped: Iterable[Skipped]) -> SkippedCount:
        """Count what is left out."""
        left_out = [entry.objects for entry in skipped]
        return cls(
            sum(objects is None for objects in left_out), sum(len(objects or ()) for objects in left_out)
        )

    def __str__(self) -> str:
        counts = ((self.lines, "line"), (self.objects, "object"))
        return " and ".join(f"{count:,} {noun}{'s' * (count > 1)}" for count, noun in counts if count)


def write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """Write what is left out as JSON lines {file, line, reasons, objects, record}.

    `objects` holds the indices of the objects left out; the key is missing if the whole line is. `record` is
    the original line: as a JSON value if it is valid JSON and repeats no key, otherwise as text.
    """
    by_file: dict[DataFile, list[Skipped]] = defaultdict(list)
    for entry in skipped:
        by_file[entry.file].append(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as stream:
        for file, entries in by_file.items():
            texts = pick_lines(file, [entry.line for entry in entries])
            for entry in entries:
                text = texts[entry.line].decode("utf-8", errors="backslashreplace").rstrip("\r")
                line: dict[str, Any] = {"file": file.name, "line": entry.line, "reasons": entry.reasons}
                if entry.objects is not None:
                    line["objects"] = entry.objects
                line["record"] = _as_json(text)
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _as_json(text: str) -> Any:
    try:
        content, repeated = parse(text)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return text.encode("utf-8", errors="backslashreplace").decode()
    return text if repeated else content
