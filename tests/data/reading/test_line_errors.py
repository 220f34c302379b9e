"""The error messages for invalid lines of data files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.data.reading.jsonl import read
from trainer.data.reading.line_errors import examine_line
from trainer.data.reading.schema import FAST_ERRORS, fast_reader
from trainer.data.reading.skipped import SkippedCount
from trainer.tasks import Task

CLASSIFICATION, MULTILABEL = Task.CLASSIFICATION, Task.MULTILABEL
DETECTION, SEGMENTATION = Task.DETECTION, Task.SEGMENTATION

BOX = {"label": "can", "topX": 0.1, "topY": 0.2, "bottomX": 0.5, "bottomY": 0.6}
TRIANGLE = {"label": "can", "polygon": [[0.1, 0.1, 0.5, 0.1, 0.3, 0.4]]}
LABELS: dict[Task, Any] = {
    CLASSIFICATION: "can", MULTILABEL: ["can"], DETECTION: [BOX], SEGMENTATION: [TRIANGLE],
}  # fmt: skip

WriteLines = Callable[..., Path]


def messages(path: Path, task: Task) -> list[str]:
    """What is said of a file, without its folder."""
    return [str(problem).replace(f"{path.parent}/", "") for problem in read([path], task).problems]


def box(**changes: Any) -> dict[str, Any]:
    return {**BOX, **changes}


NOT_JSON = "train.jsonl:1: must be one JSON object, got"
NOT_A_CLASS = "train.jsonl:1: label: must be a class name"
PIXELS = 'must be a positive number of pixels, such as 499 or "499px"'
IN_PIXELS = "is it in pixels? divide it by the image's"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"image_url": "a", "label": "x"', f"{NOT_JSON} expecting ',' delimiter at column 32"),
        ("no json", f"{NOT_JSON} expecting value at column 1"),
        ("3", f"{NOT_JSON} 3"),
        ('"text"', f'{NOT_JSON} "text"'),
        ('{"image_url": "a", "label": "x"} {}', f"{NOT_JSON} extra data at column 34"),
        (
            '{"image_url": "a", "label": "x"}, ',
            f"{NOT_JSON} extra data at column 33; remove the comma at the end of each line",
        ),
        ({"label": "x"}, "train.jsonl:1: image_url: is missing"),
        ({"imageUrl": "a", "label": "x"},
         "train.jsonl:1: image_url: is missing; did you mean 'imageUrl'? keys are case-sensitive"),
        ({"image_url": "a"}, "train.jsonl:1: label: is missing"),
        ({"image_url": 3, "label": "x"}, "train.jsonl:1: image_url: must be a string, got 3"),
        ({"image_url": "", "label": "x"}, "train.jsonl:1: image_url: must name an image file, got ''"),
        ({"image_url": "a/", "label": "x"}, "train.jsonl:1: image_url: must name an image file, got 'a/'"),
        ({"image_url": "a", "label": ""}, f"{NOT_A_CLASS}, got an empty string"),
        ({"image_url": "a", "label": "  "}, f'{NOT_A_CLASS}, got "  "'),
        ({"image_url": "a", "label": None}, f"{NOT_A_CLASS} (a string), got null"),
        ({"image_url": "a", "label": True}, f"{NOT_A_CLASS} (a string), got true"),
        ({"image_url": "a", "label": 1.5}, f"{NOT_A_CLASS} (a string), got 1.5"),
        ({"image_url": "a", "label": ["x"]},
         'train.jsonl:1: label: must be one class name for image-classification, got ["x"]; '
         "this looks like image-classification-multilabel data"),
        ({"image_url": "a", "label": "x", "image_details": []},
         "train.jsonl:1: image_details: must be an object {format, width, height}, got []"),
        ({"image_url": "a", "label": "x", "image_details": {"width": "wide"}},
         f'train.jsonl:1: image_details.width: {PIXELS}, got "wide"'),
        ({"image_url": "a", "label": "x", "image_details": {"height": 0}},
         f"train.jsonl:1: image_details.height: {PIXELS}, got 0"),
        ({"image_url": "a", "label": "x", "image_details": {"height": -5}},
         f"train.jsonl:1: image_details.height: {PIXELS}, got -5"),
        ('{"image_url": "\\ud800.jpg", "label": "x"}',
         "train.jsonl:1: must be valid Unicode, got an unpaired surrogate, such as \\ud800"),
    ],
)  # fmt: skip
def test_multiclass_errors(line: object, expected: str, write_lines: WriteLines) -> None:
    path = write_lines([line, {"image_url": "good", "label": "x"}])
    errors = [message for message in messages(path, CLASSIFICATION) if not message.startswith("warning")]
    assert errors == [expected]
    result = read([path], CLASSIFICATION)
    assert result.records.image_urls == ["good"]
    assert [entry.line for entry in result.skipped] == [1]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("x", 'label: must be a list of class names for image-classification-multilabel, got "x"; '
              "this looks like image-classification data"),
        ([BOX], "this looks like object-detection data"),
        ([TRIANGLE], "this looks like instance-segmentation data"),
        (["x", ""], "label[1]: must be a class name, got an empty string"),
        (["x", None], "label[1]: must be a class name (a string), got null"),
    ],
)  # fmt: skip
def test_multilabel_errors(label: object, expected: str, write_lines: WriteLines) -> None:
    (message,) = messages(write_lines([{"image_url": "a", "label": label}]), MULTILABEL)
    assert expected in message


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("x", ["label: must be a list of boxes {label, topX, topY, bottomX, bottomY, isCrowd} for "
               'object-detection, got "x"; this looks like image-classification data']),
        ([TRIANGLE], ["this looks like instance-segmentation data"]),
        ([3, {}], ["label[0]: must be an object {label, topX, topY, bottomX, bottomY, isCrowd}",
                                  *[f"label[1].{key}: is missing" for key in BOX]]),
        ([box(bottomX=320)],
         [f"label[0].bottomX: must be in [0, 1], got 320; {IN_PIXELS} width (640)"]),
        ([box(bottomY=240.5)],
         [f"label[0].bottomY: must be in [0, 1], got 240.5; {IN_PIXELS} height (480)"]),
        ([box(topX=-0.1)], ["label[0].topX: must be in [0, 1], got -0.1"]),
        ([box(topX="left")], ['label[0].topX: must be a number in [0, 1], got "left"']),
        ([box(topX=None)], ["label[0].topX: must be a number in [0, 1], got null"]),
        ([box(topX=True)], ["label[0].topX: must be a number in [0, 1], got true"]),
        ([box(topX=float("nan"))], ["label[0].topX: must be a finite number in [0, 1], got NaN"]),
        ([box(bottomY=10**400)], ["label[0].bottomY: must be in [0, 1], got 1" + "0" * 56 + "…"]),
        ([box(bottomY=float("inf"))], ["label[0].bottomY: must be a finite number in [0, 1], got Infinity"]),
        ([box(isCrowd=2)], ["label[0].isCrowd: must be 0, 1, true or false, got 2"]),
        ([box(isCrowd="maybe")], ['label[0].isCrowd: must be 0, 1, true or false, got "maybe"']),
        (None, ["label: must be a list of boxes {label, topX, topY, bottomX, bottomY, isCrowd} for "
                "object-detection, got null; write [] for an image without any"]),
        ([box(label="")], ["label[0].label: must be a class name, got an empty string"]),
        ([{"label": "x", "topX": 0.1, "topY": 0.1, "bottomX": 0.5}], ["label[0].bottomY: is missing"]),
        ([{key: value for key, value in BOX.items() if key != "label"}], ["label[0].label: is missing"]),
        ([box(topX=2, topY=-1, isCrowd=9)],
         ["label[0].isCrowd: ", "label[0].topX: must be in [0, 1], got 2", "label[0].topY: must be in"]),
    ],
)  # fmt: skip
def test_detection_errors(label: object, expected: list[str], write_lines: WriteLines) -> None:
    details = {"width": "640px", "height": 480}
    path = write_lines([{"image_url": "a", "label": label, "image_details": details}])
    found = messages(path, DETECTION)
    assert len(found) == len(expected)
    for message, part in zip(found, expected, strict=True):
        assert message.startswith("train.jsonl:1: ")
        assert part in message
    assert len(read([path], DETECTION).records) == 0


@pytest.mark.parametrize(
    ("polygon", "expected"),
    [
        ([0.1, 0.1, 0.5, 0.1, 0.3, 0.4], "wrap it in another list: [[x1, y1, …]]"),
        ([[0.1, 0.1], [0.5, 0.1], [0.3, 0.4]], "label[0].polygon: must be a list of segments, not of points"),
        ([[[0.1, 0.1], [0.5, 0.1], [0.3, 0.4]]], "label[0].polygon: must be a list of segments, not"),
        ([[0.1, 0.1, 0.5, 0.1, 0.3, 0.4, 0.5]], "label[0].polygon[0]: must hold pairs x, y, got 7 numbers"),
        ([[0.1, 0.1, 0.5, 0.1, 300, 0.4]], "label[0].polygon[0][4]: must be in [0, 1], got 300; is it"),
        ({"counts": [1, 2], "size": [3, 4]}, "label[0].polygon: must be a list of at least one segment"),
        ("x", "label[0].polygon: must be a list of at least one segment"),
    ],
)  # fmt: skip
def test_segmentation_errors(polygon: object, expected: str, write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": [{"label": "x", "polygon": polygon}]}])
    (message,) = messages(path, SEGMENTATION)
    assert expected in message
    assert len(read([path], SEGMENTATION).records) == 0


def test_detection_data_are_recognised_in_segmentation(write_lines: WriteLines) -> None:
    (message,) = messages(write_lines([{"image_url": "a", "label": [BOX]}]), SEGMENTATION)
    assert "this looks like object-detection data" in message


def test_all_errors_of_all_lines_are_reported_in_order(write_lines: WriteLines) -> None:
    path = write_lines(
        [
            {"image_url": "a", "label": [box(topX=3, topY=4)]},
            {"image_url": "b", "label": [BOX]},
            "broken",
            {"image_url": "d"},
            {"label": [box(isCrowd=7)]},
        ]
    )
    found = messages(path, DETECTION)
    assert [message.split(" ")[0] for message in found] == [f"train.jsonl:{n}:" for n in (1, 1, 3, 4, 5, 5)]


def test_unknown_keys_are_reported_once_with_their_count(write_lines: WriteLines) -> None:
    lines = [{"image_url": str(n), "label": [box(pose="left"), box(pose="x")], "id": n} for n in range(5)]
    path = write_lines([{"image_url": "first", "label": [BOX]}, *lines])
    said = "is not a key of the data schema and is ignored; the first of 5 such lines"
    assert messages(path, DETECTION) == [
        f"warning: train.jsonl:2: {key}: {said}" for key in ("id", "label[].pose")
    ]
    assert len(read([path], DETECTION).records) == 6


def test_unknown_key_that_is_a_schemas_in_other_letters_is_named(write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": [box(iscrowd=1)], "image_details": {"Width": 4}}])
    meant = ("image_details.Width", "width"), ("label[].iscrowd", "isCrowd")
    assert messages(path, DETECTION) == [
        f"warning: train.jsonl:1: {key}: is not a key of the data schema and is ignored; did you mean "
        f"{name!r}? keys are case-sensitive"
        for key, name in meant
    ]


def test_repeated_images_are_errors(write_lines: WriteLines) -> None:
    urls = ["images/a.jpg", "images/b.jpg", "./images/a.jpg", "images/../images/a.jpg", "IMAGES/a.jpg"]
    path = write_lines([{"image_url": url, "label": ["can"]} for url in urls])
    (path.parent / "images").mkdir()
    found = messages(path, MULTILABEL)
    assert [message.split(": ")[0] for message in found] == ["train.jsonl:3", "train.jsonl:4"]
    assert "must be unique" in found[0]
    assert "the image is already at train.jsonl:1; put all labels of an image on one line" in found[0]
    assert read([path], MULTILABEL).records.image_urls == ["images/a.jpg", "images/b.jpg", "IMAGES/a.jpg"]


def test_repeated_images_across_files_are_errors(write_lines: WriteLines) -> None:
    first = write_lines([{"image_url": "images/a", "label": "x"}])
    second = write_lines([{"image_url": "../images/a", "label": "y"}], "more/data.jsonl")
    (problem,) = read([first, second], CLASSIFICATION).problems
    assert problem.where == f"{second}:1"


@pytest.mark.parametrize(
    ("labels", "bad_lines"),
    [((1, 2, "three"), [3]), ((1, "1", 2, 3, "three"), [5]), (("x", 1, "2"), [2]), ((1, "01"), [1])],
)
def test_mixed_class_name_types_are_errors(
    labels: tuple[object, ...], bad_lines: list[int], write_lines: WriteLines
) -> None:
    path = write_lines([{"image_url": str(n), "label": label} for n, label in enumerate(labels)])
    (message,) = messages(path, CLASSIFICATION)
    assert message.startswith(
        f"train.jsonl:{bad_lines[0]}: label: class names in a file must be all strings or all integers"
    )
    assert [entry.line for entry in read([path], CLASSIFICATION).skipped] == bad_lines


def test_mixed_class_name_types_within_a_line_are_an_error(write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": ["x", 1]}, {"image_url": "b", "label": ["y"]}])
    assert [entry.line for entry in read([path], MULTILABEL).skipped] == [1]


def test_harmless_irregularities_are_warnings(write_lines: WriteLines) -> None:
    path = write_lines(
        [
            {"image_url": "a", "label": ["x", "x"]},
            {"image_url": "b", "label": ["x"], "image_details": {"format": "webp"}},
        ]
    )
    found = messages(path, MULTILABEL)
    assert [message.split(": ")[:3] for message in found] == [
        ["warning", "train.jsonl:1", "label"],
        ["warning", "train.jsonl:2", "image_details.format"],
    ]
    assert len(read([path], MULTILABEL).records) == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b'[{"image_url": "a", "label": "x"},\n{"image_url": "b", "label": "x"}]',
            ":1: must be JSON lines: one",
        ),
        (
            b'[{"image_url": "a", "label": "x"}, {"image_url": "b", "label": "x"}]',
            ":1: must be JSON lines: one",
        ),
        (
            b'{\n  "image_url": "a",\n  "label": "x"\n}\n',
            ":1: must be JSON lines: one object per line, got an object",
        ),
        ('{"image_url": "a", "label": "x"}'.encode("utf-16"), ": must be encoded in utf-8, got UTF-16"),
    ],
)
def test_files_that_are_not_json_lines_are_one_problem(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    result = read([path], CLASSIFICATION)
    assert not result.is_complete
    (problem,) = result.problems
    assert f"train.jsonl{expected}" in str(problem)


def test_other_encodings_are_reported_by_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(
        '{"image_url": "a", "label": "x"}\n{"image_url": "b", "label": "우유"}\n'.encode("cp949")
    )
    (message,) = messages(path, CLASSIFICATION)
    assert message == "train.jsonl:2: must be UTF-8, got byte 0xbf at column 30; save the file as UTF-8"


def test_missing_paths_are_reported(tmp_path: Path) -> None:
    result = read([tmp_path / "no.jsonl", tmp_path / "neither"], CLASSIFICATION)
    assert len(result.problems) == 2
    assert not result.is_complete
    assert len(result.records) == 0


def test_a_file_given_twice_is_an_error(write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": "x"}])
    (problem,) = read([path, path], CLASSIFICATION).problems
    assert "must be given only once" in str(problem)


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.touch()
    for task in Task:
        result = read([path], task)
        assert result.problems == []
        assert len(result.records) == 0


@pytest.mark.parametrize("task", list(Task))
def test_deep_nesting_is_an_error_not_a_crash(task: Task, write_lines: WriteLines) -> None:
    path = write_lines(['{"image_url": "a", "label": ' + "[" * 100_000 + "]" * 100_000 + "}"])
    assert len(messages(path, task)) == 1


@pytest.mark.parametrize("task", list(Task))
def test_absurd_values_are_errors_not_crashes(task: Task, write_lines: WriteLines) -> None:
    good = {"image_url": "a", "label": LABELS[task]}
    values: list[Any] = [
        None,
        True,
        0,
        -1,
        10**30,
        1e308,
        "",
        "x",
        [],
        [[]],
        {},
        [{}],
        [None],
        "\0",
        "a" * 5000,
    ]
    absurd = [{**good, key: value} for key in ("image_url", "label", "image_details") for value in values]
    if task.has_boxes:
        entry = LABELS[task][0]
        absurd += [
            {**good, "label": [{**entry, key: value}]} for key in (*entry, "isCrowd") for value in values
        ]
    for index, line in enumerate(absurd):
        path = write_lines([line], f"{index}.jsonl")
        result = read([path], task)
        assert len(result.records) + SkippedCount.of(result.skipped).lines == 1
        assert all(problem.rule for problem in result.problems)


@pytest.mark.parametrize("task", list(Task))
def test_the_fast_and_the_careful_reader_agree(task: Task, write_lines: WriteLines) -> None:
    """Lines that the fast reader takes have no fault, and the careful one reads the same from them."""
    good = {"image_url": "a", "image_details": {"format": "png", "width": 5}, "label": LABELS[task]}
    values: list[Any] = [
        None,
        True,
        0,
        1,
        0.05,
        -1e-7,
        1.0000001,
        2,
        1.0,
        "",
        "x",
        [],
        ["x"],
        {},
        "5px",
        10**20,
    ]
    lines = [{**good, key: value} for key in good for value in values]
    lines += [{**good, "image_details": {key: v}} for key in ("format", "width", "height") for v in values]
    if task.has_boxes:
        entry = LABELS[task][0]
        keys = (*entry, "isCrowd")
        lines += [{**good, "label": [{**entry, key: value}]} for key in keys for value in values]
    fast = fast_reader(task)
    taken = 0
    for line in lines:
        text = json.dumps(line).encode()
        findings = examine_line(text, task)
        try:
            read_fast = fast(text)
        except FAST_ERRORS:
            assert findings.problems or findings.unknown_keys or findings.lenient or findings.degenerate, line
            continue
        if not findings.problems and not findings.lenient:
            assert findings.line == read_fast
            taken += 1
        elif findings.problems:  # what the fast reader leaves to others, such as blank names
            path = write_lines([line])
            assert len(read([path], task).records) == 0, line
    assert taken > 10
