"""Reads a file of predictions, JSON lines of the documented schema, and assigns them to the images of data.

Either all lines name their image, by `image_url` or, as in older endpoints, `filename`; or none does, and
they are in the order of the data. A name is the image's image_url or path; else the image is the one with the
same file name. If several have it, it is the one whose path ends like the name for most path parts.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import astuple

from trainer.annotations import Classification, Detections, FloatArray, Target
from trainer.data.image_sources import read_image
from trainer.data.images import ImageError, probe
from trainer.data.reading.records import Records
from trainer.data.reading.repeated_keys import parse
from trainer.data.reading.urls import UrlError, is_url
from trainer.errors import DataError, Problem
from trainer.metrics import masks
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.tasks import Task

_MAX_SHOWN = 20
_OVERSHOOT = 1e-6
_SUM_TOLERANCE = 0.01


class _Sides(Struct, gc=False):
    topX: float  # noqa: N815  the schema's names
    topY: float  # noqa: N815
    bottomX: float  # noqa: N815
    bottomY: float  # noqa: N815


class _Object(Struct, gc=False):
    box: _Sides
    label: str | int
    score: float
    polygon: list[list[float]] | None = None


class _Answer(Struct, gc=False):
    image_url: str | None = None
    filename: str | None = None
    boxes: list[_Object] | None = None
    probs: list[float] | None = None
    labels: list[str | int] | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """One answer for each image of the data, in the order of the data.

    Attributes:
        task: what the answers are for.
        classes: the classes they mention, sorted.
        is_by_name: whether they name their images.
    """

    task: Task
    classes: tuple[str, ...]
    is_by_name: bool
    _answers: tuple[_Answer, ...]

    def __len__(self) -> int:
        return len(self._answers)

    def subset(self, indices: Sequence[int]) -> Answers:
        """The answers for some images, in the given order."""
        return replace(self, _answers=tuple(self._answers[index] for index in indices))

    def classification(self, index: int, classes: Sequence[str]) -> Classification:
        """An answer as probabilities of the given classes; 0 for classes it does not mention."""
        answer = self._answers[index]
        names = dict(zip(map(str, answer.labels or ()), answer.probs or (), strict=True))
        return Classification(np.array([names.get(name, 0.0) for name in classes]))

    def detections(
        self, index: int, classes: Sequence[str], size: tuple[int, int]
    ) -> tuple[Detections, list[tuple[FloatArray, ...]]]:
        """An answer as detections.

        Args:
            classes: names that labels are to index.
            size: (height, width) of the image.

        Returns:
            The detections without masks, and the polygons of each, float32 [points, 2] of normalised (x, y).
        """
        detected = self._answers[index].boxes or []
        position = {name: label for label, name in enumerate(classes)}
        boxes = np.array([astuple(each.box) for each in detected], np.float32).reshape(-1, 4)
        labels = np.array([position[str(each.label)] for each in detected], np.int64)
        scores = np.array([each.score for each in detected], np.float32)
        polygons = [
            tuple(np.array(segment, np.float32).reshape(-1, 2) for segment in each.polygon or ())
            for each in detected
        ]
        return Detections(boxes.clip(0, 1), labels, scores, size), polygons

    def evaluated_images(
        self, classes: Sequence[str], sizes: Sequence[tuple[int, int]], targets: Iterable[Target]
    ) -> list[EvaluatedImage]:
        """All answers as detections with their targets; masks are the areas of the polygons.

        Args:
            sizes: (height, width) of each image.
        """
        by_masks = self.task is Task.SEGMENTATION
        images = []
        for index, (size, target) in enumerate(zip(sizes, targets, strict=True)):
            prediction, polygons = self.detections(index, classes, size)
            rles = [masks.from_polygons(each, size) for each in polygons] if by_masks else None
            images.append(EvaluatedImage.create(prediction, target, classes, by_masks=by_masks, rles=rles))
        return images


def read(path: Path, task: Task, records: Records) -> Answers:
    """Read answers and assign each to its image.

    Raises:
        DataError: the file cannot be read; a line breaks the schema, or names no image or a repeated one; an
            image has no answer.
    """
    problems: list[Problem] = []
    line_numbers: list[int] = []
    answers: list[_Answer] = []
    decoder = msgspec.json.Decoder(_Answer)
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(
            "the predictions cannot be read", [Problem(str(path), "", error.strerror or "")]
        ) from error
    for position, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        where = f"{path}:{position}"
        try:
            answer = decoder.decode(text)
            _, repeated = parse(text.decode())
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            hint = "write one answer per line instead of a list" if text.strip()[:1] == b"[" else ""
            rule = "must be an answer of the documented schema"
            problems.append(Problem(where, "", rule, str(error), hint))
            continue
        problems += [replace(problem, where=where) for problem in repeated]
        problems += _problems_in(answer, task, where)
        line_numbers.append(position)
        answers.append(answer)
    _raise_if_any(problems)
    names = [answer.image_url or answer.filename for answer in answers]
    is_by_name = any(names)
    order = (
        _by_name(path, line_numbers, names, records) if is_by_name else _in_order(path, line_numbers, records)
    )
    classes = {str(each.label) for answer in answers for each in answer.boxes or ()}
    classes |= {str(name) for answer in answers for name in answer.labels or ()}
    return Answers(task, tuple(sorted(classes)), is_by_name, tuple(answers[entry] for entry in order))


def image_sizes(records: Records) -> list[tuple[int, int]]:
    """The (height, width) of each image, from its file or else as declared in the data.

    Raises:
        DataError: the file cannot be read and the data do not declare the size.
    """
    sizes, problems = [], []
    for index in range(len(records)):
        width, height = (int(side) for side in records.sizes[index])
        try:
            width, height = read_image(records.source(index), probe)
        except (ImageError, UrlError) as error:
            if not (width and height):
                rule = f"must name a readable image ({error}), or image_details must declare its size"
                problems.append(Problem(records.location(index), "image_url", rule))
        sizes.append((height, width))
    _raise_if_any(problems, "image sizes are needed to compare objects")
    return sizes


def _problems_in(answer: _Answer, task: Task, where: str) -> Iterator[Problem]:
    if task.is_classification:
        if answer.probs is None or answer.labels is None:
            yield Problem(where, "", f"must hold both probs and labels for {task}")
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
        yield Problem(where, "", f"must hold boxes for {task}; an empty list if there are no objects")
        return
    for position, detected in enumerate(answer.boxes):
        field = f"boxes[{position}]"
        sides = astuple(detected.box)
        if (hint := _outside(sides)) is not None:
            yield Problem(where, f"{field}.box", "must be in [0, 1]", str(list(sides)), hint)
        elif sides[0] > sides[2] or sides[1] > sides[3]:
            rule = "topX and topY must not exceed bottomX and bottomY"
            yield Problem(where, f"{field}.box", rule, str(list(sides)))
        if not 0 <= detected.score <= 1:
            yield Problem(where, f"{field}.score", "must be in [0, 1]", str(detected.score))
        if task is Task.SEGMENTATION:
            segments = detected.polygon or []
            if not segments or any(len(points) < 6 or len(points) % 2 for points in segments):
                rule = "must be a list of segments [x1, y1, x2, y2, …] of at least 3 points"
                yield Problem(where, f"{field}.polygon", rule)
            for number, points in enumerate(segments):
                if (hint := _outside(points)) is not None:
                    got = str(next(value for value in points if _outside([value]) is not None))
                    yield Problem(where, f"{field}.polygon[{number}]", "must be in [0, 1]", got, hint)


def _outside(coordinates: Sequence[float]) -> str | None:
    """A hint for coordinates of which some are outside [0, 1]; None if none is."""
    if all(-_OVERSHOOT <= value <= 1 + _OVERSHOOT for value in coordinates):
        return None
    return "are they in pixels?" if max(coordinates) > 2 else ""


def _in_order(path: Path, line_numbers: Sequence[int], records: Records) -> Sequence[int]:
    if len(line_numbers) != len(records):
        rule = f"must hold one answer for each of the {len(records):,} images of the data"
        hint = "lines with an image_url may be in any order, but every image needs one"
        _raise_if_any([Problem(str(path), "", rule, f"{len(line_numbers):,}", hint)])
    return range(len(line_numbers))


def _by_name(
    path: Path, line_numbers: Sequence[int], names: Sequence[str | None], records: Records
) -> list[int]:
    """The index of the answer that names each image of the data."""
    exact: dict[str, int] = {}
    by_file_name: dict[str, list[int]] = defaultdict(list)
    parts = []
    for index in range(len(records)):
        exact.setdefault(records.image_url(index), index)
        exact.setdefault(records.source(index), index)
        parts.append(_path_parts(records.source(index)))
        by_file_name[parts[-1][-1]].append(index)
    problems: list[Problem] = []
    entry_of: dict[int, int] = {}
    for entry, (line, name) in enumerate(zip(line_numbers, names, strict=True)):
        where = f"{path}:{line}"
        if not name:
            problems.append(Problem(where, "image_url", "must be on each line if it is on one"))
            continue
        if name in exact:
            index = exact[name]
        else:
            own_parts = _path_parts(name)
            candidates = by_file_name.get(own_parts[-1], [])
            common = [_common_suffix(own_parts, parts[candidate]) for candidate in candidates]
            closest = [c for c, count in zip(candidates, common, strict=True) if count == max(common)]
            if len(closest) != 1:
                rule, got = "must name an image of the data", repr(name)
                if closest:
                    rule = "must name one image of the data"
                    got += f", which fits {len(closest)}, such as {records.location(closest[0])}"
                problems.append(Problem(where, "image_url", rule, got))
                continue
            index = closest[0]
        if index in entry_of:
            hint = f"line {line_numbers[entry_of[index]]} already answers for {records.location(index)}"
            problems.append(Problem(where, "image_url", "must be named by only one answer", repr(name), hint))
            continue
        entry_of[index] = entry
    missing = [index for index in range(len(records)) if index not in entry_of]
    if missing and not problems:
        rule = f"must have an answer in {path}"
        problems += [Problem(records.location(i), "", rule, hint=records.image_url(i)) for i in missing]
    _raise_if_any(problems)
    return [entry_of[index] for index in range(len(records))]


def _path_parts(name: str) -> list[str]:
    """The parts of a path, or of a URL's path; the last is the file name."""
    path = name.replace("\\", "/")
    if is_url(name) or "://" in name:
        with suppress(ValueError):  # http://[a/b.jpg
            path = unquote(urlsplit(name).path)
    return [part for part in path.split("/") if part not in ("", ".")] or [""]


def _common_suffix(one: Sequence[str], other: Sequence[str]) -> int:
    """The number of last parts that two paths have in common."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _raise_if_any(problems: Sequence[Problem], summary: str = "the predictions do not fit the data") -> None:
    if not problems:
        return
    shown: list[Any] = list(problems[:_MAX_SHOWN])
    if len(problems) > _MAX_SHOWN:
        shown.append(Problem("", "", f"{len(problems) - _MAX_SHOWN:,} more are not shown"))
    raise DataError(summary, shown)
