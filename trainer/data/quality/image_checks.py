"""Checks the images of records: they exist, can be decoded and have the declared shape."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from urllib.parse import unquote_to_bytes

import numpy as np
import numpy.typing as npt

from trainer.annotations import IntArray
from trainer.cores import available_cores
from trainer.data.image_scan import Scan, scan
from trainer.data.image_sources import read_image
from trainer.data.images import ImageError, missing_image
from trainer.data.progress import track
from trainer.data.quality.known_scans import known_scans
from trainer.data.reading.file_report import first_of
from trainer.data.reading.jsonl import ReadResult
from trainer.data.reading.records import Folder, Records, Scans
from trainer.data.reading.skipped import Skipped
from trainer.data.reading.urls import UrlError, is_url
from trainer.data.sample_range import SampleRange
from trainer.errors import Problem
from trainer.files import describe_lookalike

_IMAGES_PER_BLOCK = 4096
_MIN_IMAGES_TO_LIST = 32
"""Folders with this many images are listed once: on a network drive, checking each file is slow."""
_SHAPE_TOLERANCE = 0.02


def check_images(result: ReadResult, *, decode: bool, progress: bool = False) -> ReadResult:
    """Check the images of records and leave out the records whose image cannot be used.

    Args:
        decode: read every image to its end, fetching remote ones; otherwise local files only have to exist.
        progress: show progress while decoding.

    Returns:
        The result without these records, their lines added to `skipped` and the problems to `problems`. After
        decoding, the records have `scans`.
    """
    records = result.records
    problems: list[tuple[int, Problem]] = []  # with the index of the record
    reasons: dict[int, str] = {}  # index of each record without a usable image → reason
    folders = _by_folder(records)
    present, missing = _split_by_presence(records, folders)
    for indices in missing:
        first = int(indices[0])
        folder = os.path.dirname(records.source(first))
        where, rule = records.location(first), "must be in a folder that exists"
        hint = "; ".join(filter(None, [describe_lookalike(folder), first_of(len(indices))]))
        problems.append((first, Problem(where, "image_url", rule, folder, hint)))
        reasons |= dict.fromkeys(indices.tolist(), str(Problem("", "image_url", rule, folder)))

    rest = np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *present]))
    scans, guessed_ranges = Scans.empty(len(records)), dict[int, SampleRange]()
    outcomes: Iterator[tuple[int, str | Scan | None]]
    outcomes = _scan_each(records, rest) if decode else _missing_files(records, present)
    if decode and progress:
        outcomes = track(outcomes, "checking images", len(rest))
    for index, outcome in outcomes:
        if isinstance(outcome, str):
            written, source = records.image_url(index), records.source(index)
            got = f"{written!r}: {outcome}" + (f" ({source})" if source != written else "")
            problem = Problem(records.location(index), "image_url", "must name a readable image", got)
            problems.append((index, problem))
            reasons[index] = str(replace(problem, where=""))
        elif outcome is not None:
            scans.sizes[index], scans.hashes[index] = outcome.size, outcome.hash
            if outcome.sample_range is not None and not outcome.sample_range.is_known:
                guessed_ranges[index] = outcome.sample_range
    problems += _guessed_ranges(records, guessed_ranges)
    problems += _different_shapes(records, scans.sizes.astype(np.int64))
    in_order = [problem for _, problem in sorted(problems, key=lambda entry: entry[0])]
    if decode:
        records = replace(records, scans=scans)
    result = replace(result, records=records, problems=[*result.problems, *in_order])
    return _without(result, reasons) if reasons else result


def scan_images(records: Records, indices: IntArray) -> Scans:
    """Fetch and decode the images of some records; the others, and unreadable ones, stay zero."""
    scans = Scans.empty(len(records))
    for index, outcome in _scan_each(records, indices):
        if isinstance(outcome, Scan):
            scans.sizes[index], scans.hashes[index] = outcome.size, outcome.hash
    return scans


def _without(result: ReadResult, reasons: dict[int, str]) -> ReadResult:
    """The result without the records in `reasons` (index → reason), which become skipped lines."""
    records = result.records
    files = {file: number for number, file in enumerate(result.files)}
    skipped = {(files[entry.file], entry.line): entry for entry in result.skipped}
    for index, reason in reasons.items():
        place = int(records.file_index[index]), int(records.lines[index])
        for number, line in (place, *result.further_lines.get(place, ())):
            earlier = skipped.get((number, line))
            all_reasons = (*(earlier.reasons if earlier else ()), reason)
            skipped[number, line] = Skipped(result.files[number], line, all_reasons)
    in_order = [skipped[place] for place in sorted(skipped)]
    usable = np.setdiff1d(np.arange(len(records)), np.fromiter(reasons, dtype=np.int64))
    return replace(result, records=records.subset(usable).without_unused_classes(), skipped=in_order)


def _by_folder(records: Records) -> list[IntArray]:
    """The indices of the records of each folder, int64 [k] for each; see `Records.folders`."""
    order = np.argsort(records.folder_index, kind="stable")
    folders = records.folder_index[order]
    return np.split(order, np.flatnonzero(folders[1:] != folders[:-1]) + 1) if len(records) else []


def _split_by_presence(
    records: Records, folders: Sequence[IntArray]
) -> tuple[list[IntArray], list[IntArray]]:
    """Separate the records in local folders that do not exist from all others."""
    present: list[IntArray] = []
    missing: list[IntArray] = []
    for indices in folders:
        resolved = records.folders[records.folder_index[indices[0]]].resolved
        (present if is_url(resolved) or os.path.isdir(resolved) else missing).append(indices)
    return present, missing


def _missing_files(records: Records, folders: Sequence[IntArray]) -> Iterator[tuple[int, str]]:
    """Yield the index of each record whose local image does not exist, with what is wrong."""
    starts, names = records.name_starts.tolist(), records.names
    for indices in folders:
        folder: Folder = records.folders[records.folder_index[indices[0]]]
        if is_url(folder.resolved):
            continue
        listing = _file_names(folder.resolved) if len(indices) >= _MIN_IMAGES_TO_LIST else frozenset()
        for index in indices.tolist():
            name = names[starts[index] : starts[index + 1]]
            if (unquote_to_bytes(name) if folder.is_quoted else name) in listing:
                continue
            source = records.source(index)
            if not os.path.isfile(source):
                yield index, missing_image(source)


def _file_names(folder: str) -> frozenset[bytes]:
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()  # each file is then looked up by itself


def _scan_each(records: Records, indices: IntArray) -> Iterator[tuple[int, str | Scan]]:
    """Yield each index with its image's scan, or with what is wrong with the image."""
    scan_one = partial(_scan_or_error, known_scans())
    with ThreadPoolExecutor(available_cores()) as pool:
        for start in range(0, len(indices), _IMAGES_PER_BLOCK):
            block = indices[start : start + _IMAGES_PER_BLOCK].tolist()
            yield from zip(block, pool.map(scan_one, map(records.source, block)), strict=True)


