"""The report of runs: real ones, their numbers, several side by side, and what is missing told."""

from __future__ import annotations

import csv
import json
import logging
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import trainer
from tests.browser import OpenPage
from trainer import cli
from trainer.data.samples import SampleData, make
from trainer.errors import RunError
from trainer.evaluating.intervals import MeasuredMetric
from trainer.job.job import Job
from trainer.job.places import data_entry
from trainer.metrics.results import Analysis
from trainer.report.number_format import format_value
from trainer.runs import Run
from trainer.tasks import Task
from trainer.training.report_writing import _differences, _validation_settings, remake

MODEL = "timm/test_resnet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Run:
    """A classification run as `trainer fit` leaves it."""
    data = make(Task.CLASSIFICATION, folder / "digits", images=30, seed=1)
    return trainer.fit(
        Job(
            task=Task.CLASSIFICATION,
            training_data=(str(data.train),),
            validation_data=(str(data.validation),),
            model=MODEL,
            weights="none",
            gpus=0,
            tracking_uri="none",
            output=folder / "trained",
            settings={"number_of_epochs": 2, "training_crop_size": 32, "validation_crop_size": 32},
        )
    )


@pytest.fixture(scope="module")
def scenes(folder: Path) -> SampleData:
    return make(Task.SEGMENTATION, folder / "scenes", images=20, seed=2)


@pytest.fixture(scope="module")
def segmented(folder: Path, trained: Run, scenes: SampleData) -> Run:
    """A segmentation run whose predictions are the labels, except for planted errors.

    In the first image a class is wrong, in the second the first object is missed, and in the third an object
    is predicted where nothing is labelled.
    """
    run = Run(folder / "segmented")
    run.directory.mkdir()
    result = trained.read_result()
    made = {"task": Task.SEGMENTATION, "model": "maskrcnn_resnet18_fpn", "data_fingerprint": ""}
    run.write_result(result.model_copy(update={**made, "primary_metric": "mean_average_precision"}))
    content = yaml.safe_load(trained.job.read_text("utf-8"))
    content |= {
        "task": Task.SEGMENTATION.job_name,
        "primary_metric": "mean_average_precision",
        "training_data": data_entry((str(scenes.train),)),
        "validation_data": data_entry((str(scenes.validation),)),
        "training_parameters": {"model_name": "maskrcnn_resnet18_fpn"},
    }
    run.write_job(yaml.safe_dump(content))
    generator = random.Random(0)
    lines = [json.loads(line) for line in scenes.validation.read_text("utf-8").splitlines()]
    with run.predictions.open("w", encoding="utf-8") as file:
        for number, line in enumerate(lines):
            boxes = [answered(each, generator.uniform(0.7, 0.9)) for each in line["label"]]
            if number == 0:
                others = [each["label"] for each in lines[-1]["label"]]
                other = next(name for name in others if name != boxes[0]["label"])
                boxes[0] |= {"label": other, "score": 0.65}
            if number == 1:
                del boxes[0]
            if number == 2:
                corner = [0.0, 0.0, 0.05, 0.0, 0.05, 0.05, 0.0, 0.05]
                boxes.append(answered({"label": boxes[0]["label"], "polygon": [corner]}, 0.65))
            boxes.sort(key=lambda each: -each["score"])
            file.write(json.dumps({"image_url": line["image_url"], "boxes": boxes}) + "\n")
    remake([run.directory])
    return run


def test_sweep_is_evaluated_by_the_settings_of_its_best_trial(trained: Run, tmp_path: Path) -> None:
    made = {"task": Task.DETECTION, "model": "yolo11n", "primary_metric": "recall", "best_trial": 1}
    run = Run(tmp_path)
    run.write_result(trained.read_result().model_copy(update=made))
    columns = "trial,state,recall,latency_ms,pareto,seconds,directory,reason"
    rows = ["0,complete,0.1,,,,,,0.3,voc,0.1", "1,complete,0.2,,,,,,0.7,coco,0.2"]
    lines = [f"{columns},validation_iou_threshold,validation_metric_type,learning_rate", *rows]
    (tmp_path / "trials.csv").write_text("\n".join(lines), "utf-8")
    space = {
        "validation_iou_threshold": "choice(0.3, 0.7)",
        "validation_metric_type": "choice('voc', 'coco')",
    }
    job = Job(task=Task.DETECTION, training_data="a", search_space=space, primary_metric="recall")
    assert _validation_settings(run, job) == (0.7, "coco")


