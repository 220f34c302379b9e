"""Lines that are left out of the records, and the file that lists them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.reading.data_file import DataFile, pick_lines


@dataclass(frozen=True, slots=True)
class Skipped:
    """A line that is not among the records, and why; `line` counts from 1."""

    file: DataFile
    line: int
    reasons: tuple[str, ...]


def write_skipped(path: Path, skipped: Iterable[Skipped]) -> None:
    """Write skipped lines as JSON lines {file, line, reasons, record}.

    `record` is the original line: as a JSON value if it is valid JSON, otherwise as text.
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
                record = _as_json(text)
                line = {"file": file.name, "line": entry.line, "reasons": entry.reasons, "record": record}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _as_json(text: str) -> Any:
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return text.encode("utf-8", errors="backslashreplace").decode()
    return content
