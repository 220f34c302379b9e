"""Files of answers: assignment to images, and errors by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluating.conftest import write_lines
from trainer.errors import DataError
from trainer.evaluating.evaluate import Options, evaluate_answers
from trainer.metrics.results import Analysis
from trainer.tasks import Task

BOX = {"topX": 0.1, "topY": 0.1, "bottomX": 0.5, "bottomY": 0.5}


def detected(label: str = "can", score: float = 0.9, **box: float) -> dict[str, Any]:
    return {"box": {**BOX, **box}, "label": label, "score": score}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images that lie in a datastore nobody can reach; only the second has an object."""
    store = "azureml://subscriptions/s/resourcegroups/r/workspaces/w/datastores/d/paths"
    details = {"format": "jpg", "width": "100px", "height": "80px"}
    urls = [f"{store}/left/1.jpg", f"{store}/left/2.jpg", f"{store}/right/1.jpg"]
    labels: list[list[Any]] = [[], [{"label": "can", "isCrowd": 0, **BOX}], []]
    return write_lines(
        tmp_path / "test.jsonl",
        [
            {"image_url": url, "image_details": details, "label": label}
            for url, label in zip(urls, labels, strict=True)
        ],
    )


def evaluated(data: Path, answers: list[Any], tmp_path: Path, task: Task = Task.DETECTION) -> Analysis:
    options = Options(datastores={"d": str(tmp_path)})
    return evaluate_answers(task, write_lines(tmp_path / "answers.jsonl", answers), [data], options).analysis


RIGHT: dict[str, Any] = {"boxes": [detected()]}
NOTHING: dict[str, Any] = {"boxes": []}


def named(name: str) -> dict[str, Any]:
    return {"image_url": name, **RIGHT}


def test_answers_without_names_are_in_the_order_of_the_data(data: Path, tmp_path: Path) -> None:
    analysis = evaluated(data, [NOTHING, RIGHT, NOTHING], tmp_path)
    assert analysis.metrics["mean_average_precision"] == 1
    assert analysis.metrics["map"] == pytest.approx(1)


