"""Writes small real data sets for every task from scikit-learn's handwritten digits, without network access.

The digits (8 x 8 grey, from the UCI "Optical Recognition of Handwritten Digits" set) are enlarged smoothly
and placed on backgrounds; boxes and polygons follow from the pixels they cover.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from trainer.annotations import BoolArray, FloatArray, Image
from trainer.data.progress import track
from trainer.errors import JobError, Problem
from trainer.tasks import Task

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_VALIDATION_FRACTION = 0.2
_ASPECTS = (1.0, 4 / 3, 3 / 4, 3 / 2)
_OUTLINE_SCALE = 4  # outlines follow pixel edges to 1/8 pixel


class SampleData(NamedTuple):
    """The two data files written."""

    train: Path
    validation: Path


@dataclass(frozen=True, slots=True)
class _Style:
    """Ranges for a task's images.

    Attributes:
        side: short side in pixels.
        digits: number of digits.
        height: height of the digits as a fraction of the short side.
    """

    side: tuple[int, int]
    digits: tuple[int, int]
    height: tuple[float, float]


_STYLES = {
    Task.CLASSIFICATION: _Style(side=(96, 144), digits=(1, 1), height=(0.5, 0.85)),
    Task.MULTILABEL: _Style(side=(128, 176), digits=(1, 3), height=(0.35, 0.5)),
    Task.DETECTION: _Style(side=(160, 224), digits=(1, 4), height=(0.28, 0.5)),
    Task.SEGMENTATION: _Style(side=(160, 224), digits=(1, 4), height=(0.28, 0.5)),
}


@dataclass(frozen=True, slots=True)
class _Placed:
    """A digit in an image: its class name and the pixels it covers, bool [H, W]."""

    name: str
    pixels: BoolArray


def make(
    task: Task, directory: Path, *, images: int = 200, seed: int = 0, progress: bool = False
) -> SampleData:
    """Write train.jsonl, validation.jsonl and their images; the same seed gives the same files.

    Four fifths of the images are for training. Training and validation images show different digits.

    Args:
        directory: a new or empty directory.
        images: number of images, at least 2.
        progress: show progress.

    Raises:
        JobError: there are fewer than two images, or the directory is not empty.
    """
    if images < 2:
        rule = "must be at least 2, one for each of training and validation"
        raise JobError("the sample data cannot be written", [Problem("--images", "", rule, str(images))])
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        rule = "must be a new or empty folder"
        raise JobError("the sample data cannot be written", [Problem("directory", "", rule, str(directory))])
    generator = np.random.default_rng(seed)
    training_digits, validation_digits = _digits(generator)
    validation_count = max(1, round(images * _VALIDATION_FRACTION))
    parts = [
        ("train", images - validation_count, training_digits),
        ("validation", validation_count, validation_digits),
    ]
    paths = []
    for part, count, digits in parts:
        lines: Iterator[dict[str, Any]] = _write_images(task, directory, part, count, digits, generator)
        if progress:
            lines = track(lines, f"{part} images", count)
        path = directory / f"{part}.jsonl"
        (directory / "images" / part).mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        paths.append(path)
    return SampleData(*paths)


def _digits(generator: np.random.Generator) -> tuple[list[FloatArray], list[FloatArray]]:
    """The digits of each class, float32 [k, 8, 8] in [0, 1], for training and for validation."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    training, validation = [], []
    for digit in range(len(CLASSES)):
        glyphs = (loaded.images[loaded.target == digit] / 16).astype(np.float32)
        glyphs = glyphs[generator.permutation(len(glyphs))]
        held_out = round(len(glyphs) * _VALIDATION_FRACTION)
        validation.append(glyphs[:held_out])
        training.append(glyphs[held_out:])
    return training, validation


def _write_images(
    task: Task,
    directory: Path,
    part: str,
    count: int,
    digits: list[FloatArray],
    generator: np.random.Generator,
) -> Iterator[dict[str, Any]]:
    """Write images and yield their JSON lines. The images' first digits cycle through the classes."""
    for index in range(count):
        image, placed = _compose(_STYLES[task], index % len(CLASSES), digits, generator)
        suffix = ("jpg", "png")[index % 2]
        image_url = f"images/{part}/{index:05d}.{suffix}"
        Pillow.fromarray(image).save(directory / image_url, quality=92)
        height, width = image.shape[:2]
        yield {
            "image_url": image_url,
            "image_details": {"format": suffix, "width": f"{width}px", "height": f"{height}px"},
            "label": _label(task, placed),
        }


