"""Scans of images that a sweep has made, so that its trials do not decode every image again."""

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
"""Environment variable that names the file which `write_scans` wrote."""

SCANS_FILE = "image_scans.json"
"""This file's name in a sweep's directory of trials."""


def write_scans(path: Path, parts: Sequence[Records]) -> None:
    """Write the scans of records, for the processes that read the same data soon."""
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
    """A function that returns the scan of an image file, if it is known and the file has not changed since.

    The range of samples of more than 8 bits is not known; the sweep has warned of those that are guessed.
    """
    try:
        known = json.loads(Path(environment.get(KNOWN_SCANS, "")).read_bytes())
    except (OSError, ValueError):  # there is none: each image is decoded
        return lambda _: None

    def find(source: str) -> Scan | None:
        values = known.get(source)
        if values is None or tuple(values[:2]) != _state(source):
            return None
        width, height, across, down = values[2:]
        return Scan((width, height), (across, down))

    return find


def _state(source: str) -> tuple[int, int] | None:
    """A file's size in bytes and time of change; a URL has none; None if there is no file."""
    if is_url(source):
        return 0, 0
    try:
        found = os.stat(source)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
