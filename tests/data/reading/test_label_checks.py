"""Single objects that cannot be used cost only themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from trainer.annotations import Objects
from trainer.data.reading.jsonl import ReadResult, read
from trainer.data.reading.skipped import SkippedCount, write_skipped
from trainer.data.training_data import load
from trainer.errors import DataError
from trainer.tasks import Task

BOX = {"label": "can", "topX": 0.1, "topY": 0.2, "bottomX": 0.5, "bottomY": 0.6}
SQUARE = [0.1, 0.1, 0.5, 0.1, 0.5, 0.5, 0.1, 0.5]
LINE = [0.1, 0.2, 0.2, 0.4, 0.3, 0.6]
"""Points on one line that float32 rounds to slightly different ones."""

WriteLines = Callable[..., Path]


def box(**changes: Any) -> dict[str, Any]:
    return {**BOX, **changes}


def outline(*segments: Any) -> dict[str, Any]:
    return {"label": "can", "polygon": list(segments)}


def image(*objects: Any, url: str = "a", **details: Any) -> dict[str, Any]:
    return {"image_url": url, "label": list(objects), "image_details": details}


def said(result: ReadResult) -> list[str]:
    """The problems without the file's folder."""
    return [str(problem).replace(f"{Path(problem.where).parent}/", "") for problem in result.problems]


def objects(result: ReadResult, index: int = 0) -> Objects:
    target = result.records.target(index)
    assert isinstance(target, Objects)
    return target


# Clipping ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "details", "corners"),
    [
        ({"bottomX": 163 / 162}, {"width": 162, "height": 130}, [0.1, 0.2, 1, 0.6]),
        ({"topX": -1 / 162}, {"width": "162px"}, [0, 0.2, 0.5, 0.6]),
        ({"bottomY": 1 + 1 / 130}, {"width": 1000, "height": 130}, [0.1, 0.2, 0.5, 1]),
        ({"topX": -0.002}, {}, [0, 0.2, 0.5, 0.6]),
        ({"bottomX": 1.005}, {}, [0.1, 0.2, 1, 0.6]),
        ({"bottomX": 1.005}, {"width": 4000, "height": 3000}, [0.1, 0.2, 1, 0.6]),
        ({"bottomX": 1.000002}, {}, [0.1, 0.2, 1, 0.6]),
    ],
)
def test_values_just_outside_are_clipped(
    changes: dict[str, float], details: dict[str, Any], corners: list[float], write_lines: WriteLines
) -> None:
    result = read([write_lines([image(BOX, box(**changes), **details)])], Task.DETECTION)
    (message,) = said(result)
    assert message.startswith(
        "warning: train.jsonl:1: label[1]: coordinates should be in [0, 1]; those outside by at most a pixel "
        "or 0.5 % are clipped, got "
    )
    np.testing.assert_allclose(objects(result).boxes[1], corners, rtol=1e-6)
    assert not result.skipped


@pytest.mark.parametrize("details", [{}, {"width": 20}])
def test_a_pixel_is_that_of_the_image_where_no_size_is_declared(
    details: dict[str, Any], write_lines: WriteLines
) -> None:
    one_pixel_over = image(box(bottomX=21 / 20, topY=-1 / 10), url="a b.png", **details)
    two_pixels_over = image(box(bottomY=1.2), url="a b.png", **details)
    path = write_lines([one_pixel_over, {**two_pixels_over, "image_url": "./a b.png"}])
    Pillow.new("RGB", (20, 10)).save(path.parent / "a b.png")
    result = read([path], Task.DETECTION)
    np.testing.assert_allclose(objects(result).boxes, [[0.1, 0, 1, 0.6]], rtol=1e-6)
    warning, error = said(result)
    assert "label[0]: coordinates should be in [0, 1]; " in warning
    assert error == "train.jsonl:2: label[0].bottomY: must be in [0, 1], got 1.2"