def _compose(
    style: _Style, first: int, digits: list[FloatArray], generator: np.random.Generator
) -> tuple[Image, list[_Placed]]:
    """Compose an image, uint8 [H, W, 3], of digits that do not touch."""
    side = int(generator.integers(*style.side, endpoint=True))
    aspect = generator.choice(_ASPECTS)
    height, width = (side, round(side * aspect)) if aspect >= 1 else (round(side / aspect), side)
    is_dark = generator.random() < 0.5
    canvas = _background(height, width, is_dark, generator)
    taken = np.zeros((height, width), dtype=np.bool_)
    placed: list[_Placed] = []
    wanted = int(generator.integers(*style.digits, endpoint=True))
    while not placed:
        for number in range(wanted):
            digit = first if number == 0 else int(generator.integers(len(CLASSES)))
            glyph = digits[digit][generator.integers(len(digits[digit]))]
            alpha = _enlarged(glyph, round(side * generator.uniform(*style.height)))
            place = _free_place(taken, alpha.shape, generator)
            if place is None:
                continue
            window = np.s_[place[0] : place[0] + alpha.shape[0], place[1] : place[1] + alpha.shape[1]]
            taken[window] = True
            canvas[window] += alpha[..., None] * (_ink(is_dark, generator) - canvas[window])
            pixels = np.zeros((height, width), dtype=np.bool_)
            pixels[window] = alpha > 0.5
            placed.append(_Placed(CLASSES[digit], pixels))
    noise = generator.normal(0, 5, canvas.shape)
    return (canvas + noise).round().clip(0, 255).astype(np.uint8), placed


def _background(height: int, width: int, is_dark: bool, generator: np.random.Generator) -> FloatArray:
    """float32 [H, W, 3]: a gradient between two colours, with soft spots."""
    low, high = (10, 90) if is_dark else (165, 245)
    corners = generator.uniform(low, high, (2, 2, 3)).astype(np.float32)
    spots = generator.normal(0, 12, (4, 4, 3)).astype(np.float32)
    size = (width, height)
    return cv2.resize(corners, size, interpolation=cv2.INTER_LINEAR) + cv2.resize(
        spots, size, interpolation=cv2.INTER_CUBIC
    )


def _ink(on_dark: bool, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    low, high = (175, 255) if on_dark else (0, 80)
    return generator.uniform(low, high, 3)


def _enlarged(glyph: FloatArray, height: int) -> FloatArray:
    """A digit's opacity, float32 [height, w] in [0, 1], cropped to its ink, without stray specks."""
    padded = np.pad(glyph, 1)
    large = cv2.resize(padded, (height * 2, height * 2), interpolation=cv2.INTER_CUBIC)
    alpha = ((large - 0.35) / 0.3).clip(0, 1)
    _, parts, stats, _ = cv2.connectedComponentsWithStats((alpha > 0.5).astype(np.uint8))
    areas = stats[:, cv2.CC_STAT_AREA]
    ink = np.isin(parts, np.flatnonzero(areas >= 0.03 * areas[1:].sum())) & (parts > 0)
    soft = cv2.dilate(ink.astype(np.uint8), np.ones((3, 3), dtype=np.uint8)) * alpha
    left, top, columns, rows = cv2.boundingRect(ink.astype(np.uint8))
    cropped = soft[top : top + rows, left : left + columns]
    width = max(1, round(cropped.shape[1] * height / cropped.shape[0]))
    resized: FloatArray = cv2.resize(cropped, (width, height), interpolation=cv2.INTER_AREA)
    return resized


def _free_place(
    taken: BoolArray, shape: tuple[int, ...], generator: np.random.Generator
) -> tuple[int, int] | None:
    """Find (top, left) of a free window with a margin of 2 pixels; None after 50 failed attempts."""
    height, width = shape
    for _ in range(50):
        if height >= taken.shape[0] - 4 or width >= taken.shape[1] - 4:
            return None
        top = int(generator.integers(2, taken.shape[0] - height - 1))
        left = int(generator.integers(2, taken.shape[1] - width - 1))
        if not taken[top - 2 : top + height + 2, left - 2 : left + width + 2].any():
            return top, left
    return None


def _label(task: Task, placed: list[_Placed]) -> Any:
    if task is Task.CLASSIFICATION:
        return placed[0].name
    if task is Task.MULTILABEL:
        return sorted({digit.name for digit in placed})
    if task is Task.DETECTION:
        return [{"label": digit.name, **_box(digit.pixels), "isCrowd": 0} for digit in placed]
    return [{"label": digit.name, "isCrowd": 0, "polygon": _polygon(digit.pixels)} for digit in placed]


def _box(pixels: BoolArray) -> dict[str, float]:
    left, top, columns, rows = cv2.boundingRect(pixels.astype(np.uint8))
    height, width = pixels.shape
    return {
        "topX": round(left / width, 5),
        "topY": round(top / height, 5),
        "bottomX": round((left + columns) / width, 5),
        "bottomY": round((top + rows) / height, 5),
    }


def _polygon(pixels: BoolArray) -> list[list[float]]:
    """The outlines of each connected part and of its holes, normalised."""
    large = pixels.astype(np.uint8).repeat(_OUTLINE_SCALE, axis=0).repeat(_OUTLINE_SCALE, axis=1)
    contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    size = np.array(large.shape[::-1], dtype=np.float64)
    outlines = [cv2.approxPolyDP(contour, 1.5, True)[:, 0] for contour in contours]
    return [((outline + 0.5) / size).round(5).ravel().tolist() for outline in outlines if len(outline) >= 3]
