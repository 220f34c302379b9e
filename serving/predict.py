"""Scores image files with a packaged model for `trainer predict`, and draws the answers."""

from __future__ import annotations

import base64
import glob
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from serving.answers import Answer, to_lists
from serving.locate import find_artifacts
from serving.scorer import Scorer, in_batches
from trainer.annotations import Image
from trainer.data.image_formats import suffixes
from trainer.data.images import ImageError, decode
from trainer.drawing.predictions import draw_answer
from trainer.errors import DataError, Problem, RunError
from trainer.files import describe_lookalike, without_prefix
from trainer.models.precision import Precision

_MAX_NAMES = 3
"""Names of files that are shown for each suffix that is left out."""

log = logging.getLogger("trainer")


def predict_files(
    run_or_model: Path,
    images: Sequence[Path],
    *,
    output: Path | None = None,
    draw: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    explain: Mapping[str, Any] | None = None,
    precision: Precision = "auto",
) -> Iterator[Answer]:
    """Score files in order; each answer is `{"image_url": path, …the documented answer}`.

    Args:
        images: files, glob patterns, and directories, whose files with an image's suffix are scored.
        output: file for the answers, one JSON object per line.
        draw: directory for the images with their answers drawn, under the images' names.
        parameters: scoring parameters that override the model's defaults.
        explain: `xai_parameters` for an explanation of each answer; None for no explanations. Their
            visualizations are written next to the drawings if `draw` is set, otherwise into the answers.
        precision: in which the network computes.

    Raises:
        RunError: there is no model, or the output cannot be written.
        DataError: before scoring, if a path matches no image; after all other images are scored and
            written, if some cannot be decoded.
        RequestError: a parameter does not apply to the model's task or is out of range, or the explanation
            method does not suit the model.
    """
    files = find_images(images).files
    scorer = Scorer.load(find_artifacts(run_or_model), precision=precision)
    checked = scorer.parameters(parameters or {})
    request = None if explain is None else scorer.explanation(explain)
    if explain is not None and request is None and scorer.spec.task.has_boxes:
        log.warning("boxes are explained by drise alone; without it, the answers hold only scores")
    problems: list[Problem] = []
    names: set[str] = set()
    with ExitStack() as stack:
        lines = stack.enter_context(_opened(output)) if output is not None else None
        if draw is not None:
            _make_directory(draw)
        for batch in in_batches(_decoded(files, problems)):
            answers = scorer.score_images([image for _, image in batch], checked)
            for (file, image), answer in zip(batch, answers, strict=True):
                explained = answer if request is None else to_lists(scorer.explain(image, answer, request))
                visualizations = explained.pop("visualizations", []) if draw is not None else []
                line = {"image_url": file.as_posix(), **explained}
                if lines is not None:
                    lines.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
                if draw is not None:
                    drawing = draw_answer(image, answer, scorer.spec.classes)
                    name = _free_name(file, names)
                    drawing.save(draw / name, quality=92)
                    _write_visualizations(draw / name, visualizations)
                yield line
    if problems:
        raise DataError(f"{len(problems)} of {len(files)} images could not be scored", problems)


@dataclass(frozen=True)
class FoundImages:
    """Image files that paths match.

    Attributes:
        files: each once and in order; those of directories and globs sorted by name.
        left_out: files in directories whose names are not those of images, counted by suffix: "2 .mp4
            (1.mp4, 2.mp4), 1 .txt (notes.txt)"; "" if there are none.
    """

    files: list[Path]
    left_out: str


def find_images(paths: Sequence[Path]) -> FoundImages:
    """List the image files that paths match.

    Raises:
        DataError: names the paths that match no image.
    """
    images: dict[Path, None] = {}
    left_out: dict[str, list[str]] = {}
    problems = []
    known = suffixes()
    for path in dict.fromkeys(map(_without_prefix, paths)):
        got, files = "", []
        if path.is_dir():
            others: dict[str, list[str]] = {}
            for file in sorted(path.rglob("*")):
                suffix = file.suffix.lower()
                if suffix in known:
                    files.append(file)
                elif file.is_file():
                    others.setdefault(suffix, []).append(file.relative_to(path).as_posix())
            rule, got = f"must contain an image file ({', '.join(sorted(known))})", _counted(others)
            for suffix, names in others.items():
                left_out.setdefault(suffix, []).extend(names)
        elif path.is_file():
            files, rule = [path], ""
        else:
            files = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
            rule = "must be a file, a directory or a glob pattern that matches a file"
        files = [file for file in files if file.is_file()]
        images.update(dict.fromkeys(files))
        if not files:
            problems.append(Problem(str(path), "", rule, got, describe_lookalike(path)))
    if problems or not images:
        raise DataError(
            "there are no images to score:", problems or [Problem("", "", "name at least one image")]
        )
    return FoundImages(list(images), _counted(left_out))


def _counted(names: Mapping[str, Sequence[str]]) -> str:
    """Count files by suffix, with the first names of each."""
    return ", ".join(
        f"{len(files):,} {suffix or 'without a suffix'} "
        f"({', '.join(files[:_MAX_NAMES])}{', …' if len(files) > _MAX_NAMES else ''})"
        for suffix, files in sorted(names.items(), key=lambda entry: -len(entry[1]))
    )


def _without_prefix(path: Path) -> Path:
    return Path(without_prefix(str(path), Path.cwd()))


def _decoded(files: Sequence[Path], problems: list[Problem]) -> Iterator[tuple[Path, Image]]:
    """Decode the files; those that cannot be decoded are added to `problems`."""
    for file in files:
        try:
            yield file, decode(file)
        except ImageError as error:
            problems.append(Problem(str(file), "", str(error)))


def _write_visualizations(drawing: Path, visualizations: str | Sequence[str]) -> None:
    """Write base64 PNGs next to a drawing: `NAME-explained.png`, numbered if there can be several."""
    if isinstance(visualizations, str):
        named = {"": visualizations}
    else:
        named = {f"-{number}": text for number, text in enumerate(visualizations, start=1)}
    for ending, text in named.items():
        file = drawing.with_name(f"{drawing.stem}-explained{ending}.png")
        file.write_bytes(base64.b64decode(text))


def _opened(output: Path) -> TextIO:
    _make_directory(output.parent)
    try:
        # A file name may contain bytes that are not Unicode: they become JSON escapes.
        return open(output, "w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise RunError(f"{output}: cannot be written: {error.strerror}") from error


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{directory}: cannot be created: {error.strerror}") from error


def _free_name(file: Path, taken: set[str]) -> str:
    """A unique name for the drawing of a file."""
    name, number = f"{file.stem}.jpg", 1
    # Some file systems do not distinguish upper and lower case.
    while name.lower() in taken:
        number += 1
        name = f"{file.stem}-{number}.jpg"
    taken.add(name.lower())
    return name
