"""Loading the data of a run, and the checks of the data as a whole."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.data.reading.skipped import SkippedCount
from trainer.data.training_data import load
from trainer.data.validate import validate
from trainer.errors import DataError
from trainer.tasks import Task

WriteLines = Callable[..., Path]
BOX = {"label": "can", "topX": 0.1, "topY": 0.2, "bottomX": 0.5, "bottomY": 0.6}


def lines(count: int, prefix: str = "", **changes: Any) -> list[dict[str, Any]]:
    return [{"image_url": f"{prefix}{n}.png", "label": "ab"[n % 2], **changes} for n in range(count)]


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(*args, progress=False, **options)
    return str(caught.value)


def test_load_splits_off_validation_data(write_lines: WriteLines) -> None:
    path = write_lines(lines(20), images=True)
    data = load(Task.CLASSIFICATION, [path], validation_size=0.3, seed=4, progress=False)
    assert (len(data.train), len(data.validation)) == (14, 6)
    assert data.classes == ("a", "b")
    assert data.warnings == []
    assert data.skipped == SkippedCount()
    again = load(Task.CLASSIFICATION, [path], validation_size=0.3, seed=4, progress=False)
    assert again.validation.image_urls == data.validation.image_urls


def test_classes_are_the_sorted_union(write_lines: WriteLines) -> None:
    train = write_lines(
        [{"image_url": f"{n}.png", "label": label} for n, label in enumerate("bd")], images=True
    )
    other = write_lines(
        [{"image_url": f"v{n}.png", "label": x} for n, x in enumerate("ad")], "v.jsonl", images=True
    )
    data = load(Task.CLASSIFICATION, [train], [other], progress=False)
    assert data.classes == ("a", "b", "d")
    assert [data.train.target(n) for n in range(2)] == [1, 2]
    assert [data.validation.target(n, data.classes) for n in range(2)] == [0, 2]
    (warning,) = data.warnings
    assert str(warning) == (
        f"warning: {other}:1: label: class has no training image and will never be predicted, got 'a'"
    )


def test_classes_are_checked_once_all_files_are_read(write_lines: WriteLines) -> None:
    seen: list[Any] = []
    path = write_lines(lines(20), images=True)
    load(Task.CLASSIFICATION, [path], check_classes=seen.append, progress=False)
    assert seen == [["a", "b"]]
    misread = [{"image_url": f"{n}.png", "label": [{**BOX, "topX": 0.9}]} for n in range(10)]
    assert "are these width and height?" in refusal(
        Task.DETECTION, [write_lines(misread, images=True)], check_classes=seen.append
    )
    assert len(seen) == 1, "a metric of a class in an unread line is no error"


def test_all_problems_are_reported_at_once(write_lines: WriteLines) -> None:
    train = write_lines([*lines(3), {"image_url": "x.png"}, "broken"])
    for number in (0, 1):
        Image.new("RGB", (8, 6)).save(train.parent / f"{number}.png")
    (train.parent / "1.png").write_bytes((train.parent / "1.png").read_bytes()[:45])
    validation = write_lines([{"image_url": "v.png", "label": ["a"]}], "v.jsonl")
    text = refusal(Task.CLASSIFICATION, [train], [validation])
    for part in (
        "the data have 6 errors",
        f"{train}:2: image_url: must name a readable image, got '1.png': the image is truncated",
        f"{train}:3: image_url: must name a readable image, got '2.png': the image file does",
        f"{train}:4: label: is missing",
        f"{train}:5: must be one JSON object",
        f"{validation}:1: label: must be one class name for image-classification",
        "validation data: must hold at least one valid image",
    ):
        assert part in text


def test_skip_invalid_is_suggested_only_where_it_helps(write_lines: WriteLines) -> None:
    path = write_lines([*lines(3), "broken"])
    for number in range(3):
        Image.new("RGB", (8, 6)).save(path.parent / f"{number}.png")
    assert "--skip-invalid" in refusal(Task.CLASSIFICATION, [path])
    assert "--skip-invalid" not in refusal(Task.CLASSIFICATION, [path, path.parent / "no.jsonl"])
    assert "--skip-invalid" not in refusal(Task.CLASSIFICATION, [write_lines(["broken"], "all.jsonl")])


def test_skip_invalid_leaves_out_and_lists_invalid_lines(write_lines: WriteLines, tmp_path: Path) -> None:
    train = write_lines([*lines(6), {"image_url": "x.png", "label": ""}], images=True)
    (train.parent / "3.png").write_bytes(b"no image")
    (train.parent / "4.png").unlink()
    target = tmp_path / "run" / "skipped.jsonl"
    data = load(Task.CLASSIFICATION, [train], skip_invalid=True, skipped_path=target, progress=False)
    assert data.skipped == SkippedCount(lines=3)
    assert len(data.train) + len(data.validation) == 4
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert [entry["line"] for entry in written] == [4, 5, 7]
    assert [entry["record"]["image_url"] for entry in written] == ["3.png", "4.png", "x.png"]
    assert "not an image" in written[0]["reasons"][0]
    assert "does not exist" in written[1]["reasons"][0]
    assert "must be a class name" in written[2]["reasons"][0]


def test_skip_invalid_drops_unused_classes(write_lines: WriteLines) -> None:
    train = write_lines([*lines(4), {"image_url": "gone.png", "label": "c"}], images=True)
    (train.parent / "gone.png").unlink()
    assert load(Task.CLASSIFICATION, [train], skip_invalid=True, progress=False).classes == ("a", "b")


def test_too_few_lines_to_split_are_reported_with_the_skipped_ones(write_lines: WriteLines) -> None:
    path = write_lines([*lines(1), {"image_url": "x.png", "label": ""}], images=True)
    text = refusal(Task.CLASSIFICATION, [path], skip_invalid=True)
    assert "train.jsonl:1: at least two images are needed" in text
    assert "train.jsonl:2: label: must be a class name" in text


def test_nothing_skipped_writes_nothing(write_lines: WriteLines, tmp_path: Path) -> None:
    path = write_lines(lines(4), images=True)
    target = tmp_path / "skipped.jsonl"
    assert (
        load(Task.CLASSIFICATION, [path], skip_invalid=True, skipped_path=target, progress=False).skipped
        == SkippedCount()
    )
    assert not target.exists()


def test_skip_invalid_does_not_excuse_missing_files(write_lines: WriteLines, tmp_path: Path) -> None:
    path = write_lines(lines(4), images=True)
    text = refusal(Task.CLASSIFICATION, [path, tmp_path / "no.jsonl"], skip_invalid=True)
    assert "no.jsonl: must be a .jsonl file or an MLTable folder" in text
    assert "nothing is left" not in text


@pytest.mark.parametrize("task", list(Task))
def test_no_valid_training_image_is_an_error(task: Task, write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": "a.png", "label": 1.5}])
    assert "training data: must hold at least one valid image" in refusal(task, [path], skip_invalid=True)
    empty = write_lines([], "empty.jsonl")
    assert "training data: must hold at least one valid image" in refusal(task, [empty])


def test_backgrounds_alone_are_an_error(write_lines: WriteLines) -> None:
    path = write_lines(lines(3, label=[]), images=True)
    assert "must hold at least one object" in refusal(Task.DETECTION, [path])
    assert "must hold at least one label" in refusal(Task.MULTILABEL, [path])


CROWD = {**BOX, "isCrowd": 1}
OUTLINE = {"label": "can", "polygon": [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]}
UNMEASURABLE = [
    (Task.DETECTION, [BOX], [], "object, got images without any"),
    (Task.DETECTION, [BOX], [CROWD], "object, got only crowds"),
    (Task.SEGMENTATION, [OUTLINE], [], "object, got images without any"),
    (Task.SEGMENTATION, [OUTLINE], [{**OUTLINE, "isCrowd": 1}], "object, got only crowds"),
    (Task.MULTILABEL, ["can"], [], "label, got images without any"),
]


@pytest.mark.parametrize(("task", "label", "other", "told"), UNMEASURABLE)
def test_validation_data_without_an_object_are_an_error(
    task: Task, label: list[Any], other: list[Any], told: str, write_lines: WriteLines
) -> None:
    train = write_lines(lines(3, label=label), images=True)
    validation = write_lines(lines(2, "v", label=other), "v.jsonl", images=True)
    expected = f"validation data: must hold at least one {told}"
    text = refusal(task, [train], [validation])
    assert expected in text
    assert "leave the validation data out to have them split off" in text
    (error,) = (problem for problem in validate(task, [train], [validation]).problems if not problem.warning)
    assert expected in str(error)
    # one object is enough
    more = write_lines(lines(1, "w", label=label), "w.jsonl", images=True)
    assert len(load(task, [train], [validation, more], progress=False).validation) == 3


def test_training_crowds_alone_are_an_error(write_lines: WriteLines) -> None:
    path = write_lines(lines(3, label=[CROWD]), images=True)
    text = refusal(Task.DETECTION, [path])
    assert "training data: must hold at least one object, got only crowds (isCrowd)" in text


def test_class_that_training_has_as_a_crowd_only_is_a_warning(write_lines: WriteLines) -> None:
    cup = {**BOX, "label": "cup"}
    train = write_lines(lines(3, label=[BOX, {**cup, "isCrowd": 1}]), images=True)
    validation = write_lines(lines(2, "v", label=[BOX, cup]), "v.jsonl", images=True)
    (warning,) = load(Task.DETECTION, [train], [validation], progress=False).warnings
    assert "v.jsonl:1: label: class has no training image" in str(warning)
    assert str(warning).endswith("got 'cup'")


def test_one_image_with_an_object_cannot_be_split(write_lines: WriteLines) -> None:
    path = write_lines([*lines(3, label=[]), *lines(1, "x", label=[BOX])], images=True)
    assert "train.jsonl:4: at least two images with an object are needed" in refusal(Task.DETECTION, [path])
    (warning,) = validate(Task.DETECTION, [path]).problems
    assert warning.warning
    assert "train.jsonl:4: label: at least two images with objects are needed" in str(warning)


def test_one_class_is_a_warning(write_lines: WriteLines) -> None:
    path = write_lines(lines(4, label="a"), images=True)
    (warning,) = load(Task.CLASSIFICATION, [path], progress=False).warnings
    assert "should hold at least two classes, got only 'a'" in str(warning)


def test_images_in_both_sets_are_a_warning(write_lines: WriteLines) -> None:
    train = write_lines(lines(4), images=True)
    validation = write_lines([*lines(2, "v"), *lines(3)], "v.jsonl", images=True)
    (warning,) = load(Task.CLASSIFICATION, [train], [validation], progress=False).warnings
    assert str(warning).startswith(
        f"warning: {validation}:3: image_url: image should not be in both training"
    )
    assert "the first of 3 images in both" in str(warning)


def test_images_in_both_sets_are_found_by_another_path(write_lines: WriteLines) -> None:
    train = write_lines(lines(4), images=True)
    other = [
        {"image_url": "../1.png", "label": "a"},
        {"image_url": (train.parent / "2.png").as_uri(), "label": "b"},
    ]
    validation = write_lines(other, "sub/v.jsonl")
    (warning,) = load(Task.CLASSIFICATION, [train], [validation], progress=False).warnings
    assert "the first of 2 images in both" in str(warning)


def test_similar_class_names_are_a_warning(write_lines: WriteLines) -> None:
    names = ["cat", "Cat", "가", "\u1100\u1161", "dog"]  # the Korean syllable whole, and in parts
    path = write_lines(
        [{"image_url": f"{n}.png", "label": name} for n, name in enumerate(2 * names)], images=True
    )
    warnings = load(Task.CLASSIFICATION, [path], progress=False).warnings
    assert len(warnings) == 2
    assert all(
        "should differ in more than case, spaces or Unicode form" in str(warning) for warning in warnings
    )


def test_a_declared_shape_before_rotation_is_a_warning(write_lines: WriteLines) -> None:
    details = {"width": 80, "height": 60}
    path = write_lines(
        [{"image_url": f"{n}.jpg", "label": [BOX], "image_details": details} for n in range(3)]
    )
    exif = Image.Exif()
    for number, orientation in enumerate((1, 6, 8)):
        exif[0x0112] = orientation
        Image.new("RGB", (80, 60)).save(path.parent / f"{number}.jpg", exif=exif)
    (warning,) = load(Task.DETECTION, [path], progress=False).warnings
    assert str(warning).startswith(f"warning: {path}:2: image_details: should declare the shape of the image")
    assert "80 x 60 for an image of 60 x 80" in str(warning)
    assert "the first of 2 such lines" in str(warning)


def test_long_lists_are_shortened_by_kind(write_lines: WriteLines) -> None:
    path = write_lines([*lines(200), {"image_url": "x"}])
    with pytest.raises(DataError) as caught:
        load(Task.CLASSIFICATION, [path], check_images=False, progress=False)
    problems = [str(problem) for problem in caught.value.problems]
    assert sum("does not exist" in problem for problem in problems) == 50
    assert any("label: is missing" in problem for problem in problems)
    assert "150 more of the same kinds are not shown; `trainer validate` lists all" in problems[-1]
    assert "202 errors" in str(caught.value)


@pytest.mark.parametrize("check_images", [True, False])
def test_a_missing_folder_is_reported_once(check_images: bool, write_lines: WriteLines) -> None:
    path = write_lines([*lines(4), *lines(40, "gone/")])
    for number in range(4):
        Image.new("RGB", (8, 6)).save(path.parent / f"{number}.png")
    text = refusal(Task.CLASSIFICATION, [path], check_images=check_images)
    assert (
        f"{path}:5: image_url: must be in a folder that exists, got {path.parent}/gone; the first of 40"
        in text
    )
    assert "the data have 1 error;" in text
    data = load(Task.CLASSIFICATION, [path], skip_invalid=True, check_images=check_images, progress=False)
    assert (data.skipped.lines, len(data.train) + len(data.validation)) == (40, 4)


@pytest.mark.parametrize("count", [5, 100])
def test_missing_files_in_small_and_large_folders(count: int, write_lines: WriteLines) -> None:
    path = write_lines(lines(count), images=True)
    (path.parent / "1.png").unlink()
    (path.parent / "2.png").unlink()
    (path.parent / "2.png").mkdir()
    text = refusal(Task.CLASSIFICATION, [path], check_images=False)
    assert "the data have 2 errors" in text
    assert f"{path}:2: image_url: must name a readable image, got '1.png': the image file does" in text


def test_without_checking_images_only_existence_counts(write_lines: WriteLines) -> None:
    path = write_lines([*lines(4), {"image_url": "gone.png", "label": "a"}], images=True)
    (path.parent / "1.png").write_bytes(b"no image")
    (path.parent / "gone.png").unlink()
    text = refusal(Task.CLASSIFICATION, [path], check_images=False)
    assert "1 error;" in text
    assert "gone.png" in text


def test_progress_is_logged(
    write_lines: WriteLines, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.data.progress._SECONDS_BETWEEN_LINES", 0.0)
    path = write_lines(lines(5), images=True)
    with caplog.at_level(logging.INFO, "trainer"):
        load(Task.CLASSIFICATION, [path], progress=True)
    assert caplog.messages[-1] == "checking images: 5 of 5"


def test_validate_summarises(write_lines: WriteLines) -> None:
    labels: list[Any] = [[BOX, {**BOX, "label": "우유"}], [BOX], [], "wrong"]
    path = write_lines([{"image_url": f"{n}.png", "label": x} for n, x in enumerate(labels)], images=True)
    report = validate(Task.DETECTION, [path])
    assert report.errors == 1
    assert report.summary.images == 3
    assert report.summary.class_counts == {"can": 2, "우유": 1}
    assert str(report.summary).splitlines()[0] == "3 images, 3 objects, 1 images without a label, 2 classes"


def test_azure_data_are_loaded(shared_data: Path) -> None:
    folder = shared_data / "fridge_azure"
    data = load(
        Task.DETECTION,
        [folder / "training-mltable-folder"],
        [folder / "validation-mltable-folder"],
        datastores={"workspaceblobstore": str(folder / "datastore")},
        progress=False,
    )
    assert (len(data.train), len(data.validation)) == (4, 2)
    assert data.classes == ("can", "carton", "milk_bottle", "water_bottle")
    assert not data.warnings


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("fridge_multiclass", Task.CLASSIFICATION),
        ("cards/multilabel", Task.MULTILABEL),
        ("cards/detection", Task.DETECTION),
        ("microcontrollers", Task.DETECTION),
        ("nuclei", Task.SEGMENTATION),
        ("fruits_nuts", Task.SEGMENTATION),
        ("fruits_nuts/detection", Task.DETECTION),
    ],
)
def test_real_data_are_loaded(name: str, task: Task, shared_data: Path) -> None:
    paths = [shared_data / name / f"{part}.jsonl" for part in ("train", "validation")]
    data = load(task, paths[:1], paths[1:], progress=False)
    assert not data.warnings
    assert data.skipped == SkippedCount()
    for path, records in zip(paths, (data.train, data.validation), strict=True):
        originals = [json.loads(line) for line in path.read_text().splitlines()]
        assert records.image_urls == [line["image_url"] for line in originals]
        assert np.diff(records.starts).sum() == sum(
            1 if isinstance(line["label"], str) else len(line["label"]) for line in originals
        )