def _scan_or_error(known: Callable[[str], Scan | None], source: str) -> str | Scan:
    try:
        return known(source) or read_image(source, scan)
    except (ImageError, UrlError) as error:
        return str(error)


def _guessed_ranges(records: Records, ranges: Mapping[int, SampleRange]) -> list[tuple[int, Problem]]:
    """Warn once per data file of images whose range was guessed: it may differ from image to image."""
    problems = []
    for file in sorted({int(records.file_index[index]) for index in ranges}):
        indices = sorted(index for index in ranges if records.file_index[index] == file)
        first = indices[0]
        got = f"{ranges[first].smallest:,.6g} to {ranges[first].largest:,.6g} in {records.image_url(first)!r}"
        counts = Counter((ranges[index].low, ranges[index].high) for index in indices)
        scaled = [f"{low:,.6g} to {high:,.6g} ({count:,})" for (low, high), count in counts.most_common(3)]
        more = f" and {len(counts) - 3} more ranges" if len(counts) > 3 else ""
        hint = f"{len(indices):,} image{'s are' if len(indices) > 1 else ' is'} scaled by the range each uses"
        hint += f", in training and in scoring: {', '.join(scaled)}{more}"
        rule = "should have values of 8 or 16 bits, floats from 0 to 1 or 0 to 255, or declare their bits"
        rule += " (sBIT in PNG, MaxSampleValue in TIFF)"
        problems.append((first, Problem(records.location(first), "image_url", rule, got, hint, warning=True)))
    return problems


def _different_shapes(records: Records, sizes: npt.NDArray[np.int64]) -> list[tuple[int, Problem]]:
    """Warn where image_details declares another shape: the boxes may refer to the image before its rotation.

    Args:
        sizes: [n, 2], (width, height) as decoded; 0 where unknown.
    """
    if not records.task.has_boxes or not len(records):
        return []
    declared = records.sizes.astype(np.int64)
    known = (declared > 0).all(axis=1) & (sizes > 0).all(axis=1)
    across, down = declared[:, 0] * sizes[:, 1], declared[:, 1] * sizes[:, 0]
    differs = known & (np.abs(across - down) > _SHAPE_TOLERANCE * across)
    problems = []
    for file in np.unique(records.file_index[differs]).tolist():
        indices = np.flatnonzero(differs & (records.file_index == file))
        first = int(indices[0])
        (width, height), (actual_width, actual_height) = declared[first].tolist(), sizes[first].tolist()
        got = f"{width} x {height} for an image of {actual_width} x {actual_height}"
        hint = "coordinates must be fractions of the upright image (EXIF orientation applied)"
        hint += f"; {first_of(len(indices))}" if len(indices) > 1 else ""
        where, rule = records.location(first), "should declare the shape of the image"
        problems.append((first, Problem(where, "image_details", rule, got, hint, warning=True)))
    return problems
