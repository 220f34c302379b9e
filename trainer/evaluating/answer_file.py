"""Answers made anywhere: JSON lines of the documented schema, each brought to its image of the data.

Lines either all name their image (`image_url`, or `filename`, as older endpoints have it), or none does, and
they stand in the data's order. A name is that of the image whose image_url it is, or whose path; else of the
one image with the same file name, and where several have it, of the one that shares most of the last parts of
its path.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import numpy as np
from msgspec import Struct

from trainer.annotations import Classification, Detections, FloatArray
from trainer.data.images import ImageError, probe
from trainer.data.reading.records import Records
from trainer.data.reading.urls import UrlError, is_url, local_path
from trainer.errors import DataError, Problem
from trainer.tasks import Task

_SHOWN = 20
_OVERSHOOT = 1e-6
_SUM_TOLERANCE = 0.01


class _Sides(Struct, gc=False):
    topX: float  # noqa: N815  the schema's names
    topY: float  # noqa: N815
    bottomX: float  # noqa: N815
    bottomY: float  # noqa: N815


class _Found(Struct, gc=False):
    box: _Sides
    label: str | int
    score: float
    polygon: list[list[float]] | None = None


class _Answer(Struct, gc=False):
    image_url: str | None = None
    filename: str | None = None
    boxes: list[_Found] | None = None
    probs: list[float] | None = None
    labels: list[str | int] | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """One answer for each image of the data, in the data's order.

    Attributes:
        classes: named in them, sorted.
        is_by_name: they named their images.
    """

    task: Task
    classes: tuple[str, ...]
    is_by_name: bool
    _answers: tuple[_Answer, ...]

    def __len__(self) -> int:
        return len(self._answers)

    def subset(self, indices: Sequence[int]) -> Answers:
        """Those of some images, in that order."""
        return replace(self, _answers=tuple(self._answers[index] for index in indices))

    def classification(self, index: int, classes: Sequence[str]) -> Classification:
        """An answer as probabilities of these classes; of one that it does not name 0."""
        answer = self._answers[index]
        named = dict(zip(map(str, answer.labels or ()), answer.probs or (), strict=True))
        return Classification(np.array([named.get(name, 0.0) for name in classes]))

    def detections(
        self, index: int, classes: Sequence[str], size: tuple[int, int]
    ) -> tuple[Detections, list[tuple[FloatArray, ...]]]:
        """An answer as detections, without masks, and the polygons of each.

        Args:
            size: (height, width) of the image.
        """
        found = self._answers[index].boxes or []
        number = {name: label for label, name in enumerate(classes)}
        boxes = np.array(
            [[b.box.topX, b.box.topY, b.box.bottomX, b.box.bottomY] for b in found], np.float32
        ).reshape(-1, 4)
        labels = np.array([number[str(each.label)] for each in found], np.int64)
        scores = np.array([each.score for each in found], np.float32)
        polygons = [
            tuple(np.array(segment, np.float32).reshape(-1, 2) for segment in each.polygon or ())
            for each in found
        ]
        return Detections(boxes.clip(0, 1), labels, scores, size), polygons


def read(path: Path, task: Task, records: Records) -> Answers:
    """Read answers and bring each to its image.

    Raises:
        DataError: a line breaks the schema, names no image, or one that another line named; or an image has
            no answer.
    """
    problems: list[Problem] = []
    lines: list[int] = []
    answers: list[_Answer] = []
    decoder = msgspec.json.Decoder(_Answer)
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(
            "the predictions cannot be read", [Problem(str(path), "", error.strerror or "")]
        ) from error
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        where = f"{path}:{number}"
        try:
            answer = decoder.decode(text)
        except (msgspec.MsgspecError, UnicodeError) as error:
            hint = (
                "a list of answers must be written as one answer a line" if text.strip()[:1] == b"[" else ""
            )
            rule = "must be an answer of the documented schema"
            problems.append(Problem(where, "", rule, str(error), hint))
            continue
        problems += _faults(answer, task, where)
        lines.append(number)
        answers.append(answer)
    _raise(problems)
    named = [answer.image_url or answer.filename for answer in answers]
    is_by_name = any(named)
    order = _by_name(path, lines, named, records) if is_by_name else _in_order(path, lines, records)
    classes = {str(each.label) for answer in answers for each in answer.boxes or ()}
    classes |= {str(name) for answer in answers for name in answer.labels or ()}
    return Answers(task, tuple(sorted(classes)), is_by_name, tuple(answers[entry] for entry in order))


def image_sizes(records: Records) -> list[tuple[int, int]]:
    """(height, width) of each image: as its file says, else as declared in the data.

    Raises:
        DataError: neither is to be had.
    """
    sizes, problems = [], []
    for index in range(len(records)):
        width, height = (int(side) for side in records.sizes[index])
        try:
            width, height = probe(local_path(records.source(index)))
        except (ImageError, UrlError) as error:
            if not (width and height):
                rule = f"must name an image that can be read ({error}), or image_details its width and height"
                problems.append(Problem(records.location(index), "image_url", rule))
        sizes.append((height, width))
    _raise(problems, "the images' sizes are needed to compare objects")
    return sizes


def _faults(answer: _Answer, task: Task, where: str) -> Iterator[Problem]:
    if task.is_classification:
        if answer.probs is None or answer.labels is None:
            yield Problem(where, "", f"must hold probs and labels for {task}", "neither of both or one")
            return
        probs, labels = answer.probs, [str(label) for label in answer.labels]
        if len(probs) != len(labels):
            rule = "must have as many entries as labels"
            yield Problem(where, "probs", rule, f"{len(probs)} for {len(labels)}")
        elif len(set(labels)) < len(labels):
            yield Problem(where, "labels", "must name each class once")
        elif not all(0 <= prob <= 1 for prob in probs):
            yield Problem(where, "probs", "must be in [0, 1]", str(next(p for p in probs if not 0 <= p <= 1)))
        elif task is Task.CLASSIFICATION and abs(sum(probs) - 1) > _SUM_TOLERANCE:
            yield Problem(where, "probs", "must sum to 1", f"{sum(probs):.4g}")
        return
    if answer.boxes is None:
        yield Problem(where, "", f"must hold boxes for {task}, an empty list where nothing is found")
        return
    for number, found in enumerate(answer.boxes):
        field = f"boxes[{number}]"
        sides = (found.box.topX, found.box.topY, found.box.bottomX, found.box.bottomY)
        if not all(-_OVERSHOOT <= side <= 1 + _OVERSHOOT for side in sides):
            hint = "are they in pixels?" if max(sides) > 2 else ""
            yield Problem(where, f"{field}.box", "must be in [0, 1]", str(list(sides)), hint)
        elif sides[0] > sides[2] or sides[1] > sides[3]:
            yield Problem(where, f"{field}.box", "top must not be beyond bottom", str(list(sides)))
        if not 0 <= found.score <= 1:
            yield Problem(where, f"{field}.score", "must be in [0, 1]", str(found.score))
        if task is Task.SEGMENTATION:
            segments = found.polygon or []
            if not segments or any(len(points) < 6 or len(points) % 2 for points in segments):
                rule = "must be a list of segments [x1, y1, x2, y2, …] of at least 3 points"
                yield Problem(where, f"{field}.polygon", rule)


def _in_order(path: Path, lines: Sequence[int], records: Records) -> Sequence[int]:
    if len(lines) != len(records):
        rule = f"must hold one answer for each of the {len(records):,} images of the data"
        hint = "lines with an image_url may come in any order, but each image must have one"
        _raise([Problem(str(path), "", rule, f"{len(lines):,}", hint)])
    return range(len(lines))


def _by_name(path: Path, lines: Sequence[int], named: Sequence[str | None], records: Records) -> list[int]:
    """For each image of the data the entry that names it."""
    exact: dict[str, int] = {}
    by_file: dict[str, list[int]] = defaultdict(list)
    parts = []
    for index in range(len(records)):
        exact.setdefault(records.image_url(index), index)
        exact.setdefault(records.source(index), index)
        parts.append(_parts(records.source(index)))
        by_file[parts[-1][-1]].append(index)
    problems: list[Problem] = []
    taken: dict[int, int] = {}
    for entry, (line, name) in enumerate(zip(lines, named, strict=True)):
        where = f"{path}:{line}"
        if not name:
            problems.append(Problem(where, "image_url", "must be on each line if it is on one"))
            continue
        if name in exact:
            index = exact[name]
        else:
            own = _parts(name)
            candidates = by_file.get(own[-1], [])
            shared = [_shared(own, parts[candidate]) for candidate in candidates]
            best = [c for c, count in zip(candidates, shared, strict=True) if count == max(shared)]
            if len(best) != 1:
                rule = "must name an image of the data" if not best else "must name one image of the data"
                got = (
                    f"{name!r}, which {len(best)} have, as {records.location(best[0])}"
                    if best
                    else repr(name)
                )
                problems.append(Problem(where, "image_url", rule, got))
                continue
            index = best[0]
        if index in taken:
            hint = f"{records.location(index)} has its answer on line {lines[taken[index]]} already"
            problems.append(Problem(where, "image_url", "must be named by one answer only", repr(name), hint))
            continue
        taken[index] = entry
    missing = [index for index in range(len(records)) if index not in taken]
    if missing and not problems:
        rule = f"must have an answer in {path}"
        problems += [Problem(records.location(i), "", rule, hint=records.image_url(i)) for i in missing]
    _raise(problems)
    return [taken[index] for index in range(len(records))]


def _parts(name: str) -> list[str]:
    """The parts of a path or of a URL's path, the last one the file's name."""
    path = unquote(urlsplit(name).path) if is_url(name) or "://" in name else name.replace("\\", "/")
    return [part for part in path.split("/") if part not in ("", ".")] or [""]


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many of their last parts are the same."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _raise(problems: Sequence[Problem], summary: str = "the predictions do not fit the data") -> None:
    if not problems:
        return
    shown: list[Any] = list(problems[:_SHOWN])
    if len(problems) > _SHOWN:
        shown.append(Problem("", "", f"{len(problems) - _SHOWN:,} more are not shown"))
    raise DataError(summary, shown)