def answered(labelled: dict[str, Any], score: float) -> dict[str, Any]:
    points = [point for segment in labelled["polygon"] for point in segment]
    across, down = points[::2], points[1::2]
    box = {"topX": min(across), "topY": min(down), "bottomX": max(across), "bottomY": max(down)}
    return {"box": box, "label": labelled["label"], "score": score, "polygon": labelled["polygon"]}


def rows(run: Run, name: str) -> list[dict[str, str]]:
    with (run.report_parts / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def text_of(path: Path) -> str:
    return re.sub(r"<[^>]+>", " ", path.read_text("utf-8"))


def test_report_has_the_numbers_of_the_run(trained: Run) -> None:
    result, analysis = trained.read_result(), Analysis.read(trained.evaluation)
    page = text_of(trained.report)
    assert format_value(result.value) in page
    assert f"{result.best_epoch} of {result.epochs}" in page
    assert result.data_fingerprint in page
    assert result.peak_memory["process"] > 50e6
    # Metrics computed from the predictions are those of the training run.
    values = {row["metric"]: float(row["value"]) for row in rows(trained, "metrics") if row["value"]}
    for name, value in result.metrics.items():
        if name in analysis.metrics and value == value:
            assert values[name] == pytest.approx(value, abs=1e-4), name
    with trained.metrics.open(newline="") as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert [float(row["training"]) for row in rows(trained, "loss-by-epoch")] == losses
    with trained.class_metrics.open(encoding="utf-8") as file:
        of_classes = {(float(row["epoch"]), row["class"]): row["f1-score"] for row in csv.DictReader(file)}
    drawn = rows(trained, "classes-by-epoch")
    assert [float(row["epoch"]) for row in drawn] == [1, 2]
    assert len(drawn[0]) == 1 + 7  # of ten digits
    for row in drawn:
        for name in row.keys() - {"epoch"}:
            assert float(row[name]) == float(of_classes[float(row["epoch"]), name])
    matrix = [[int(value) for value in list(row.values())[1:]] for row in rows(trained, "confusion-matrix")]
    assert matrix == analysis.confusion_matrices[0].counts
    assert sum(map(sum, matrix)) == 6
    for name in (
        "curve-precision-recall",
        "curve-roc",
        "curve-lift",
        "curve-cumulative-gains",
        "curve-calibration",
    ):
        assert (trained.report_parts / f"{name}.svg").is_file()
    assert f"report: {trained.report}" in trained.log.read_text("utf-8")


def test_planted_errors_of_masks_are_found(segmented: Run) -> None:
    """Everything but the planted errors is correct."""
    analysis = Analysis.read(segmented.evaluation)
    counts = {row["kind"]: int(row["count"]) for row in rows(segmented, "errors")}
    assert counts["classification"] == 1
    assert counts["background"] == 1
    assert counts["missed"] == 1
    assert counts["false positives"] == 2
    assert len(analysis.label_issues) == 2
    issues = {row["location"].rpartition("/")[2]: row["kind"] for row in rows(segmented, "label-issues")}
    assert issues == {"validation.jsonl:1": "wrong class", "validation.jsonl:3": "missing"}
    markup = segmented.report.read_text("utf-8")
    assert "0 wrong, 1 missed" in markup
    assert 'class="outline o-correct"' in markup
    assert 'class="outline o-wrong"' in markup
    assert 'class="outline o-missed"' in markup


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark", "viewport": {"width": 360, "height": 740}}])
def test_report_in_a_browser(
    open_page: OpenPage, trained: Run, segmented: Run, options: dict[str, Any]
) -> None:
    """The fixture fails on console errors and on requests to other hosts."""
    for run in (trained, segmented):
        visit = open_page(run.report.as_uri(), **options)
        page = visit.page
        assert len(visit.requests) == 1
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]  # type: ignore[index]
        told = "each => each.getAttribute('aria-label') || each.querySelector('title')"
        assert page.evaluate(f"[...document.querySelectorAll('svg')].every({told})")
        table = page.locator("#table-all-metrics-by-class")
        table.get_by_role("button", name="recall", exact=True).click()
        place = table.locator("th").all_inner_texts().index("recall") + 1
        column = table.locator(f"tbody tr td:nth-child({place})").all_inner_texts()
        known = [float(value) for value in column if value != "–"]
        assert known == sorted(known, reverse=True)
        assert len(run.report.read_bytes()) < 3_000_000


