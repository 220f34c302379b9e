"""Reading JSON lines: what is accepted and what is left out."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.annotations import Objects
from trainer.data.reading.jsonl import read
from trainer.data.reading.skipped import write_skipped
from trainer.tasks import Task

CLASSIFICATION, MULTILABEL = Task.CLASSIFICATION, Task.MULTILABEL
DETECTION, SEGMENTATION = Task.DETECTION, Task.SEGMENTATION

BOX = {"label": "can", "topX": 0.1, "topY": 0.2, "bottomX": 0.5, "bottomY": 0.6}
TRIANGLE = {"label": "can", "polygon": [[0.1, 0.1, 0.5, 0.1, 0.3, 0.4]]}

WriteLines = Callable[..., Path]


def messages(path: Path, task: Task) -> list[str]:
    """What is said of a file, without its folder."""
    return [str(problem).replace(f"{path.parent}/", "") for problem in read([path], task).problems]


def box(**changes: Any) -> dict[str, Any]:
    return {**BOX, **changes}


def test_multiclass(write_lines: WriteLines) -> None:
    path = write_lines(
        [
            {
                "image_url": "a.jpg",
                "label": "우유",
                "image_details": {"format": "jpg", "width": "4px", "height": 3},
            },
            {"image_url": "b.jpg", "label": "can"},
        ]
    )
    result = read([path], CLASSIFICATION)
    assert result.problems == []
    records = result.records
    assert records.classes == ("can", "우유")
    assert [records.target(0), records.target(1)] == [1, 0]
    assert records.target(1, ("box", "can", "우유")) == 1
    assert records.sizes.tolist() == [[4, 3], [0, 0]]
    assert records.location(1) == f"{path}:2"
    assert records.image_urls == ["a.jpg", "b.jpg"]
    assert records.source(0) == str(path.parent / "a.jpg")


def test_multilabel_accepts_images_without_labels(write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": ["x", "z"]}, {"image_url": "b", "label": []}])
    result = read([path], MULTILABEL)
    assert result.problems == []
    assert result.records.target(0, ("x", "y", "z")).tolist() == [True, False, True]  # type: ignore[union-attr]
    assert result.records.target(1).tolist() == [False, False]  # type: ignore[union-attr]


def test_detection(write_lines: WriteLines) -> None:
    labels = [box(isCrowd=True), box(label="사과", isCrowd=0), box(isCrowd=1), box(isCrowd=False), box()]
    path = write_lines([{"image_url": "a", "label": labels}, {"image_url": "b", "label": []}])
    result = read([path], DETECTION)
    assert result.problems == []
    target = result.records.target(0)
    assert isinstance(target, Objects)
    assert target.crowd.tolist() == [True, False, True, False, False]
    assert target.labels.tolist() == [0, 1, 0, 0, 0]
    np.testing.assert_allclose(target.boxes[0], [0.1, 0.2, 0.5, 0.6])
    assert target.boxes.dtype == np.float32
    assert target.polygons is None
    background = result.records.target(1)
    assert isinstance(background, Objects)
    assert background.boxes.shape == (0, 4)


def test_segmentation(write_lines: WriteLines) -> None:
    two_parts = {
        "label": "can",
        "polygon": [[0.6, 0.6, 0.7, 0.6, 0.7, 0.9], [0.1, 0.2, 0.3, 0.2, 0.3, 0.4, 0, 0.3]],
    }
    path = write_lines(
        [
            {"image_url": "a", "label": [two_parts, TRIANGLE]},
            {"image_url": "b", "label": []},
            {"image_url": "c", "label": [{**TRIANGLE, "label": "box", "isCrowd": 1}]},
        ]
    )
    result = read([path], SEGMENTATION)
    assert result.problems == []
    target, background, last = (result.records.target(index) for index in range(3))
    assert isinstance(target, Objects)
    np.testing.assert_allclose(target.boxes, [[0, 0.2, 0.7, 0.9], [0.1, 0.1, 0.5, 0.4]])
    assert target.polygons is not None
    assert [[part.shape for part in parts] for parts in target.polygons] == [[(3, 2), (4, 2)], [(3, 2)]]
    np.testing.assert_allclose(target.polygons[0][1][3], [0, 0.3])
    assert isinstance(background, Objects)
    assert background.polygons == ()
    assert isinstance(last, Objects)
    assert (last.labels.tolist(), last.crowd.tolist()) == ([0], [True])


def test_integer_labels_become_strings(write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": str(number), "label": number} for number in (10, 9, 1)])
    result = read([path], CLASSIFICATION)
    assert result.problems == []
    assert result.records.classes == ("1", "10", "9")
    assert [result.records.target(index) for index in range(3)] == [1, 2, 0]


@pytest.mark.parametrize("size", [499, "499", "499px", "499 px", "499PX"])
def test_declared_sizes_are_read(size: object, write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": "x", "image_details": {"width": size, "height": size}}])
    result = read([path], CLASSIFICATION)
    assert result.problems == []
    assert result.records.sizes.tolist() == [[499, 499]]


@pytest.mark.parametrize("details", [{}, None, {"format": "JPG"}, {"format": "tiff", "width": 3}])
def test_image_details_are_optional(details: object, write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": "x", "image_details": details}])
    assert read([path], CLASSIFICATION).problems == []


def test_byte_order_mark_line_ends_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"image_url": "a", "label": "x"}\r\n\r\n   \n{"image_url": "b", "label": "y"}\r\n'
        b'{"image_url": "c", "label": "y"}'
    )
    result = read([path], CLASSIFICATION)
    assert result.problems == []
    assert result.records.lines.tolist() == [1, 4, 5]


def test_rounding_overshoot_is_clipped(write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": [BOX, box(topX=-1e-7, bottomY=1.0000005)]}])
    assert messages(path, DETECTION) == [
        "warning: train.jsonl:1: label[1]: coordinates should be in [0, 1]; those outside by at most a pixel "
        "or 0.5 % are clipped, got -1e-07; the first of 2 such values"
    ]
    target = read([path], DETECTION).records.target(0)
    assert isinstance(target, Objects)
    np.testing.assert_allclose(target.boxes[1], [0, 0.2, 0.5, 1])


def test_paths_may_be_those_of_a_job_file(
    write_lines: WriteLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines([{"image_url": "a.jpg", "label": "can"}], "data/train.jsonl")
    monkeypatch.chdir(tmp_path)
    for path in ("azureml:./data/train.jsonl", f"azureml:{tmp_path}/data/train.jsonl"):
        assert len(read([path], Task.CLASSIFICATION).records) == 1
    (problem,) = read(["azureml:fridge:1"], Task.CLASSIFICATION).problems
    assert problem.hint == "azureml:NAME:VERSION is data registered with Azure; give the path of a copy"


def test_integer_coordinates_are_accepted(write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": [box(topX=0, topY=0, bottomX=1, bottomY=1)]}])
    assert read([path], DETECTION).problems == []


def test_keys_of_another_task_are_allowed(write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": [{**BOX, **TRIANGLE}]}])
    assert messages(path, DETECTION) == [
        "warning: train.jsonl:1: label[].polygon: is not a key of the data schema and is ignored"
    ]
    assert len(read([path], DETECTION).records) == len(read([path], SEGMENTATION).records) == 1


def test_several_files_form_one_set(write_lines: WriteLines) -> None:
    first = write_lines([{"image_url": "a", "label": "x"}], "one/data.jsonl")
    second = write_lines(
        [{"image_url": "a", "label": "w"}, {"image_url": "b", "label": "x"}], "two/data.jsonl"
    )
    records = read([first, second], CLASSIFICATION).records
    assert records.classes == ("w", "x")
    assert [records.target(index) for index in range(3)] == [1, 0, 1]
    assert [records.location(index) for index in range(3)] == [f"{first}:1", f"{second}:1", f"{second}:2"]
    assert records.source(1) == str(second.parent / "a")


def test_lines_across_chunks_are_read_whole(write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {"image_url": f"그림/{n}.jpg", "label": [box(label=f"종류{n % 3}")] * (n % 4)} for n in range(300)
    ]
    path = write_lines(lines)
    whole = read([path], DETECTION).records
    monkeypatch.setattr("trainer.data.reading.data_file._CHUNK_BYTES", 777)
    pieces = read([path], DETECTION).records
    assert pickle.dumps(whole) == pickle.dumps(pieces)
    assert whole.image_urls == [line["image_url"] for line in lines]
    assert [len(whole.target(n).labels) for n in range(300)] == [n % 4 for n in range(300)]  # type: ignore[union-attr]


# Skipped ----------------------------------------------------------------------------------------------


def test_skipped_lines_are_written_with_their_reasons(tmp_path: Path, write_lines: WriteLines) -> None:
    wrong = {"image_url": "사진.jpg", "label": [box(topX=3)], "isCrowd": 5}
    path = write_lines([{"image_url": "a", "label": [BOX]}, wrong, "not json {"])
    result = read([path], DETECTION)
    target = tmp_path / "out" / "skipped.jsonl"
    write_skipped(target, result.skipped)
    first, second = (json.loads(line) for line in target.read_text(encoding="utf-8").splitlines())
    assert first == {
        "file": str(path),
        "line": 2,
        "reasons": ["label[0].topX: must be in [0, 1], got 3"],
        "record": wrong,
    }
    assert (second["line"], second["record"]) == (3, "not json {")


def test_reading_needs_no_torch(write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a", "label": "x"}])
    code = (
        "import sys; from trainer.data.validate import validate; from trainer.tasks import Task; "
        f"validate(Task.CLASSIFICATION, [{str(path)!r}], images=True); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
