"""Findings about suspicious data: planted duplicates, leaks and boxes are found by file and line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from trainer.data.quality.data_findings import find_suspicious
from trainer.data.quality.examined_images import examine
from trainer.data.quality.finding import Finding
from trainer.data.reading.jsonl import read
from trainer.data.reading.records import Records
from trainer.data.validate import validate
from trainer.tasks import Task


def picture(seed: int, size: tuple[int, int] = (160, 120)) -> Pillow.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Pillow.fromarray(coarse).resize(size, Pillow.Resampling.BICUBIC)


def write(folder: Path, name: str, labels: Sequence[tuple[Pillow.Image, Any]]) -> Path:
    """NAME.jsonl and its pictures."""
    (folder / name).mkdir()
    lines = []
    for number, (image, label) in enumerate(labels):
        image.save(folder / name / f"{number}.png")
        lines.append(json.dumps({"image_url": f"{name}/{number}.png", "label": label}))
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def records(path: Path, task: Task = Task.CLASSIFICATION) -> Records:
    return read([path], task).records


def found(
    train: Path, validation: Path | None = None, task: Task = Task.CLASSIFICATION
) -> dict[str, Finding]:
    images = examine(records(train, task), None if validation is None else records(validation, task))
    return {finding.kind: finding for finding in find_suspicious(images)}


def box(left: float, top: float, right: float, bottom: float, label: str = "a") -> dict[str, Any]:
    return {"label": label, "topX": left, "topY": top, "bottomX": right, "bottomY": bottom}


def test_sound_data_have_no_findings(tmp_path: Path) -> None:
    train = write(tmp_path, "train", [(picture(n), "ab"[n % 2]) for n in range(24)])
    validation = write(tmp_path, "validation", [(picture(100 + n), "ab"[n % 2]) for n in range(4)])
    assert found(train, validation) == {}


def test_duplicates_leakage_and_contradictions_are_found(tmp_path: Path) -> None:
    smaller = picture(3).resize((80, 60))
    train = write(
        tmp_path,
        "train",
        [*((picture(n), "ab"[n % 2]) for n in range(24)), (smaller, "b"), (picture(4), "b")],
    )
    validation = write(tmp_path, "validation", [(picture(50), "a"), (picture(7), "b"), (picture(51), "b")])
    findings = found(train, validation)
    assert set(findings) == {"leakage", "duplicates", "contradictions"}
    (leak,) = findings["leakage"].places
    assert leak.where == f"{validation}:2"
    assert f"{train}:8" in leak.detail
    assert findings["leakage"].serious
    assert [place.where for place in findings["duplicates"].places] == [f"{train}:25", f"{train}:26"]
    # line 26 shows what line 5 shows, under another label; line 25 has the label of its original
    (wrong,) = findings["contradictions"].places
    assert (wrong.where, wrong.detail) == (f"{train}:26", f"b here, a at {train}:5")


def test_blank_and_small_images_are_found(tmp_path: Path) -> None:
    blank = Pillow.new("RGB", (64, 64), (9, 9, 9))
    train = write(
        tmp_path,
        "train",
        [(picture(n), "ab"[n % 2]) for n in range(22)] + [(blank, "a"), (picture(99, (20, 60)), "b")],
    )
    findings = found(train)
    assert [place.where for place in findings["blank-images"].places] == [f"{train}:23"]
    assert [place.where for place in findings["small-images"].places] == [f"{train}:24"]
    assert findings["small-images"].places[0].detail == "20 x 60 pixels"


def test_tiny_giant_and_double_boxes_are_found(tmp_path: Path) -> None:
    boxes = [
        [box(0.1, 0.1, 0.5, 0.5)],
        [box(0.1, 0.1, 0.13, 0.5), box(0.3, 0.3, 0.6, 0.6)],  # 0.03 of 160 pixels: 4.8
        [box(0.0, 0.0, 1.0, 0.99)],
        [box(0.0, 0.0, 0.9, 0.08)],  # 144 x 9.6 pixels: not narrow enough
        [
            box(0.2, 0.2, 0.6, 0.6),
            box(0.7, 0.7, 0.9, 0.9),
            box(0.2, 0.2, 0.61, 0.6),
            box(0.2, 0.2, 0.6, 0.6, "b"),
        ],
    ]
    train = write(tmp_path, "train", [(picture(n), label) for n, label in enumerate(boxes)])
    findings = found(train, task=Task.DETECTION)
    (tiny,) = findings["tiny-boxes"].places
    assert (tiny.where, tiny.detail, tiny.number) == (f"{train}:2", "a, 5 x 48 pixels", 0)
    assert [place.where for place in findings["giant-boxes"].places] == [f"{train}:3"]
    assert "narrow-boxes" not in findings
    (double,) = findings["double-boxes"].places
    assert (double.where, double.detail) == (f"{train}:5", "a: objects 1 and 3 of the line")


def test_narrow_boxes_are_found_and_crowds_ignored(tmp_path: Path) -> None:
    narrow, crowd = box(0.0, 0.0, 1.0, 0.05), {**box(0.0, 0.0, 1.0, 1.0), "isCrowd": 1}
    train = write(
        tmp_path, "train", [(picture(0, (400, 400)), [narrow]), (picture(1), [crowd, box(0, 0, 0.5, 0.5)])]
    )
    findings = found(train, task=Task.DETECTION)
    assert [place.where for place in findings["narrow-boxes"].places] == [f"{train}:1"]
    assert "giant-boxes" not in findings


def test_imbalance_rare_and_absent_classes_are_found(tmp_path: Path) -> None:
    labels = ["a"] * 30 + ["b"] * 2 + ["c"] * 12
    train = write(tmp_path, "train", [(picture(n), label) for n, label in enumerate(labels)])
    validation = write(
        tmp_path, "validation", [(picture(200), "a"), (picture(201), "b"), (picture(202), "d")]
    )
    images = examine(records(train), records(validation))
    findings = {(each.kind, each.title): each for each in find_suspicious(images)}
    titles = {kind: [title for of, title in findings if of == kind] for kind, _ in findings}
    assert titles["imbalance"] == ["'a' has 15 times as many training images as 'b': 30 and 2"]
    assert titles["rare-classes"] == ["1 class with fewer than 10 training images: b (2)"]
    assert titles["absent-classes"] == [
        "Training data have no image of d",
        "Validation data have no image of c",
    ]


def test_images_above_the_limit_are_sampled_evenly(tmp_path: Path) -> None:
    train = write(tmp_path, "train", [(picture(n % 2), "ab"[n % 2]) for n in range(40)])
    images = examine(records(train), None, limit=10)
    assert images.scanned == 10
    assert len({int(index) for index in np.flatnonzero(images.scans.sizes.any(axis=1))}) == 10


def test_validation_data_are_checked_against_the_training_data(tmp_path: Path) -> None:
    train = write(tmp_path, "train", [(picture(n), "ab"[n % 2]) for n in range(6)])
    validation = write(tmp_path, "validation", [(picture(9), "c")])
    report = validate(Task.CLASSIFICATION, [train], [validation])
    assert report.errors == 0
    assert report.validation_summary is not None
    assert report.validation_summary.class_counts == {"c": 1}
    assert any("no training image" in str(problem) for problem in report.problems)


@pytest.mark.parametrize("name", ["cards/detection", "fridge_multiclass"])
def test_real_data_have_near_duplicates(shared_data: Path, name: str) -> None:
    """Shots of one scene in a row, by eye; of the cards some are in the validation data."""
    folder = shared_data / name
    task = Task.DETECTION if "cards" in name else Task.CLASSIFICATION
    findings = found(folder / "train.jsonl", folder / "validation.jsonl", task)
    assert ("leakage" in findings) == ("cards" in name)
    assert findings["duplicates"].places