def test_comparison_shows_settings_that_differ_and_best_metrics(
    open_page: OpenPage, trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Run(tmp_path / "other")
    shutil.copytree(trained.directory, other.directory, ignore=shutil.ignore_patterns("checkpoints", "model"))
    content = yaml.safe_load(other.job.read_text("utf-8"))
    content["training_parameters"]["learning_rate"] = 0.125
    other.job.write_text(yaml.safe_dump(content))
    result = other.read_result()
    other.write_result(result.model_copy(update={"metrics": {**result.metrics, "AUC_macro": 0.999}}))
    cli.app(
        ["report", str(trained.directory), str(other.directory), "--output", str(tmp_path / "both.html")],
        result_action="return_value",
    )
    assert "both.html" in capsys.readouterr().out
    page = open_page((tmp_path / "both.html").as_uri()).page
    assert page.locator("#table-settings tbody tr").all_inner_texts() == [
        f"learning_rate\t{settings(trained)}\t0.1250"
    ]
    assert "0.9990 ✓" in page.locator("#table-metrics").inner_text()
    told_apart = page.get_by_role("region", name="Can the runs be told apart?").inner_text()
    count = Analysis.read(trained.evaluation).images
    names = trained.directory.name, other.directory.name
    assert f"{names[0]} and {names[1]} cannot be told apart on these {count} images." in told_apart
    assert page.locator("#table-summary").get_by_role("row", name="95% interval").count() == 1
    links = page.get_by_role("link", name="report", exact=True).all()
    assert len(links) == 2
    links[1].click()
    assert page.url == other.report.as_uri()


def settings(run: Run) -> str:
    return format_value(yaml.safe_load(run.job.read_text("utf-8"))["training_parameters"]["learning_rate"])


def test_comparison_says_which_runs_it_cannot_compare() -> None:
    def measured(metric: str, *images: str) -> MeasuredMetric:
        return MeasuredMetric(metric, images, lambda weights: np.zeros(len(weights)))

    one, other = measured("accuracy", "a", "b"), measured("accuracy", "c")
    differences, notes = _differences([("one", one), ("two", one), ("other", other), ("none", None)])
    assert [(each.first, each.second, each.images) for each in differences] == [("one", "two", 2)]
    assert [note.split(";")[0] for note in notes] == [
        "none has no predictions that could be compared.",
        "one and other were validated on no image in common",
        "two and other were validated on no image in common",
    ]
    _, notes = _differences([("one", one), ("two", measured("iou", "a"))])
    assert notes == ["The runs have different primary metrics: accuracy, iou."]


def test_comparison_rejects_runs_of_different_tasks(trained: Run, segmented: Run, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match="only runs of the same task can be compared; these are of image-classification and"
    ):
        remake([trained.directory, segmented.directory], tmp_path / "x.html")


def test_report_without_data_has_the_other_sections(trained: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "moved")
    shutil.copytree(trained.directory, run.directory, ignore=shutil.ignore_patterns("checkpoints", "model"))
    content = yaml.safe_load(run.job.read_text("utf-8"))
    run.job.write_text(
        yaml.safe_dump({**content, "training_data": data_entry((str(tmp_path / "gone.jsonl"),))})
    )
    assert remake([run.directory]) == run.report
    page = text_of(run.report)
    assert "The data could not be read, so parts are missing" in page
    assert "Training history" in page
    assert "Confusions" not in page


def test_report_notes_that_data_have_changed(trained: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "changed")
    shutil.copytree(trained.directory, run.directory, ignore=shutil.ignore_patterns("checkpoints", "model"))
    run.write_result(run.read_result().model_copy(update={"data_fingerprint": "0" * 32}))
    remake([run.directory], tmp_path / "own.html")
    assert "The data have changed since the run" in text_of(tmp_path / "own.html")


def test_run_survives_a_report_that_cannot_be_written(
    trained: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from trainer.training.job_data import load_data
    from trainer.training.report_writing import report

    job = Job.read(trained.job)
    run = Run(tmp_path / "run")
    shutil.copytree(
        trained.directory, run.directory, ignore=shutil.ignore_patterns("checkpoints", "model", "report*")
    )
    run.report.mkdir()  # in its place
    with caplog.at_level(logging.WARNING, "trainer"):
        report(run, job, load_data(job, None))
    assert "the report could not be written" in caplog.text