def test_clipped_values_are_counted(write_lines: WriteLines) -> None:
    outlines = [outline([-0.001, 0, 1.001, 0, 0.5, 1.004]), outline(SQUARE)]
    path = write_lines([image(*outlines), image(outline(SQUARE), outline([1.001, *SQUARE[1:]]), url="b")])
    result = read([path], Task.SEGMENTATION)
    (message,) = said(result)
    assert "label[0]: " in message
    assert message.endswith("got -0.001; the first of 4 such values")
    np.testing.assert_allclose(objects(result).boxes[0], [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("changes", "details"),
    [
        ({"bottomX": 1.0062}, {}),
        ({"bottomX": 1.0062}, {"width": 1000, "height": 1000}),
        ({"topX": -2 / 162}, {"width": 162, "height": 130}),
        ({"bottomY": 1 + 1 / 130}, {"width": 130}),
        ({"bottomX": 1.9}, {"width": 10, "height": 10}),
        ({"bottomX": 5000}, {"width": 640, "height": 480}),
    ],
)
def test_values_farther_outside_are_errors_but_not_pixels(
    changes: dict[str, float], details: dict[str, Any], write_lines: WriteLines
) -> None:
    (message,) = said(read([write_lines([image(box(**changes), **details)])], Task.DETECTION))
    assert "must be in [0, 1], got" in message
    assert "pixels" not in message


@pytest.mark.parametrize(("value", "details"), [(2, {}), (320, {}), (640.5, {"width": 640, "height": 480})])
def test_large_values_may_be_pixels(value: float, details: dict[str, Any], write_lines: WriteLines) -> None:
    (message,) = said(read([write_lines([image(box(bottomX=value), **details)])], Task.DETECTION))
    assert "is it in pixels? divide it by the image's width" in message


# Objects without an area -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        (
            {"topX": 0.5},
            "topX must be less than bottomX, got topX 0.5 and bottomX 0.5; the object is left out",
        ),
        (
            {"topY": 0.6},
            "topY must be less than bottomY, got topY 0.6 and bottomY 0.6; the object is left out",
        ),
        ({"topX": 0.5, "topY": 0.6}, "topX must be less than bottomX"),
        ({"topX": 0.9}, "the object is left out; are these corners, or width and height?"),
        ({"topX": 0.5, "bottomX": 0.5 + 1e-12}, "topX must be less than bottomX"),
        ({"topX": "0.5"}, "topX must be less than bottomX"),
        ({"topX": 1.001, "bottomX": 1.003}, "topX must be less than bottomX, got topX 1 and bottomX 1"),
    ],
)
def test_boxes_without_an_area_cost_only_themselves(
    changes: dict[str, Any], rule: str, write_lines: WriteLines
) -> None:
    path = write_lines([image(BOX, box(label="x"), url="first"), image(BOX, box(**changes), box(label="x"))])
    result = read([path], Task.DETECTION)
    assert all(problem.warning for problem in result.problems)
    (message,) = [message for message in said(result) if "less than" in message]
    assert message.startswith("warning: train.jsonl:2: label[1]: ")
    assert rule in message
    assert objects(result, 1).labels.tolist() == [0, 1]
    assert [(entry.line, entry.objects) for entry in result.skipped] == [(2, (1,))]


@pytest.mark.parametrize(
    ("inverted", "hint"),
    [
        ({"topX": 0.7}, "are these width and height? write topX + width as bottomX"),
        ({"topX": 0.7, "topY": 0.8}, "are the two corners swapped?"),
        ({"topY": 0.8}, "are these width and height?"),
    ],
)
def test_a_file_of_inverted_boxes_is_one_error(
    inverted: dict[str, float], hint: str, write_lines: WriteLines
) -> None:
    lines = [image(BOX, box(**inverted), BOX, url=f"{number}") for number in range(10)]
    result = read([write_lines(lines)], Task.DETECTION)
    (message,) = said(result)
    assert message.startswith(
        "train.jsonl:1: boxes must have topX less than bottomX and topY less than bottomY, got 10 of 30 that "
        "do not, the first with "
    )
    assert hint in message
    assert not result.is_complete  # leaving them out would not make the others right
    flipped = read([write_lines([image(box(topY=0.8))] * 10)], Task.DETECTION)
    assert "is y counted from the bottom of the image?" in said(flipped)[0]
    for some in (lines[:9], [*lines, image(BOX, BOX, BOX, url="10")]):  # fewer than ten, or than a third
        assert all(problem.warning for problem in read([write_lines(some)], Task.DETECTION).problems)


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([LINE], "label[1].polygon: must enclose an area, got points on one line; the object is left out"),
        ([[0.1, 0.1, 0.1, 0.5, 0.1, 0.3]], "must enclose an area"),
        ([[0.1, 0.1] * 4], "must enclose an area"),
        ([LINE, [0.1, 0.5, 0.2, 0.5, 0.3, 0.5]], "must enclose an area"),
        (
            [[0.1, 0.1, 0.5, 0.1]],
            "must have at least 3 points (6 numbers), got 2 points; the object is left out",
        ),
        ([[0.1, 0.1], [0.5, 0.1, 0.2, 0.2]], "must have at least 3 points (6 numbers), got 2 points"),
        ([[]], "must have at least 3 points (6 numbers), got 0 points"),
        ([], "must have at least 3 points (6 numbers), got 0 points"),
    ],
)
def test_polygons_without_an_area_cost_only_themselves(
    polygon: Any, message: str, write_lines: WriteLines
) -> None:
    path = write_lines([image(outline(SQUARE), outline(*polygon), outline(SQUARE, SQUARE))])
    result = read([path], Task.SEGMENTATION)
    assert message in said(result)[0]
    assert said(result)[0].startswith("warning: train.jsonl:1: label[1].polygon: ")
    assert len(result.problems) == 1
    polygons = objects(result).polygons
    assert polygons is not None
    assert [len(segments) for segments in polygons] == [1, 2]
    assert [(entry.line, entry.objects) for entry in result.skipped] == [(1, (1,))]