@pytest.mark.parametrize(
    "names",
    [
        ["{store}/right/1.jpg", "{store}/left/2.jpg", "{store}/left/1.jpg"],
        ["https://host/photos/right/1.jpg?sig=x", "2.jpg", "left/1.jpg"],
        ["C:\\photos\\right\\1.jpg", "any/where/2.jpg", "C:\\photos\\left\\1.jpg"],
    ],
    ids=["sources", "urls and names", "windows"],
)
def test_named_answers_may_be_in_any_order(names: list[str], data: Path, tmp_path: Path) -> None:
    names = [name.format(store=tmp_path) for name in names]
    answers = [
        {"image_url": names[0], **NOTHING},
        {"filename": names[1], **RIGHT},
        {"image_url": names[2], **NOTHING},
    ]
    assert evaluated(data, answers, tmp_path).metrics["mean_average_precision"] == 1


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([NOTHING, RIGHT], "answers.jsonl: must hold one answer for each of the 3 images of the data, got 2"),
        ([named("1.jpg")] * 3, "answers.jsonl:1: image_url: must name one image of the data, got '1.jpg', w"),
        ([named("left/2.jpg")] * 2, "answers.jsonl:2: image_url: must be named by only one answer"),
        ([named("left/2.jpg")], "test.jsonl:1: must have an answer in"),
        ([named("3.jpg")], "answers.jsonl:1: image_url: must name an image of the data, got '3.jpg'"),
        ([named("2.jpg"), RIGHT], "answers.jsonl:2: image_url: must be on each line if it is on one"),
        ([[NOTHING]], "write one answer per line instead of a list"),
        ([NOTHING, {"probs": [1], "labels": ["can"]}], "answers.jsonl:2: must hold boxes for object-det"),
        ([{"boxes": [detected(bottomX=50)]}], r"boxes\[0\].box: must be in \[0, 1\].*are they in pixels\?"),
        ([{"boxes": [detected(topX=0.7)]}], "topX and topY must not exceed bottomX and bottomY"),
        ([{"boxes": [detected(score=97)]}], r"boxes\[0\].score: must be in \[0, 1\], got 97"),
        ([named("http://[")], r"answers.jsonl:1: image_url: must name an image of the data, got 'http://\['"),
        ([{"boxes": [{"label": "can"}]}], r"must be an answer of the documented schema.*boxes\[0\]"),
    ],
)  # fmt: skip
def test_errors_are_reported_by_line(answers: list[Any], message: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        evaluated(data, answers, tmp_path)


def test_a_key_that_an_answer_repeats_is_an_error(data: Path, tmp_path: Path) -> None:
    twice = json.dumps(RIGHT).replace('"score": 0.9', '"score": 0.9, "score": 0.1')
    (tmp_path / "answers.jsonl").write_text(f'{{"boxes": []}}\n{twice}\n{{"boxes": []}}\n')
    message = r"answers.jsonl:2: score: must be once in its object, got 0.9 and 0.1; keep one of them"
    with pytest.raises(DataError, match=message):
        evaluate_answers(
            Task.DETECTION, tmp_path / "answers.jsonl", [data], Options(datastores={"d": str(tmp_path)})
        )


def test_an_answer_nested_too_deeply_is_an_error(data: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"boxes": [], "more": ' + "[" * 50_000 + "]" * 50_000 + "}\n")
    with pytest.raises(DataError, match=r"answers.jsonl:1: must be an answer of the documented schema"):
        evaluate_answers(
            Task.DETECTION, tmp_path / "answers.jsonl", [data], Options(datastores={"d": str(tmp_path)})
        )


def test_classifiers_may_name_their_classes_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"")
    data = write_lines(
        tmp_path / "test.jsonl", [{"image_url": "a.png", "label": "x"}, {"image_url": "b.png", "label": "y"}]
    )
    answers = [{"probs": [0.9, 0.1], "labels": ["x", "y"]}, {"probs": [0.8, 0.2], "labels": ["y", "x"]}]
    analysis = evaluated(data, answers, tmp_path, Task.CLASSIFICATION)
    assert analysis.metrics["accuracy"] == 1
    for answer, message in (
        ({"probs": [0.9, 0.5], "labels": ["x", "y"]}, "answers.jsonl:2: probs: must sum to 1, got 1.4"),
        (
            {"probs": [1.0], "labels": ["x", "y"]},
            "answers.jsonl:2: probs: must have as many entries as labels",
        ),
        ({"probs": [0.5, 0.5], "labels": ["x", "x"]}, "answers.jsonl:2: labels: must name each class once"),
        (NOTHING, "answers.jsonl:2: must hold both probs and labels"),
    ):
        with pytest.raises(DataError, match=message):
            evaluated(data, [answers[0], answer], tmp_path, Task.CLASSIFICATION)
    other = [{"probs": [1.0], "labels": ["x"]}] * 2
    with pytest.raises(DataError, match="classes that the model does not know"):
        evaluated(data, other, tmp_path, Task.CLASSIFICATION)


def test_masks_come_from_the_answers_polygons(tmp_path: Path) -> None:
    polygon = [0.1, 0.1, 0.5, 0.1, 0.5, 0.5, 0.1, 0.5]
    details = {"format": "png", "width": 100, "height": 100}
    (tmp_path / "a.png").write_bytes(b"")
    data = write_lines(
        tmp_path / "test.jsonl",
        [{"image_url": "a.png", "image_details": details, "label": [{"label": "can", "polygon": [polygon]}]}],
    )
    half = [0.1, 0.1, 0.5, 0.1, 0.5, 0.29, 0.1, 0.29]
    for segments, expected in (
        ([polygon], 1.0),
        ([half], 0.0),
        ([half, [0.1, 0.29, *polygon[2:4], 0.5, 0.5, 0.1, 0.5]], 1.0),
        ([polygon, [0.15, 0.15, 0.15, 0.45, 0.45, 0.45, 0.45, 0.15]], 0.0),
    ):
        answers = [{"boxes": [detected() | {"polygon": segments}]}]
        analysis = evaluated(data, answers, tmp_path, Task.SEGMENTATION)
        assert analysis.metrics["mean_average_precision"] == expected
    with pytest.raises(DataError, match=r"answers.jsonl:1: boxes\[0\].polygon: must be a list of segments"):
        evaluated(data, [{"boxes": [detected()]}], tmp_path, Task.SEGMENTATION)
    outside = r"answers.jsonl:1: boxes\[0\].polygon\[1\]: must be in \[0, 1\], got 50.0; are they in pixels\?"
    with pytest.raises(DataError, match=outside):
        evaluated(
            data,
            [{"boxes": [detected() | {"polygon": [polygon, [0.1, *polygon[1:6], 50, 50]]}]}],
            tmp_path,
            Task.SEGMENTATION,
        )
