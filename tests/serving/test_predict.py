"""`trainer predict`: every image gets its line or its error, in order, and its drawing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image as PILImage

from serving.locate import find_model
from serving.predict import find_images, predict_files
from trainer.cli.scoring import predict
from trainer.errors import DataError, RequestError, RunError
from trainer.tasks import Task

MakeImage = Callable[..., bytes]
Packaged = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, make_image: MakeImage) -> Path:
    folder = tmp_path / "사진 [1]"
    (folder / "more").mkdir(parents=True)
    for seed, name in enumerate(("b.png", "a.JPG", "more/b.png", "more/c.tiff")):
        kind = {"JPG": "JPEG", "tiff": "TIFF"}.get(name.split(".")[1], "PNG")
        (folder / name).write_bytes(make_image(seed, (70, 50), kind))
    (folder / "notes.txt").write_text("no image")
    return folder


def test_scores_a_directory_in_order(folder: Path, packaged: Packaged, tmp_path: Path) -> None:
    output = tmp_path / "out" / "predictions.jsonl"
    run = packaged(Task.CLASSIFICATION).parent
    answers = list(predict_files(run, [folder], output=output))
    names = [Path(answer["image_url"]).relative_to(folder).as_posix() for answer in answers]
    assert names == ["a.JPG", "b.png", "more/b.png", "more/c.tiff"]
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert lines == answers
    assert list(lines[0]) == ["image_url", "probs", "labels"]
    assert "우유병" in output.read_text(encoding="utf-8")


def test_more_images_than_a_batch_keep_their_order(
    tmp_path: Path, packaged: Packaged, make_image: MakeImage
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(19)]
    for number, file in enumerate(files):
        file.write_bytes(make_image(number))
    model = packaged(Task.CLASSIFICATION)
    answers = list(predict_files(model, files))
    assert [answer["image_url"] for answer in answers] == [file.as_posix() for file in files]
    (alone,) = predict_files(model, [files[17]])
    assert answers[17]["probs"] == pytest.approx(alone["probs"], abs=1e-5)


def test_broken_images_are_reported_after_the_others_are_written(
    folder: Path, packaged: Packaged, tmp_path: Path
) -> None:
    whole = (folder / "b.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    output = tmp_path / "predictions.jsonl"
    answers = predict_files(packaged(Task.CLASSIFICATION), [folder], output=output)
    assert len(list(islice(answers, 4))) == 4
    with pytest.raises(DataError, match="2 of 6 images could not be scored") as caught:
        next(answers)
    assert len(output.read_text(encoding="utf-8").splitlines()) == 4
    assert [Path(problem.where).name for problem in caught.value.problems] == ["broken.png", "empty.png"]


@pytest.mark.parametrize("task", list(Task))
def test_drawings_have_unique_names(task: Task, folder: Path, packaged: Packaged, tmp_path: Path) -> None:
    drawings = tmp_path / "drawn"
    list(predict_files(packaged(task), [folder], draw=drawings))
    assert sorted(file.name for file in drawings.iterdir()) == ["a.jpg", "b-2.jpg", "b.jpg", "c.jpg"]
    for file in drawings.iterdir():
        with PILImage.open(file) as drawing:
            assert min(drawing.size) > 300


def test_finds_files_directories_and_patterns_once(folder: Path) -> None:
    pattern = Path(str(folder).replace("[1]", "[[]1[]]")) / "**" / "*.png"
    found = find_images([folder / "notes.txt", pattern, folder / "b.png", folder]).files
    names = [file.relative_to(folder).as_posix() for file in found]
    assert names == ["notes.txt", "b.png", "more/b.png", "a.JPG", "more/c.tiff"]


def test_a_directory_gives_every_kind_of_image_that_can_be_read(
    tmp_path: Path, make_image: MakeImage
) -> None:
    for name, kind in (("a.gif", "GIF"), ("b.WEBP", "WEBP"), ("c.jfif", "JPEG"), ("d.ppm", "PPM")):
        (tmp_path / name).write_bytes(make_image(file_format=kind))
    (tmp_path / "e.pdf").write_bytes(b"%PDF-1.4")
    assert [file.name for file in find_images([tmp_path]).files] == ["a.gif", "b.WEBP", "c.jfif", "d.ppm"]


def test_files_that_a_directory_leaves_out_are_counted_by_suffix(folder: Path) -> None:
    for name in ("more/b.mp4", "c.mp4", "d.MP4", "e.mp4", "README"):
        (folder / name).touch()
    left_out = find_images([folder, folder / "notes.txt"]).left_out
    assert left_out == "4 .mp4 (c.mp4, d.MP4, e.mp4, …), 1 without a suffix (README), 1 .txt (notes.txt)"


def test_a_heic_image_without_its_reader_is_an_error_that_names_the_package(
    folder: Path, packaged: Packaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    monkeypatch.setattr("trainer.data.image_formats.has_heif", lambda: False)
    with pytest.raises(DataError, match="1 of 5 images could not be scored") as caught:
        list(predict_files(packaged(Task.CLASSIFICATION), [folder]))
    (problem,) = caught.value.problems
    assert problem.where.endswith("IMG_1.HEIC")
    assert "pip install 'image-trainer[heif]'" in problem.rule


def test_the_command_names_what_it_leaves_out(
    folder: Path, packaged: Packaged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(packaged(Task.CLASSIFICATION), [folder], output=tmp_path / "answers.jsonl")
    expected = "left out, as their names are not those of images: 1 .txt (notes.txt)"
    assert expected in capsys.readouterr().err


def test_nothing_is_left_out_of_named_files_and_of_folders_of_images(folder: Path) -> None:
    (folder / "notes.txt").unlink()
    assert find_images([folder, folder / "a.JPG"]).left_out == ""


def test_a_folder_without_images_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"must contain an image file \(.*\), got 1 \.txt \(notes\.txt\)"):
        find_images([tmp_path])


def test_a_path_that_differs_in_case_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"a\.JPG exists, which differs in upper and lower case"):
        find_images([folder / "a.jpg"])


def test_paths_without_images_are_reported_before_scoring(
    folder: Path, packaged: Packaged, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    output = tmp_path / "predictions.jsonl"
    paths = [folder, tmp_path / "missing.png", tmp_path / "empty", tmp_path / "*.gif"]
    with pytest.raises(DataError) as caught:
        list(predict_files(packaged(Task.CLASSIFICATION), paths, output=output))
    assert [problem.where for problem in caught.value.problems] == [str(path) for path in paths[1:]]
    assert not output.exists()
    with pytest.raises(DataError, match="at least one image"):
        list(predict_files(packaged(Task.CLASSIFICATION), []))


def test_paths_may_be_those_of_a_job_file(folder: Path) -> None:
    written = Path(f"azureml:{folder}")
    assert find_images([written]) == find_images([folder])
    assert find_images([written]).left_out
    with pytest.raises(RunError, match=f"^{folder.parent}/no-model: does not exist"):
        find_model(Path(f"azureml:{folder.parent}/no-model"))


def test_parameters_are_used_and_checked(folder: Path, packaged: Packaged) -> None:
    model = packaged(Task.DETECTION)
    answers = list(predict_files(model, [folder], parameters={"box_detections_per_image": 2}))
    assert [len(answer["boxes"]) for answer in answers] == [2, 2, 2, 2]
    with pytest.raises(RequestError, match="nms_iou_threshold must be a number in"):
        list(predict_files(model, [folder], parameters={"nms_iou_threshold": 7}))


def test_explanation_of_boxes_by_another_method_than_drise_is_left_out_with_a_warning(
    folder: Path, packaged: Packaged, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="trainer"):
        (answer,) = predict_files(
            packaged(Task.DETECTION), [folder / "b.png"], explain={"xai_algorithm": "xrai"}
        )
    assert list(answer) == ["image_url", "boxes"]
    assert "boxes are explained by drise alone" in caplog.text


def test_unwritable_output_raises(folder: Path, packaged: Packaged) -> None:
    for output in (folder, folder / "b.png" / "x.jsonl"):
        with pytest.raises(RunError, match="cannot be"):
            list(predict_files(packaged(Task.CLASSIFICATION), [folder / "b.png"], output=output))


def test_a_file_name_that_is_not_unicode_gets_its_line(
    tmp_path: Path, packaged: Packaged, make_image: MakeImage
) -> None:
    file = tmp_path / os.fsdecode(b"odd\xff.png")
    try:
        file.write_bytes(make_image())
    except OSError:
        pytest.skip("this file system only takes Unicode names")
    output = tmp_path / "predictions.jsonl"
    list(predict_files(packaged(Task.CLASSIFICATION), [file], output=output, draw=tmp_path / "drawn"))
    assert json.loads(output.read_text(encoding="utf-8"))["image_url"] == file.as_posix()


def test_explanations_are_written_next_to_the_drawings(
    folder: Path, packaged: Packaged, tmp_path: Path
) -> None:
    model, pictures = packaged(Task.CLASSIFICATION), tmp_path / "pictures"
    asked = {"xai_algorithm": "guided_backprop", "attributions": True}
    lines = tmp_path / "lines.jsonl"
    answers = list(predict_files(model, [folder / "a.JPG"], output=lines, draw=pictures, explain=asked))
    assert list(answers[0]) == ["image_url", "probs", "labels", "attributions"]
    assert [len(answers[0]["attributions"]), len(answers[0]["attributions"][0])] == [3, 32]
    assert json.loads(lines.read_text(encoding="utf-8")) == answers[0]
    assert sorted(file.name for file in pictures.iterdir()) == ["a-explained.png", "a.jpg"]
    with PILImage.open(pictures / "a-explained.png") as picture:
        assert picture.width > 3 * picture.height
    several = {"xai_algorithm": "guided_backprop", "confidence_score_threshold_multilabel": 0.0}
    model = packaged(Task.MULTILABEL)
    (answer,) = predict_files(model, [folder / "a.JPG"], explain=several)
    assert len(answer["visualizations"]) == 3
    list(predict_files(model, [folder / "b.png"], draw=pictures, explain=several))
    assert {f"b-explained-{number}.png" for number in (1, 2, 3)} <= {file.name for file in pictures.iterdir()}
    with pytest.raises(RequestError, match="n_steps must be a whole number"):
        list(predict_files(model, [folder / "a.JPG"], explain={"n_steps": 0}))