@pytest.mark.parametrize("segment", [LINE, [], [0.1, 0.1], [0.9, 0.9, 0.8, 0.9, 0.7, 0.9]])
def test_segments_without_an_area_cost_only_themselves(segment: list[float], write_lines: WriteLines) -> None:
    result = read([write_lines([image(outline(SQUARE, segment, SQUARE[:6]))])], Task.SEGMENTATION)
    (message,) = said(result)
    assert message.startswith("warning: train.jsonl:1: label[0].polygon[1]: must ")
    assert message.endswith("the segment is left out")
    polygons = objects(result).polygons
    assert polygons is not None
    assert [part.shape for part in polygons[0]] == [(4, 2), (3, 2)]
    np.testing.assert_allclose(objects(result).boxes, [[0.1, 0.1, 0.5, 0.5]])
    assert [(entry.line, entry.objects) for entry in result.skipped] == [(1, ())]


@pytest.mark.parametrize(
    "segment",
    [
        [0.1, 0.1, 0.5, 0.5, 0.1, 0.5, 0.5, 0.1],  # a bow tie, whose halves cancel out
        [0.1, 0.1, 0.1001, 0.1, 0.1001, 0.9, 0.1, 0.9],
        [0.1, 0.2, 0.2, 0.4, 0.3, 0.60001],
    ],
)
def test_thin_and_crossing_polygons_are_kept(segment: list[float], write_lines: WriteLines) -> None:
    assert read([write_lines([image(outline(segment))])], Task.SEGMENTATION).problems == []


def test_thin_segments_are_found_among_many(write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.reading.label_checks._SEGMENTS_PER_BLOCK", 3)
    lines = [image(outline(SQUARE), outline(LINE if n % 4 == 3 else SQUARE), url=str(n)) for n in range(8)]
    result = read([write_lines(lines)], Task.SEGMENTATION)
    assert [(entry.line, entry.objects) for entry in result.skipped] == [(4, (1,)), (8, (1,))]
    (message,) = said(result)
    assert message.endswith("the object is left out; the first of 2 such objects, the next in line 8")


def test_the_next_lines_of_objects_without_an_area_are_named(write_lines: WriteLines) -> None:
    flat = box(topX=0.5)
    path = write_lines([image(BOX, *[flat] * (n % 3), url=str(n)) for n in range(30)])
    (message,) = said(read([path], Task.DETECTION))
    assert message.startswith("warning: train.jsonl:2: label[1]: ")
    assert message.endswith("the first of 30 such objects, the next in lines 3, 5, 6, 8")


def test_images_that_lose_all_objects_become_background(write_lines: WriteLines) -> None:
    flat = box(topX=0.5)
    path = write_lines([image(flat), image(url="b"), image(flat, flat, url="c"), image(BOX, flat, url="d")])
    result = read([path], Task.DETECTION)
    assert [len(objects(result, index).boxes) for index in range(4)] == [0, 0, 0, 1]
    assert said(result)[1] == (
        "warning: train.jsonl:1: label: is left without an object: the image is trained on as background; "
        "the first of 2 such lines"
    )


# Wrong objects ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        box(topX=300), box(topX=-0.1), box(topX="left"), box(topX=None), box(topX=True),
        box(topX=float("nan")), box(label=""), box(label=None), box(label=1.5), box(label=7), box(isCrowd=2),
        box(isCrowd="maybe"),
        {key: value for key, value in BOX.items() if key != "label"},
        {key: value for key, value in BOX.items() if key != "bottomY"}, 3, None, [], {},
    ],
)  # fmt: skip
def test_wrong_boxes_are_errors_that_leave_the_rest(wrong: Any, write_lines: WriteLines) -> None:
    path = write_lines([image(BOX, box(topX=0.5), wrong, box(label="x"), BOX), image(wrong, url="b")])
    result = read([path], Task.DETECTION)
    errors = [problem for problem in result.problems if not problem.warning]
    assert {problem.where for problem in errors} <= {f"{path}:1", f"{path}:2"}
    assert errors
    assert objects(result).labels.tolist() == [0, 1, 0]
    assert len(result.records) == 1, "an image whose only object is wrong is no background"
    assert [(entry.line, entry.objects) for entry in result.skipped] == [(1, (1, 2)), (2, None)]


