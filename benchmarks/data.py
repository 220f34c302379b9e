"""Writes data sets of photo-like images for the benchmarks, also in the peers' formats."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from trainer.annotations import Objects
from trainer.data.reading.jsonl import read
from trainer.data.reading.records import Records
from trainer.tasks import Task

CLASSES = ("can", "carton", "milk_bottle", "water_bottle")


def make(
    task: Task, folder: Path, images: int, size: tuple[int, int] = (640, 480), seed: int = 0
) -> tuple[Path, Path]:
    """Write train.jsonl and validation.jsonl (a quarter as many images) with JPEGs of `size` (width, height).

    The images are smoothed noise with bright blobs as objects, with about as many bytes per pixel as photos.
    """
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    files = []
    for name, count in (("train", images), ("validation", max(2, images // 4))):
        lines = [_write(task, folder, f"{name}-{index}", size, generator) for index in range(count)]
        files.append(folder / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return files[0], files[1]


def _write(
    task: Task, folder: Path, name: str, size: tuple[int, int], generator: np.random.Generator
) -> dict[str, Any]:
    width, height = size
    coarse = generator.integers(0, 255, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8)
    image = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    image = cv2.add(image, generator.integers(0, 24, image.shape, dtype=np.uint8))
    labels = []
    for _ in range(int(generator.integers(1, 5))):
        kind = int(generator.integers(len(CLASSES)))
        left, top = generator.uniform(0, 0.6, 2)
        wide, high = generator.uniform(0.15, 0.38, 2)
        centre = (int((left + wide / 2) * width), int((top + high / 2) * height))
        axes = (int(wide / 2 * width), int(high / 2 * height))
        cv2.ellipse(image, centre, axes, 0, 0, 360, ((60 + 60 * kind), 255 - 60 * kind, 200), -1)
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        outline = np.stack(
            [left + wide / 2 * (1 + np.cos(angles)), top + high / 2 * (1 + np.sin(angles))], axis=1
        )
        label: dict[str, Any] = {"label": CLASSES[kind]}
        if task is Task.SEGMENTATION:
            label["polygon"] = [outline.round(5).ravel().tolist()]
        else:
            label |= {"topX": left, "topY": top, "bottomX": left + wide, "bottomY": top + high}
        labels.append(label)
    cv2.imwrite(str(folder / "images" / f"{name}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    found: Any = labels
    if task is Task.CLASSIFICATION:
        found = labels[0]["label"]
    elif task is Task.MULTILABEL:
        found = sorted({label["label"] for label in labels})
    return {"image_url": f"images/{name}.jpg", "label": found}


def records(file: Path, task: Task, classes: tuple[str, ...] | None = None) -> Records:
    """Read a JSONL file; its labels index `classes`, a superset of the file's own, if they are given."""
    found = read([file], task).records
    return found if classes is None or found.classes == classes else found.relabelled(classes)


def all_classes(task: Task, *files: Path) -> tuple[str, ...]:
    """Return the sorted names of all classes in several files."""
    return tuple(sorted({name for file in files for name in records(file, task).classes}))


def as_yolo(train: Path, validation: Path, task: Task, folder: Path) -> Path:
    """Write the same data in ultralytics' format: links to the images, their label files, and data.yaml."""
    classes = all_classes(task, train, validation)
    for name, file in (("train", train), ("val", validation)):
        found = records(file, task, classes)
        images, labels = folder / "images" / name, folder / "labels" / name
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for index in range(len(found)):
            source = Path(found.source(index))
            link = images / f"{index:06d}{source.suffix}"
            if not link.exists():
                os.symlink(source.resolve(), link)
            target = found.target(index)
            assert isinstance(target, Objects)
            (labels / f"{index:06d}.txt").write_text("".join(f"{line}\n" for line in _yolo_lines(target)))
    config = folder / "data.yaml"
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(classes))
    config.write_text(f"path: {folder.resolve()}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return config


def _yolo_lines(target: Objects) -> Iterator[str]:
    for index in np.flatnonzero(~target.crowd):
        if target.polygons is not None:
            points = max(target.polygons[index], key=len).ravel()
        else:
            x1, y1, x2, y2 = target.boxes[index]
            points = np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
        yield " ".join([str(target.labels[index]), *(f"{value:.6f}" for value in points)])


def real_or_made(root: Path | None, name: str, task: Task, folder: Path, images: int) -> tuple[Path, Path]:
    """Return the files of a data set in `root`, or of one made by `trainer sample-data` if there is none."""
    if root is not None and (root / name / "train.jsonl").is_file():
        return root / name / "train.jsonl", root / name / "validation.jsonl"
    from trainer.data import samples

    if (folder / "train.jsonl").is_file():
        return folder / "train.jsonl", folder / "validation.jsonl"
    made = samples.make(task, folder, images=images)
    return made.train, made.validation
