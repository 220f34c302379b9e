"""Several lines of one image are one image with all their objects; in classification they are an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.annotations import Objects
from trainer.data.reading.jsonl import ReadResult, read
from trainer.data.training_data import load
from trainer.data.validate import validate
from trainer.tasks import Task

BOX = {"label": "can", "topX": 0.1, "topY": 0.2, "bottomX": 0.5, "bottomY": 0.6}
TRIANGLE = {"label": "can", "polygon": [[0.1, 0.1, 0.5, 0.1, 0.3, 0.4]]}
JOINED = "names the image of an earlier line, which gets the objects of both"

WriteLines = Callable[..., Path]


def box(**changes: Any) -> dict[str, Any]:
    return {**BOX, **changes}


def line(url: str, *objects: Any, **more: Any) -> dict[str, Any]:
    return {"image_url": url, "label": list(objects), **more}


def objects(result: ReadResult, index: int = 0) -> Objects:
    target = result.records.target(index)
    assert isinstance(target, Objects)
    return target


def test_lines_of_one_image_are_joined(write_lines: WriteLines) -> None:
    path = write_lines(
        [
            line("images/a.jpg", box(topX=0.11)),
            line("images/b.jpg", BOX),
            line(
                "./images/a.jpg",
                box(label="x"),
                box(topX=0.12, isCrowd=1),
                image_details={"width": 4, "height": 3},
            ),
            line("images/../images/a.jpg", box(topX=0.13)),
        ]
    )
    (path.parent / "images").mkdir()
    result = read([path], Task.DETECTION)
    (problem,) = result.problems
    assert str(problem) == (
        f'warning: {path}:3: image_url: {JOINED}, got "./images/a.jpg" as at {path}:1; '
        "the first of 2 such lines"
    )
    records = result.records
    assert records.image_urls == ["images/a.jpg", "images/b.jpg"]
    joined = objects(result)
    np.testing.assert_allclose(joined.boxes[:, 0], [0.11, 0.1, 0.12, 0.13])
    assert [records.classes[label] for label in joined.labels] == ["can", "x", "can", "can"]
    assert joined.crowd.tolist() == [False, False, True, False]
    assert records.sizes.tolist() == [[4, 3], [0, 0]]
    assert len(objects(result, 1).boxes) == 1
    assert result.further_lines == {(0, 1): [(0, 3), (0, 4)]}
    assert not result.skipped


def test_polygons_of_one_image_are_joined(write_lines: WriteLines) -> None:
    two = {"label": "x", "polygon": [[0.6, 0.6, 0.9, 0.6, 0.9, 0.9, 0.7, 0.9], *TRIANGLE["polygon"]]}
    path = write_lines([line("a", two), line("b", TRIANGLE, two), line("a"), line("a", TRIANGLE, TRIANGLE)])
    result = read([path], Task.SEGMENTATION)
    assert len(result.problems) == 1
    polygons = objects(result).polygons
    assert polygons is not None
    assert [[len(part) for part in parts] for parts in polygons] == [[4, 3], [3], [3]]
    np.testing.assert_allclose(objects(result).boxes[1:], [[0.1, 0.1, 0.5, 0.4]] * 2)


def test_equal_objects_of_several_lines_are_taken_once(write_lines: WriteLines) -> None:
    path = write_lines(
        [line("a", BOX, BOX), line("a", BOX, box(label="x"), box(isCrowd=1)), line("a", box(label="x"))]
    )
    result = read([path], Task.DETECTION)
    assert [str(problem).split(": ", 2)[2] for problem in result.problems][1] == (
        "label: objects equal to those of an earlier line of the image are left out; "
        "the first of 2 such objects"
    )
    assert objects(result).labels.tolist() == [0, 0, 1, 0]


def test_lines_of_several_files_are_joined(write_lines: WriteLines) -> None:
    first = write_lines([line("images/a", BOX)])
    second = write_lines([line("b", BOX), line("../images/a", box(label="x"))], "more/data.jsonl")
    result = read([first, second], Task.DETECTION)
    (problem,) = result.problems
    assert (problem.where, problem.warning) == (f"{second}:2", True)
    assert [len(objects(result, index).boxes) for index in range(2)] == [2, 1]
    assert result.further_lines == {(0, 1): [(1, 2)]}


def test_objects_of_another_line_save_an_image_from_the_background(write_lines: WriteLines) -> None:
    path = write_lines([line("a", box(topX=0.5)), line("a", BOX)])
    result = read([path], Task.DETECTION)
    assert not any("background" in problem.rule for problem in result.problems)
    assert len(objects(result).boxes) == 1


@pytest.mark.parametrize(("task", "label"), [(Task.CLASSIFICATION, "can"), (Task.MULTILABEL, ["can"])])
def test_repeated_images_of_classification_are_errors(
    task: Task, label: Any, write_lines: WriteLines
) -> None:
    path = write_lines([{"image_url": url, "label": label} for url in ("a", "./a")])
    (problem,) = read([path], task).problems
    assert (problem.where, problem.rule, problem.warning) == (f"{path}:2", "must be unique", False)


def test_a_damaged_image_takes_all_its_lines(write_lines: WriteLines, tmp_path: Path) -> None:
    lines = [*(line(f"{n}.png", BOX) for n in range(3)), line("1.png", box(label="x"))]
    path = write_lines(lines, images=True)
    (path.parent / "1.png").write_bytes(b"no image")
    target = tmp_path / "skipped.jsonl"
    data = load(Task.DETECTION, [path], skip_invalid=True, skipped_path=target, progress=False)
    assert [json.loads(text)["line"] for text in target.read_text("utf-8").splitlines()] == [2, 4]
    assert data.skipped.lines == 2
    assert data.classes == ("can",)


def test_validation_counts_joined_images_once(write_lines: WriteLines) -> None:
    path = write_lines([line("a.png", BOX), line("a.png", box(label="x")), line("b.png", BOX)], images=True)
    report = validate(Task.DETECTION, [path])
    assert report.errors == 0
    assert (report.summary.images, report.summary.objects) == (2, 3)
