"""Keys that occur twice in an object of a line are an error if their values differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.data.reading import jsonl
from trainer.data.reading.jsonl import read
from trainer.data.reading.skipped import write_skipped
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
        # They differ only after the part that a message shows.
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


INNER = f'{{"label": "a", {CORNERS}, "topX": 0.2}}'


@pytest.mark.parametrize(
    ("task", "rest", "message"),
    [
        (BOXES, {"label": f"[{INNER}]"}, "topX: must be once in its object, got 0.1 and 0.2"),
        (BOXES, {"label": [INNER]}, "topX: must"),
        (BOXES, {"label": f"[{INNER.replace(chr(34), chr(39))}]"}, "topX: must"),  # Python's notation
        (SHAPES, {"label": f'[{{"label": "a", "label": "b", "polygon": [{OTHER}]}}]'}, "label: must"),
        (CLASSES, {"label": ["a"], "image_details": '{"width": 3, "width": 4}'}, "width: must"),
    ],
)
def test_repeated_keys_in_a_string_are_errors_too(
    task: Task, rest: dict[str, object], message: str, tmp_path: Path
) -> None:
    result = read([written(tmp_path, json.dumps({"image_url": "https://x.org/a.jpg", **rest}))], task)
    (problem,) = result.problems
    assert str(problem).startswith(f"{tmp_path}/train.jsonl:1: {message}")
    assert len(result.records) == 0


def test_repeated_keys_are_errors_in_tables_too(tmp_path: Path) -> None:
    def problems(transformations: str, task: Task = CLASS) -> list[str]:
        table = f"paths: [{{pattern: 'cat/*'}}]\ntransformations: [{transformations}]\n"
        (tmp_path / "MLTable").write_text(table)
        errors = [problem for problem in read([tmp_path], task).problems if not problem.warning]
        return [str(problem).partition("/cat/")[2] for problem in errors]

    (tmp_path / "cat").mkdir()
    written(tmp_path / "cat", f'{{{URL}, "x": 1, "x": 2}}')
    partition = "extract_columns_from_partition_format: {partition_format: '/{label}/*'}"
    message = "train.jsonl:1: x: must be once in its object, got 1 and 2; keep one of them"
    assert problems(f"{partition}, read_json_lines") == [message]
    written(tmp_path / "cat", f'{{{URL}, "label": "a", "x": 1, "x": 2}}')
    assert problems("read_json_lines, filter: x == 1") == [message]
    quoted = INNER.replace('"', '""')
    (tmp_path / "cat" / "train.jsonl").unlink()
    (tmp_path / "cat" / "train.csv").write_text(f'image_url,label\nhttps://x.org/a.jpg,"[{quoted}]"\n')
    assert problems("read_delimited", BOXES)[0].startswith("train.csv:2: topX: must be once in its object")
    (tmp_path / "cat" / "train.csv").write_text("image_url,label,label\na.jpg,a,b\n")
    assert problems("read_delimited") == ["train.csv: must have each column once, got label"]


def test_repeated_key_is_named_as_it_is_beside_another_target_column(tmp_path: Path) -> None:
    path = written(tmp_path, f'{{{URL}, "kind": "a", "label": 1, "label": 2}}')
    (problem, _) = read([path], CLASS, label_key="kind").problems
    assert problem.field == "label"


def test_skipped_line_with_a_repeated_key_is_kept_as_text(tmp_path: Path) -> None:
    line = f'{{{URL}, "label": "a", "label": "b"}}'
    result = read([written(tmp_path, line)], CLASS)
    write_skipped(tmp_path / "skipped.jsonl", result.skipped)
    assert json.loads((tmp_path / "skipped.jsonl").read_text())["record"] == line


@pytest.mark.parametrize("colon", ["\\u003a", "\\u003A"])
def test_escaped_colon_hides_no_repeated_key_of_another_line(colon: str, tmp_path: Path) -> None:
    escaped = f'{{{URL}, "label": "a"}}'.replace("https:", f"https{colon}")
    repeated = f'{{{URL.replace("a.jpg", "b.jpg")}, "label": "a", "label": "b"}}'
    result = read([written(tmp_path, escaped, repeated)], CLASS)
    assert [problem.field for problem in result.problems] == ["label"]
    assert result.records.image_urls == ["https://x.org/a.jpg"]


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
