"""A key that occurs twice in an object of a line is an error, which well-formed files do not pay for."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.reading import jsonl
from trainer.data.reading.jsonl import read
from trainer.tasks import Task

CLASS, CLASSES = Task.CLASSIFICATION, Task.MULTILABEL
BOXES, SHAPES = Task.DETECTION, Task.SEGMENTATION
CORNERS = '"topX": 0.1, "topY": 0.2, "bottomX": 0.5, "bottomY": 0.6'
URL = '"image_url": "https://x.org/a.jpg"'
OTHER = "[0.1, 0.1, 0.5, 0.1, 0.3, 0.6]"
SEGMENT = "[0.1, 0.1, 0.5, 0.1, 0.3, 0.4]"


def written(folder: Path, *lines: str) -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("task", "rest", "message"),
    [
        (CLASS, '"label": "a", "label": "b"', 'label: must be once in its object, got "a"'),
        (CLASS, '"image_url": "b", "label": 1', "image_url: must"),
        (CLASS, '"label": 1, "image_details": {}, "image_details": null', "image_details: must"),
        (CLASS, '"label": 1, "image_details": {"width": 3, "width": 4}', "width: must"),
        (CLASSES, '"label": ["a"], "label": []', 'label: must'),
        (BOXES, f'"label": [{{"label": "a", {CORNERS}, "topX": 0.2}}]', "topX: must"),
        # They differ after what a message shows of them.
        (CLASSES, f'"label": ["{"a" * 60}"], "label": ["{"a" * 60}b"]', "label: must"),
        (BOXES, f'"label": [{{"label": "a", {CORNERS}, "isCrowd": 0, "isCrowd": 1}}]', "isCrowd: must"),
        (SHAPES, f'"label": [{{"label": "a", "polygon": [{SEGMENT}], "polygon": [{OTHER}]}}]', "polygon"),
    ],
)  # fmt: skip
def test_repeated_keys_with_different_values_are_errors(
    task: Task, rest: str, message: str, tmp_path: Path
) -> None:
    good = f'{{{URL}, "label": {7 if task is Task.CLASSIFICATION else []}}}'
    lines = [good, f"{{{URL}, {rest}}}".replace("a.jpg", "b.jpg"), good.replace("a.jpg", "c.jpg")]
    result = read([written(tmp_path, *lines)], task)
    (problem,) = [each for each in result.problems if not each.warning]
    assert str(problem).startswith(f"{tmp_path}/train.jsonl:2: {message}")
    assert problem.hint == "keep one of them"
    assert result.records.lines.tolist() == [1, 3]


def test_repeated_keys_with_one_value_lose_nothing(tmp_path: Path) -> None:
    result = read([written(tmp_path, f'{{{URL}, "label": "a", {URL}}}')], Task.CLASSIFICATION)
    assert result.problems == []
    assert result.records.image_urls == ["https://x.org/a.jpg"]


@pytest.mark.parametrize(
    ("task", "label"),
    [
        (CLASS, '"ns:cat"'),
        (Task.MULTILABEL, '["ns:cat", "a::b"]'),
        (
            Task.DETECTION,
            f'[{{"label": "ns:cat", {CORNERS}}}, {{"label": "c", {CORNERS}, "isCrowd": false}}]',
        ),
        (Task.SEGMENTATION, f'[{{"label": ":", "polygon": [{SEGMENT}]}}]'),
    ],
)
def test_colons_in_texts_are_no_keys(
    task: Task, label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl._FileReader, "_read_carefully", lambda *_: pytest.fail("read carefully"))
    details = ["", ', "image_details": null', ', "image_details": {}', ', "image_details": {"width": "4px"}']
    line = f'{{{URL}, "label": {label}'
    lines = [f"{line.replace('a.jpg', f'{index}.jpg')}{each}}}" for index, each in enumerate(details)]
    assert len(read([written(tmp_path, *lines)], task).records) == len(lines)
    named = written(tmp_path, f"{line}}}".replace(', "label": ', ', "a:b": '))
    assert len(read([named], task, label_key="a:b").records) == 1
