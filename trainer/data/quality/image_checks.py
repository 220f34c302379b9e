"""Looks at the images of records: do they exist, can they be decoded, have they the declared shape."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from trainer.annotations import IntArray
from trainer.data.images import ImageError, Look, look
from trainer.data.progress import track
from trainer.data.reading.records import Looks, Records
from trainer.data.reading.urls import UrlError, is_url, local_path
from trainer.errors import Problem

_IMAGES_AT_ONCE = 4096
_LISTED_FROM = 32  # a folder with as many images is listed once, which spares network drives many questions
_SHAPE_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Inspection:
    """Attributes:
    problems: in the order of the records.
    reasons: index of each record without a usable image → why.
    looks: of the images, for each record; None if they were not decoded.
    """

    problems: list[Problem]
    reasons: dict[int, str]
    looks: Looks | None = None


def inspect(records: Records, *, decode: bool, progress: bool) -> Inspection:
    """Look at every image.

    Args:
        decode: read each image to its end, fetching remote ones; otherwise local files only have to exist.
    """
    problems: list[tuple[int, Problem]] = []
    reasons: dict[int, str] = {}
    lost = _in_lost_folders(records)
    for indices in lost:
        first = int(indices[0])
        folder = os.path.dirname(records.source(first))
        hint = f"on {len(indices):,} lines, here first" if len(indices) > 1 else ""
        where, rule = records.location(first), "must lie in a folder that exists"
        problems.append((first, Problem(where, "image_url", rule, folder, hint)))
        reasons |= dict.fromkeys(indices.tolist(), str(Problem("", "image_url", rule, folder)))

    rest = np.setdiff1d(np.arange(len(records)), np.concatenate([np.zeros(0, dtype=np.int64), *lost]))
    looks = Looks.none(len(records))
    states: Iterator[tuple[int, str | Look | None]]
    states = _decoded(records, rest) if decode else _existing(records, rest)
    if decode and progress:
        states = track(states, "checking images", len(rest))
    for index, state in states:
        if isinstance(state, str):
            got = f"{records.image_url(index)!r}: {state} ({records.source(index)})"
            where, rule = records.location(index), "must name an image that can be read"
            problem = Problem(where, "image_url", rule, got)
            problems.append((index, problem))
            reasons[index] = str(replace(problem, where=""))
        elif state is not None:
            looks.sizes[index], looks.hashes[index] = state
    problems += _turned(records, looks.sizes.astype(np.int64))
    in_order = [problem for _, problem in sorted(problems, key=lambda entry: entry[0])]
    return Inspection(in_order, reasons, looks if decode else None)


def take_looks(records: Records, indices: IntArray) -> Looks:
    """The looks of some records, fetched and decoded; zeros for all others and for those that cannot be."""
    looks = Looks.none(len(records))
    for index, state in _decoded(records, indices):
        if isinstance(state, Look):
            looks.sizes[index], looks.hashes[index] = state
    return looks


def _in_lost_folders(records: Records) -> list[IntArray]:
    """For each local folder that does not exist the records with images in it, int64 [k]."""
    if not len(records):
        return []
    order = np.argsort(records.folder_index, kind="stable")
    folders, starts = np.unique(records.folder_index[order], return_index=True)
    return [
        indices
        for folder, indices in zip(folders.tolist(), np.split(order, starts[1:]), strict=True)
        if not is_url(resolved := records.folders[folder].resolved) and not os.path.isdir(resolved)
    ]


def _existing(records: Records, indices: IntArray) -> Iterator[tuple[int, str | None]]:
    """(index, what is wrong with the image's place or None)."""
    counts = np.bincount(records.folder_index[indices], minlength=len(records.folders))
    listings: dict[int, frozenset[str]] = {}
    for index, folder in zip(indices.tolist(), records.folder_index[indices].tolist(), strict=True):
        source = records.source(index)
        if is_url(source):
            yield index, None
            continue
        if counts[folder] >= _LISTED_FROM:
            if folder not in listings:
                listings[folder] = _file_names(os.path.dirname(source))
            if os.path.basename(source) in listings[folder]:
                yield index, None
                continue
        yield index, None if os.path.isfile(source) else "the image file does not exist"


def _file_names(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()  # then each file is asked for


def _decoded(records: Records, indices: IntArray) -> Iterator[tuple[int, str | Look]]:
    """(index, what is wrong with the image or its look)."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for begin in range(0, len(indices), _IMAGES_AT_ONCE):
            block = indices[begin : begin + _IMAGES_AT_ONCE].tolist()
            yield from zip(block, pool.map(_looked_at, map(records.source, block)), strict=True)


def _looked_at(source: str) -> str | Look:
    try:
        return look(local_path(source))
    except (ImageError, UrlError) as error:
        return str(error)


def _turned(records: Records, sizes: npt.NDArray[np.int64]) -> list[tuple[int, Problem]]:
    """Warn where image_details declares another shape: boxes may be meant for the image before its turn."""
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
        (width, height), (real_width, real_height) = declared[first].tolist(), sizes[first].tolist()
        hint = "coordinates must be fractions of the upright image (EXIF orientation applied)"
        hint = f"{hint}; on {len(indices):,} lines, here first" if len(indices) > 1 else hint
        rule, got = (
            "should declare the shape of the image",
            f"{width} x {height} for an image of {real_width} x {real_height}",
        )
        problems.append(
            (first, Problem(records.location(first), "image_details", rule, got, hint, warning=True))
        )
    return problems
