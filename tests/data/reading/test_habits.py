"""What Azure's labelling projects and pandas write is taken as meant and told once for each file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.annotations import Objects
from trainer.data.reading.jsonl import ReadResult, read
from trainer.tasks import Task

BOX = {"label": "can", "topX": 0.1, "topY": 0.2, "bottomX": 0.5, "bottomY": 0.6}
TRIANGLE = {"label": "can", "polygon": [[0.1, 0.1, 0.5, 0.1, 0.3, 0.4]]}
NAN = float("nan")

WriteLines = Callable[..., Path]


def box(**changes: Any) -> dict[str, Any]:
    return {**BOX, **changes}


def warnings(result: ReadResult, folder: Path) -> list[str]:
    assert all(problem.warning for problem in result.problems), result.problems
    return [str(problem).replace(f"{folder}/", "") for problem in result.problems]


def objects(result: ReadResult, index: int = 0) -> Objects:
    target = result.records.target(index)
    assert isinstance(target, Objects)
    return target


@pytest.mark.parametrize(
    ("value", "is_crowd"),
    [
        ("true", True), ("True", True), ("1", True), (1.0, True), ("1.0", True), ("1e0", True), ("yes", True),
        ("false", False), ("FALSE", False), ("0", False), (0.0, False), ("no", False), (None, False),
        (NAN, False), ("", False), ("nan", False),
    ],
)  # fmt: skip
def test_crowd_flags_are_taken_as_meant(value: object, is_crowd: bool, write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": name, "label": [box(isCrowd=value), BOX]} for name in "ab"])
    result = read([path], Task.DETECTION)
    (warning,) = warnings(result, path.parent)
    assert warning.startswith("warning: train.jsonl:1: label[].isCrowd: should be 0, 1, true or false")
    assert warning.endswith("the first of 2 such lines")
    assert objects(result).crowd.tolist() == [is_crowd, False]


def test_numbers_in_strings_are_coordinates(write_lines: WriteLines) -> None:
    path = write_lines(
        [{"image_url": "a", "label": [box(topX="0.25", topY=" 2e-1 ", bottomX="1", bottomY=".5")]}]
    )
    result = read([path], Task.DETECTION)
    assert warnings(result, path.parent) == [
        "warning: train.jsonl:1: label[]: coordinates should be numbers; a number in a string is taken, "
        'got "0.25"'
    ]
    assert objects(result).boxes[0].tolist() == pytest.approx([0.25, 0.2, 1, 0.5])


def test_numbers_in_strings_are_points(write_lines: WriteLines) -> None:
    path = write_lines(
        [{"image_url": "a", "label": [{**TRIANGLE, "polygon": [["0", "0", "1", "0", "1", ".5"]]}]}]
    )
    result = read([path], Task.SEGMENTATION)
    assert len(warnings(result, path.parent)) == 1
    assert objects(result).boxes.tolist() == [[0, 0, 1, 0.5]]


@pytest.mark.parametrize(
    "changes",
    [
        {"polygon": "[[0, 0, 1, 0, 1, 0.5]]"},
        {"polygon": "[['0', 0, 1, 0, 1, .5]]"},
        {"polygon": ["[0, 0, 1, 0, 1, 0.5]"]},
    ],
)
def test_polygons_may_be_texts(changes: Any, write_lines: WriteLines) -> None:
    shape = {**TRIANGLE, **changes}
    for label in ([shape], [json.dumps(shape)], json.dumps([shape])):
        path = write_lines([{"image_url": "a", "label": label}])
        result = read([path], Task.SEGMENTATION)
        assert any("label[].polygon: should be a list" in each for each in warnings(result, path.parent))
        assert objects(result).boxes.tolist() == [[0, 0, 1, 0.5]]


@pytest.mark.parametrize("text", ["1_0", "0,5", "0x1", "half", "", "infinity", "٠"])
def test_other_texts_are_no_coordinates(text: str, write_lines: WriteLines) -> None:
    (problem,) = read([write_lines([{"image_url": "a", "label": [box(topX=text)]}])], Task.DETECTION).problems
    assert problem.rule == "must be a number in [0, 1]"
    assert not problem.warning


@pytest.mark.parametrize(("task", "shape"), [(Task.DETECTION, BOX), (Task.SEGMENTATION, TRIANGLE)])
def test_a_single_object_is_a_list_of_one(task: Task, shape: dict[str, Any], write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": shape}])
    result = read([path], task)
    (warning,) = warnings(result, path.parent)
    assert "label: should be a list of objects; a single object is taken as a list of one" in warning
    assert len(objects(result).boxes) == 1


@pytest.mark.parametrize("label", [[BOX, BOX], BOX, []])
def test_labels_may_be_json_in_a_string(label: Any, write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": json.dumps(label)}])
    result = read([path], Task.DETECTION)
    (warning,) = warnings(result, path.parent)
    assert "label: should be a list; the one written in a string is taken, got " in warning
    assert len(objects(result).boxes) == (1 if label is BOX else len(label))


def test_labels_may_be_pythons_lists_in_a_string(write_lines: WriteLines) -> None:
    boxes = read([write_lines([{"image_url": "a", "label": str([BOX, box(isCrowd=None)])}])], Task.DETECTION)
    assert all(problem.warning for problem in boxes.problems)
    assert len(objects(boxes).boxes) == 2
    classes = read([write_lines([{"image_url": "a", "label": "['can', \"d'or\"]"}])], Task.MULTILABEL)
    assert classes.records.classes == ("can", "d'or")
    (problem,) = read([write_lines([{"image_url": "a", "label": "[open('x')]"}])], Task.MULTILABEL).problems
    assert not problem.warning


@pytest.mark.parametrize("text", ["[can]", '["\ud800"]', "[" * 100_000])
def test_class_names_like_json_stay_names(text: str, write_lines: WriteLines) -> None:
    result = read([write_lines([json.dumps({"image_url": "a", "label": text})])], Task.MULTILABEL)
    assert [problem.warning for problem in result.problems] == [False]


def test_the_how_to_pages_line_is_taken(write_lines: WriteLines) -> None:
    label = {"label": "dog", "topX": "0", "topY": "0", "bottomX": "0.5", "bottomY": "1", "isCrowd": "false"}
    details = {"format": "jpeg", "width": "1230px", "height": "2356px"}
    path = write_lines([{"image_url": "a", "image_details": details, "label": label}])
    result = read([path], Task.DETECTION)
    assert len(warnings(result, path.parent)) == 3
    assert objects(result).boxes.tolist() == [[0, 0, 0.5, 1]]
    assert objects(result).crowd.tolist() == [False]
    assert result.records.sizes.tolist() == [[1230, 2356]]


@pytest.mark.parametrize("value", [16.0, "16.0", "16.0px", " 16.0 px"])
def test_sizes_may_have_a_point(value: object, write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": "x", "image_details": {"width": value, "height": 3}}])
    result = read([path], Task.CLASSIFICATION)
    (warning,) = warnings(result, path.parent)
    assert warning.startswith("warning: train.jsonl:1: image_details.width: should be an integer or a string")
    assert result.records.sizes.tolist() == [[16, 3]]


@pytest.mark.parametrize("value", [None, NAN, "", "NaN", "None"])
@pytest.mark.parametrize("key", ["width", "height", "format"])
def test_missing_details_may_be_null(key: str, value: object, write_lines: WriteLines) -> None:
    path = write_lines(
        [{"image_url": "a", "label": "x", "image_details": {"width": 4, "height": 3, key: value}}]
    )
    result = read([path], Task.CLASSIFICATION)
    if (key, value) != ("format", ""):
        assert warnings(result, path.parent)[0].startswith(
            f"warning: train.jsonl:1: image_details.{key}: should be left out"
        )
    assert result.records.sizes.tolist() == [[4 * (key != "width"), 3 * (key != "height")]]


@pytest.mark.parametrize("text", ['{"width": "16px", "height": 9}', "{'width': 16, 'height': 9.0}"])
def test_image_details_may_be_written_in_a_string(text: str, write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": "x", "image_details": text}])
    result = read([path], Task.CLASSIFICATION)
    assert result.records.sizes.tolist() == [[16, 9]]
    assert warnings(result, path.parent)[0].startswith(
        "warning: train.jsonl:1: image_details: should be an object; the one written in a string is taken"
    )


def test_a_list_in_a_string_is_no_image_details(write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": "x", "image_details": "[16, 9]"}])
    (problem,) = read([path], Task.CLASSIFICATION).problems
    assert problem.rule == "must be an object {format, width, height}"


def test_image_details_may_be_nan(write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": "x", "image_details": NAN}])
    assert len(warnings(read([path], Task.CLASSIFICATION), path.parent)) == 1


@pytest.mark.parametrize(
    ("labels", "classes"),
    [((1.0, 2, 1), ("1", "2")), ((1.0, 2.0), ("1", "2")), ((1, "1", 2), ("1", "2")),
     (("3", 1.0, "-2"), ("-2", "1", "3"))],
)  # fmt: skip
def test_whole_numbers_are_integer_classes(
    labels: tuple[object, ...], classes: tuple[str, ...], write_lines: WriteLines
) -> None:
    path = write_lines([{"image_url": str(number), "label": label} for number, label in enumerate(labels)])
    result = read([path], Task.CLASSIFICATION)
    assert warnings(result, path.parent)
    assert result.records.classes == classes
    assert [classes[result.records.target(index)] for index in range(len(labels))] == [  # type: ignore[index]
        str(int(label))
        for label in labels  # type: ignore[call-overload]
    ]


@pytest.mark.parametrize(
    ("task", "label"),
    [(Task.MULTILABEL, [1.0, 2]), (Task.DETECTION, [box(label=1.0)]),
     (Task.SEGMENTATION, [{**TRIANGLE, "label": 1.0}])],
)  # fmt: skip
def test_whole_numbers_are_classes_of_every_task(task: Task, label: object, write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": label}])
    result = read([path], task)
    (warning,) = warnings(result, path.parent)
    assert "should be a string or an integer; whole-number floats are accepted, got 1.0" in warning
    assert result.records.classes[0] == "1"


@pytest.mark.parametrize("value", [1.5, NAN, None, True])
def test_other_values_are_no_classes(value: object, write_lines: WriteLines) -> None:
    (problem,) = read([write_lines([{"image_url": "a", "label": value}])], Task.CLASSIFICATION).problems
    assert problem.rule == "must be a class name (a string)"


@pytest.mark.parametrize(
    ("written", "location"),
    [
        ("StreamInfo(/data/a.jpg)", "/data/a.jpg"),
        ("StreamInfo(a.jpg)", "a.jpg"),
        ("StreamInfo('images/a (1).jpg')", "images/a (1).jpg"),
        ("StreamInfo(AmlDatastore://store/b/a.jpg)", "AmlDatastore://store/b/a.jpg"),
        ("StreamInfo(azureml://datastores/store/paths/b/a.jpg)", "azureml://datastores/store/paths/b/a.jpg"),
        ("streaminfo(/data/a.jpg)", "/data/a.jpg"),
        ("STREAMINFO (url='a, b.jpg', length = 2) ", "a, b.jpg"),
        ("StreamInfo(https://example.org/a.jpg, length=2, version=None)", "https://example.org/a.jpg"),
        ({"handler": "AmlDatastore", "resource_identifier": "store/a.jpg", "arguments": {}},
         "AmlDatastore://store/a.jpg"),
        ({"Handler": "Local", "ResourceIdentifier": "/data/a.jpg"}, "/data/a.jpg"),
    ],
)  # fmt: skip
def test_stream_infos_are_locations(
    written: object, location: str, write_lines: WriteLines, tmp_path: Path
) -> None:
    lines = [{"image_url": "first.jpg", "label": "x"}, {"image_url": written, "label": "x"}]
    path = write_lines(lines)
    result = read([path], Task.CLASSIFICATION, datastores={"store": str(tmp_path)})
    (warning,) = warnings(result, path.parent)
    assert warning.startswith(
        "warning: train.jsonl:2: image_url: should be a path or URL; the one in the Stream"
    )
    assert result.records.image_url(1) == location
    if "store" in location:
        assert result.records.source(1).startswith(str(tmp_path))


def test_names_like_stream_infos_stay_names(write_lines: WriteLines) -> None:
    result = read([write_lines([{"image_url": "StreamInfo(1).jpg", "label": "x"}])], Task.CLASSIFICATION)
    assert result.problems == []
    assert result.records.image_urls == ["StreamInfo(1).jpg"]


def test_keys_of_labelling_projects_are_passed_over(write_lines: WriteLines) -> None:
    extra = {"label_confidence": [1.0], "datasetId": "x", "id": 3}
    path = write_lines([{"image_url": name, "label": [BOX], **extra} for name in "ab"])
    result = read([path], Task.DETECTION)
    assert [warning.split(": ")[2] for warning in warnings(result, path.parent)] == list(extra)
    assert len(result.records) == 2
