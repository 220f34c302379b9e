"""Hands a sweep's scans of its images to its trials, which then need not decode every image again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trainer.data.image_scan import Scan
from trainer.data.reading.records import Records
from trainer.data.reading.urls import is_url
from trainer.files import write_atomically

KNOWN_SCANS = "TRAINER_IMAGE_SCANS"
"""Environment variable with the path of the file that `write_scans` wrote."""

SCANS_FILE = "image_scans.json"
"""Name of that file in a sweep's directory of trials."""


def write_scans(path: Path, parts: Sequence[Records]) -> None:
    """Write the scans of records to a file, for other processes that read the same data."""
    known: dict[str, tuple[int, ...]] = {}
    for records in parts:
        if records.scans is None:
            continue
        numbers = zip(records.scans.sizes.tolist(), records.scans.hashes.tolist(), strict=True)
        for index, (size, hashes) in enumerate(numbers):
            source = records.source(index)
            state = _state(source)
            if all(size) and state is not None:
                known[source] = (*state, *size, *hashes)
    write_atomically(path, json.dumps(known))


def known_scans(environment: Mapping[str, str] = os.environ) -> Callable[[str], Scan | None]:
    """Return a function that gives an image file's scan, or None if it is unknown or the file has changed.

    The scans lack the value range of images above 8 bits; the sweep itself has warned of guessed ranges.
    """
    try:
        known = json.loads(Path(environment.get(KNOWN_SCANS, "")).read_bytes())
    except (OSError, ValueError):  # no file, so every image is decoded
        return lambda _: None

    def find(source: str) -> Scan | None:
        values = known.get(source)
        if values is None or tuple(values[:2]) != _state(source):
            return None
        width, height, across, down = values[2:]
        return Scan((width, height), (across, down))

    return find


def _state(source: str) -> tuple[int, int] | None:
    """A file's size in bytes and modification time in ns, zeros for a URL; None if there is no file."""
    if is_url(source):
        return 0, 0
    try:
        found = os.stat(source)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