@pytest.mark.parametrize("polygon", [[[0.1, 0.1, 0.5, 0.1, 300, 0.4]], [[0.1] * 7], "x", 3, [[0.1, "y"] * 3]])
def test_wrong_polygons_are_errors_that_leave_the_rest(polygon: Any, write_lines: WriteLines) -> None:
    path = write_lines([image(outline(SQUARE), {"label": "x", "polygon": polygon}, outline(SQUARE))])
    result = read([path], Task.SEGMENTATION)
    assert [problem.warning for problem in result.problems] == [False]
    assert objects(result).labels.tolist() == [0, 0]
    assert [entry.objects for entry in result.skipped] == [(1,)]


def test_wrong_objects_end_a_run_unless_skipped(write_lines: WriteLines, tmp_path: Path) -> None:
    lines = [
        image(BOX, url="0.png"),
        image(BOX, box(topX=300), url="1.png"),
        image(BOX, box(topX=0.5), url="2.png"),
    ]
    path = write_lines(lines, images=True)
    with pytest.raises(DataError, match=r"train.jsonl:2: label\[1\].topX: must be in"):
        load(Task.DETECTION, [path], progress=False)
    target = tmp_path / "skipped.jsonl"
    data = load(Task.DETECTION, [path], skip_invalid=True, skipped_path=target, progress=False)
    assert data.skipped == SkippedCount(objects=2)
    assert str(data.skipped) == "2 objects"
    assert len(data.train) + len(data.validation) == 3
    wrong, flat = (json.loads(line) for line in target.read_text("utf-8").splitlines())
    assert wrong == {
        "file": str(path),
        "line": 2,
        "reasons": ["label[1].topX: must be in [0, 1], got 300"],
        "objects": [1],
        "record": lines[1],
    }
    assert (flat["line"], flat["objects"]) == (3, [1])


def test_objects_without_an_area_end_no_run(
    write_lines: WriteLines, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines([image(BOX, box(topX=0.5), url=f"{n}.png") for n in range(3)], images=True)
    target = tmp_path / "skipped.jsonl"
    data = load(Task.DETECTION, [path], skipped_path=target, progress=False)
    assert len(target.read_text().splitlines()) == 3
    data.log_findings(target)
    assert "label[1]: topX must be less than bottomX" in caplog.text
    assert f"left out 3 objects, listed with the reasons in {target}" in caplog.text


def test_a_line_left_out_for_its_image_keeps_all_reasons(write_lines: WriteLines, tmp_path: Path) -> None:
    lines = [image(BOX, url="0.png"), image(BOX, url="1.png"), image(BOX, box(topX=0.5), url="2.png")]
    path = write_lines(lines, images=True)
    (path.parent / "2.png").unlink()
    target = tmp_path / "skipped.jsonl"
    data = load(Task.DETECTION, [path], skip_invalid=True, skipped_path=target, progress=False)
    (entry,) = (json.loads(line) for line in target.read_text("utf-8").splitlines())
    assert "objects" not in entry
    assert ["topX must be" in reason for reason in entry["reasons"]] == [True, False]
    assert str(data.skipped) == "1 line"


def test_skipped_segments_are_listed(write_lines: WriteLines, tmp_path: Path) -> None:
    result = read([write_lines([image(outline(SQUARE, LINE))])], Task.SEGMENTATION)
    write_skipped(tmp_path / "skipped.jsonl", result.skipped)
    entry = json.loads((tmp_path / "skipped.jsonl").read_text("utf-8"))
    assert entry["objects"] == []
    assert entry["reasons"] == ["label[0].polygon[1]: must enclose an area, got points on one line"]
