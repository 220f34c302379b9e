"""`trainer predict`: scores image files with a packaged model, and draws what it found."""

from __future__ import annotations

import base64
import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from serving.answers import Answer, to_lists
from serving.locate import find_artifacts
from serving.scorer import Scorer, in_batches
from trainer.annotations import Image
from trainer.data.images import ImageError, decode, suffixes
from trainer.drawing.predictions import draw_answer
from trainer.errors import DataError, Problem, RunError


def predict_files(
    run_or_model: Path,
    images: Sequence[Path],
    *,
    output: Path | None = None,
    draw: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    explain: Mapping[str, Any] | None = None,
) -> Iterator[Answer]:
    """Score files, in order; each answer is `{"image_url": path, …the documented answer}`.

    Args:
        images: files, glob patterns, and directories, in which every file with an image's suffix is taken.
        output: file to write the answers to, one JSON object a line.
        draw: directory to write each image to with its answer drawn, under the image's name.
        parameters: scoring parameters over the model's own.
        explain: `xai_parameters` to explain each answer by, None for none. The pictures go beside the
            drawings where there are any, else into the answers.

    Raises:
        RunError: there is no model, or the output cannot be written.
        DataError: a path leads to no image (before anything is scored), or, once all others are scored and
            written, the images that cannot be decoded.
        RequestError: a parameter is unknown to the model's task, or out of its range, or the model cannot
            be explained so.
    """
    files = find_images(images)
    scorer = Scorer.load(find_artifacts(run_or_model))
    checked = scorer.parameters(parameters or {})
    asked = None if explain is None else scorer.explanation(explain)
    problems: list[Problem] = []
    names: set[str] = set()
    with ExitStack() as stack:
        lines = stack.enter_context(_opened(output)) if output is not None else None
        if draw is not None:
            _make_directory(draw)
        for batch in in_batches(_decoded(files, problems)):
            answers = scorer.score_images([image for _, image in batch], checked)
            for (file, image), answer in zip(batch, answers, strict=True):
                found = answer if asked is None else to_lists(scorer.explain(image, answer, asked))
                pictures = found.pop("visualizations", []) if draw is not None else []
                line = {"image_url": file.as_posix(), **found}
                if lines is not None:
                    lines.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
                if draw is not None:
                    drawing = draw_answer(image, answer, scorer.spec.classes)
                    name = _free_name(file, names)
                    drawing.save(draw / name, quality=92)
                    _write_pictures(draw / name, pictures)
                yield line
    if problems:
        raise DataError(f"{len(problems)} of {len(files)} images could not be scored", problems)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The image files that paths lead to, each once, in order; directories and globs sorted by name.

    Raises:
        DataError: those that lead to none.
    """
    found: dict[Path, None] = {}
    problems = []
    known = suffixes()
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in known)
            files = [file for file in inside if file.is_file()]
            rule = f"must hold an image, of the kinds {', '.join(sorted(known))}"
        elif path.is_file():
            files, rule = [path], ""
        else:
            matches = glob.glob(str(path), recursive=True)
            files = [Path(match) for match in sorted(matches)]
            files = [file for file in files if file.is_file()]
            rule = "must be a file, a directory or a glob pattern that matches a file"
        found.update(dict.fromkeys(files))
        if not files:
            problems.append(Problem(str(path), "", rule))
    if problems or not found:
        raise DataError("there is nothing to score", problems or [Problem("", "", "name at least one image")])
    return list(found)


def _decoded(files: Sequence[Path], problems: list[Problem]) -> Iterator[tuple[Path, Image]]:
    """The files' images; what cannot be decoded goes to `problems`."""
    for file in files:
        try:
            yield file, decode(file)
        except ImageError as error:
            problems.append(Problem(str(file), "", str(error)))


def _write_pictures(drawing: Path, pictures: str | Sequence[str]) -> None:
    """Write base64 PNGs beside a drawing: `NAME-explained.png`, numbered where there can be several."""
    if isinstance(pictures, str):
        named = {"": pictures}
    else:
        named = {f"-{number}": text for number, text in enumerate(pictures, start=1)}
    for ending, text in named.items():
        file = drawing.with_name(f"{drawing.stem}-explained{ending}.png")
        file.write_bytes(base64.b64decode(text))


def _opened(output: Path) -> TextIO:
    _make_directory(output.parent)
    try:
        # A file name need not be Unicode: its odd bytes become JSON's own escapes.
        return open(output, "w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise RunError(f"{output}: cannot be written: {error.strerror}") from error


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{directory}: cannot be made: {error.strerror}") from error


def _free_name(file: Path, taken: set[str]) -> str:
    """A name for the drawing of a file that no other file's drawing has."""
    name, number = f"{file.stem}.jpg", 1
    # Some file systems tell no upper from lower case.
    while name.lower() in taken:
        number += 1
        name = f"{file.stem}-{number}.jpg"
    taken.add(name.lower())
    return name
