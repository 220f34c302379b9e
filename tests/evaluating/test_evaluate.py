"""Evaluating models and answers on data."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluating.conftest import CLASSES, SIZES, write_lines
from trainer import metrics
from trainer.errors import DataError, JobError, RunError
from trainer.evaluating.evaluate import Options, evaluate_answers, evaluate_model
from trainer.evaluating.evaluation_data import load
from trainer.evaluating.packaged_model import PackagedModel
from trainer.job.job import Job
from trainer.metrics.results import Analysis
from trainer.tasks import Task

Packaged = Callable[..., Path]
TargetFiles = Callable[[Task], Path]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("task", list(Task))
def test_a_model_and_its_written_answers_have_the_same_metrics(
    task: Task, packaged: Packaged, targets: TargetFiles, tmp_path: Path
) -> None:
    data = targets(task)
    found = evaluate_model(
        packaged(task), [data], Options(output=tmp_path, slice_by=["camera"]), device="cpu"
    )
    analysis = found.analysis
    assert analysis.images == len(SIZES)
    primary = analysis.metrics[task.primary_metric]
    assert 0.05 < primary < 0.95  # the data say something

    # what is written is what was found
    assert Analysis.read(tmp_path / "metrics.json").to_json() == analysis.to_json()
    with (tmp_path / "figures.csv").open(encoding="utf-8") as file:
        written = {row["figure"]: row["value"] for row in csv.DictReader(file)}
    assert float(written[task.primary_metric]) == primary
    expected = {"per_class.csv", "mistakes.csv", "slices.csv", "curves.csv", "confusion.csv"}
    assert expected <= {path.name for path in tmp_path.iterdir()}

    # the evaluator of the training says the same
    model = PackagedModel(packaged(task), "cpu")
    checked = load(task, [data])
    parameters = model.spec.parameters.model_copy(update={"box_score_threshold": 0.001})
    evaluator = metrics.create(task, CLASSES, metric_type="coco_voc")
    for index, (prediction, _) in enumerate(model.predict(checked.records, parameters)):
        evaluator.update(prediction, checked.records.target(index, CLASSES))
    assert analysis.metrics == pytest.approx(evaluator.compute(), abs=1e-9, nan_ok=True)
    for name, of_class in evaluator.per_class().items():
        shared = {key: analysis.per_class[name][key] for key in of_class}
        assert shared == pytest.approx(of_class, abs=1e-9, nan_ok=True)

    # and so do the answers, but for the rounding of polygons
    again = evaluate_answers(task, tmp_path / "predictions.jsonl", [data]).analysis
    if task is Task.SEGMENTATION:  # the noise that an untrained network takes for masks is full of holes
        for name in ("mean_average_precision", "precision", "recall", "map"):
            assert again.metrics[name] == pytest.approx(analysis.metrics[name], abs=0.05)
    else:
        assert again.metrics == pytest.approx(analysis.metrics, abs=1e-6, nan_ok=True)
        assert again.errors == analysis.errors
        assert [each.location for each in again.mistakes] == [each.location for each in analysis.mistakes]


def test_objects_below_the_score_threshold_are_ignored(packaged: Packaged, targets: TargetFiles) -> None:
    data = targets(Task.DETECTION)
    scores = [m.score for m in evaluate_model(packaged(Task.DETECTION), [data]).analysis.mistakes]
    middle = sorted(scores)[len(scores) // 2]
    analysis = evaluate_model(packaged(Task.DETECTION), [data], box_score_threshold=middle).analysis
    assert analysis.score_threshold == middle
    assert min(m.score for m in analysis.mistakes) >= middle - 1e-6
    # the model answers from 0.0 on; that is told whatever was looked at
    assert {each.score for each in analysis.served.values()} == {0.0}


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.DETECTION])
def test_slices_by_key_and_size(task: Task, packaged: Packaged, targets: TargetFiles, tmp_path: Path) -> None:
    data = targets(task)
    found = evaluate_model(packaged(task), [data], Options(slice_by=["camera", "meta.lux"]))
    assert not any("is not a key of the data schema" in note for note in found.notes)
    whole = found.analysis
    parts = {(part.by, part.value): part for part in whole.slices}
    assert {(by, value): part.images for (by, value), part in parts.items() if by != "object size"} == {
        ("camera", "right"): 3,
        ("camera", "왼쪽"): 3,
        **{("meta.lux", str(number * 1.5)): 1 for number in range(6)},
        ("image size", "up to 512 px"): 5,
        ("image size", "513 to 1024 px"): 1,
    }
    lines = [line for line in lines_of(data) if line["camera"] == "right"]
    for line in lines:
        line["image_url"] = str(data.parent / line["image_url"])
    alone = evaluate_model(
        packaged(task), [write_lines(tmp_path / "right.jsonl", lines)], Options(unknown_classes="error")
    ).analysis
    assert parts["camera", "right"].metrics == pytest.approx(alone.metrics, nan_ok=True)
    if task is Task.DETECTION:
        sizes = [part for part in whole.slices if part.by == "object size"]
        assert [part.value.split()[0] for part in sizes] == ["small", "medium", "large"]
        assert sum(part.objects or 0 for part in sizes) == whole.objects
        assert parts["camera", "right"].objects == alone.objects


def test_numbers_with_many_values_are_sliced_into_quarters(
    packaged: Packaged, targets: TargetFiles, tmp_path: Path
) -> None:
    source = targets(Task.CLASSIFICATION)
    (line, *_) = lines_of(source)
    for number in range(20):
        file = tmp_path / f"{number}.png"
        file.write_bytes((source.parent / line["image_url"]).read_bytes())
    lines = [line | {"image_url": f"{number}.png", "lux": number} for number in range(20)]
    del lines[0]["lux"]
    data = write_lines(tmp_path / "data.jsonl", lines)
    analysis = evaluate_model(packaged(Task.CLASSIFICATION), [data], Options(slice_by=["lux"])).analysis
    parts = {part.value: part.images for part in analysis.slices if part.by == "lux"}
    assert parts == {"1 to 5.5": 5, "5.5 to 10": 5, "10 to 14.5": 4, "14.5 to 19": 5, "(none)": 1}


def test_slicing_by_a_missing_key_is_an_error(packaged: Packaged, targets: TargetFiles) -> None:
    with pytest.raises(DataError, match="lamp: must be a key of the lines; no line has it"):
        evaluate_model(packaged(Task.DETECTION), [targets(Task.DETECTION)], Options(slice_by=["lamp"]))
    with pytest.raises(DataError, match=r"test.jsonl:1: meta: must be a string, a number or a boolean"):
        evaluate_model(packaged(Task.DETECTION), [targets(Task.DETECTION)], Options(slice_by=["meta"]))


@pytest.fixture
def with_unknown(targets: TargetFiles, tmp_path: Path) -> Callable[[Task], Path]:
    """The data with a class that the model does not know on the second and fourth line."""

    def make(task: Task) -> Path:
        lines = lines_of(targets(task))
        for number, line in enumerate(lines):
            line["image_url"] = str(targets(task).parent / line["image_url"])
            if number in (1, 3):
                if task is Task.CLASSIFICATION:
                    line["label"] = "bottle"
                elif task is Task.MULTILABEL:
                    line["label"] = [*line["label"], "bottle"]
                else:
                    line["label"][0]["label"] = "bottle"
        return write_lines(tmp_path / "unknown.jsonl", lines)

    return make


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTILABEL, Task.DETECTION])
def test_unknown_classes_are_errors_missed_or_ignored(
    task: Task, packaged: Packaged, with_unknown: Callable[[Task], Path]
) -> None:
    data = with_unknown(task)
    message = (
        r"unknown.jsonl:2: label: must be a class that the model knows, got 'bottle'; the first of 2 such"
    )
    with pytest.raises(DataError, match=message):
        evaluate_model(packaged(task), [data])
    missed = evaluate_model(packaged(task), [data], Options(unknown_classes="missed"))
    assert any("does not know bottle: counted as missed" in note for note in missed.notes)
    # keys of the user's own that nothing is asked about are warned of
    assert any("camera: is not a key of the data schema" in note for note in missed.notes)
    assert missed.analysis.classes == sorted([*CLASSES, "bottle"])
    assert missed.analysis.per_class["bottle"]["recall"] == 0
    ignored = evaluate_model(packaged(task), [data], Options(unknown_classes="ignored"))
    assert ignored.analysis.classes == list(CLASSES)
    assert ignored.analysis.images == (4 if task is Task.CLASSIFICATION else 6)
    if task.has_boxes:
        assert ignored.analysis.objects == (missed.analysis.objects or 0) - 2


def test_classes_absent_from_the_data_are_noted(
    packaged: Packaged, targets: TargetFiles, tmp_path: Path
) -> None:
    lines = lines_of(targets(Task.DETECTION))[:1]
    lines[0]["image_url"] = str(targets(Task.DETECTION).parent / lines[0]["image_url"])
    lines[0]["label"] = lines[0]["label"][:1]
    found = evaluate_model(packaged(Task.DETECTION), [write_lines(tmp_path / "one.jsonl", lines)])
    assert "metrics of these classes are undefined" in found.notes[0]
    absent = [name for name in CLASSES if name != lines[0]["label"][0]["label"]]
    assert all(found.analysis.per_class[name]["average_precision"] == -1 for name in absent)


def test_unreadable_images_are_named(packaged: Packaged, targets: TargetFiles, tmp_path: Path) -> None:
    lines = lines_of(targets(Task.CLASSIFICATION))
    for line in lines:
        line["image_url"] = str(targets(Task.CLASSIFICATION).parent / line["image_url"])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    lines[2]["image_url"] = str(broken)
    with pytest.raises(DataError, match=r"data.jsonl:3: image_url: must name a readable image"):
        evaluate_model(packaged(Task.CLASSIFICATION), [write_lines(tmp_path / "data.jsonl", lines)])


def test_options_out_of_range_are_errors(tmp_path: Path) -> None:
    wrong = Options(iou_threshold=0.05, unknown_classes="perhaps")
    with pytest.raises(JobError) as caught:
        evaluate_model(tmp_path, ["none.jsonl"], wrong, box_score_threshold=2)
    flags = [problem.where for problem in caught.value.problems]
    assert flags == ["--iou-threshold", "--box-score-threshold", "--unknown-classes"]
    with pytest.raises(RunError, match="--device cuda:99: cannot be used"):
        evaluate_model(tmp_path, ["none.jsonl"], device="cuda:99")


def test_options_of_boxes_are_no_options_of_classes(packaged: Packaged, tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        evaluate_model(
            packaged(Task.CLASSIFICATION), ["none.jsonl"], Options(iou_threshold=0.5), box_score_threshold=0.3
        )
    assert [str(problem) for problem in caught.value.problems] == [
        "--iou-threshold: applies only to boxes, not to image-classification, got 0.5; remove it",
        "--box-score-threshold: applies only to boxes, not to image-classification, got 0.3; remove it",
    ]
    with pytest.raises(JobError, match="--iou-threshold: applies only to boxes"):
        evaluate_answers(Task.MULTILABEL, tmp_path, ["none.jsonl"], Options(iou_threshold=0.5))


def test_a_model_is_evaluated_on_the_target_column_of_its_run(
    packaged: Packaged, targets: TargetFiles, tmp_path: Path
) -> None:
    task = Task.CLASSIFICATION
    lines = [
        {"image_url": str(targets(task).parent / line["image_url"]), "kind": line["label"], "label": "wrong"}
        for line in lines_of(targets(task))
    ]
    data = write_lines(tmp_path / "data.jsonl", lines)
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(packaged(task))
    (run / "job.yaml").write_text(Job(task=task, training_data=data, target_column_name="kind").to_yaml())
    expected = evaluate_model(packaged(task), [targets(task)]).metrics
    assert evaluate_model(run, [data]).metrics == expected
    assert evaluate_model(run / "model", [data]).metrics == expected
    assert evaluate_model(packaged(task), [data], Options(target_column_name="kind")).metrics == expected
    with pytest.raises(DataError, match="'wrong'"):
        evaluate_model(run, [data], Options(target_column_name="label"))
    with pytest.raises(DataError, match="must have the key 'kinds'"):
        evaluate_model(run, [data], Options(target_column_name="kinds"))


def test_a_model_is_evaluated_although_its_runs_job_is_of_another_version(
    packaged: Packaged, targets: TargetFiles, tmp_path: Path
) -> None:
    task = Task.CLASSIFICATION
    (tmp_path / "model").symlink_to(packaged(task))
    (tmp_path / "job.yaml").write_text("task: image_classification\ninvented_later: 1\n")
    evaluation = evaluate_model(tmp_path, [targets(task)])
    assert evaluation.metrics == evaluate_model(packaged(task), [targets(task)]).metrics
    (note,) = [note for note in evaluation.notes if "job.yaml" in note]
    assert note.startswith("warning: ")
    assert note.endswith("so the job's target_column_name and primary metric are not used")
