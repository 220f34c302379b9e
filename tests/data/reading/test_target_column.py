"""The key of a line that holds the label, which a job names as target_column_name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.data.reading.jsonl import read
from trainer.data.training_data import load
from trainer.data.validate import validate
from trainer.errors import DataError, JobError
from trainer.evaluating.evaluation_data import for_classes
from trainer.job.job import Job
from trainer.tasks import Task
from trainer.training.job_data import load_data

WriteLines = Callable[..., Path]

BOX = {"topX": 0.1, "topY": 0.2, "bottomX": 0.5, "bottomY": 0.6}
LABELS: dict[Task, tuple[Any, Any]] = {
    Task.CLASSIFICATION: ("wrong", "right"),
    Task.MULTILABEL: (["wrong"], ["right"]),
    Task.DETECTION: ([{"label": "wrong", **BOX}], [{"label": "right", **BOX}]),
    Task.SEGMENTATION: (
        [{"label": "wrong", "polygon": [[0.1, 0.1, 0.5, 0.1, 0.3, 0.4]]}],
        [{"label": "right", "polygon": [[0.1, 0.1, 0.5, 0.1, 0.3, 0.4]]}],
    ),
}


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("task", Task)
def test_the_label_is_read_from_the_named_key(task: Task, both: bool, write_lines: WriteLines) -> None:
    wrong, right = LABELS[task]
    other = {"label": wrong} if both else {}
    lines = [{"image_url": f"{n}.jpg", "species": right, **other} for n in range(3)]
    result = read([write_lines(lines)], task, label_key="species")
    assert result.records.classes == ("right",)
    assert len(result.records) == 3
    said = [str(problem).split(": ", 2)[2] for problem in result.problems]
    rule = "label: is ignored, since target_column_name is species; the first of 3 such lines"
    assert said == ([rule] if both else [])


@pytest.mark.parametrize("task", Task)
def test_errors_name_the_key(task: Task, write_lines: WriteLines) -> None:
    lines = [{"image_url": "a.jpg", "species": True}, {"image_url": "b.jpg", "species": LABELS[task][1]}]
    (problem,) = read([write_lines(lines)], task, label_key="species").problems
    assert problem.field == "species"
    inside = [{"image_url": "a.jpg", "species": [{**BOX, "topX": 2}]}]
    fields = {p.field for p in read([write_lines(inside)], Task.DETECTION, label_key="species").problems}
    assert fields == {"species[0].label", "species[0].topX"}


def test_a_file_without_the_key_is_one_error_that_lists_its_keys(write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": f"{n}.jpg", "class": "a", "color": 1} for n in range(9)])
    result = read([path], Task.CLASSIFICATION, label_key="kind")
    assert not result.is_complete
    (problem,) = result.problems
    assert str(problem) == (
        f"{path}: must have the key 'kind', which target_column_name names, got lines with the keys "
        "image_url, class, color; name the key that holds the label"
    )
    with pytest.raises(DataError, match="must have the key 'kind'"):
        load(Task.CLASSIFICATION, [path], label_key="kind", skip_invalid=True)


def test_lines_without_the_key_are_one_error(write_lines: WriteLines) -> None:
    lines = [{"image_url": f"{n}.jpg", ("kind" if n == 0 else "label"): "a"} for n in range(4)]
    result = read([write_lines(lines)], Task.CLASSIFICATION, label_key="kind")
    missing, *_ = (problem for problem in result.problems if not problem.warning)
    assert str(missing).endswith(
        '2: kind: is missing, got the keys "image_url", "label"; the first of 3 such lines'
    )
    assert [entry.line for entry in result.skipped] == [2, 3, 4]


def test_a_line_without_label_names_the_keys_that_may_hold_it(write_lines: WriteLines) -> None:
    lines = [{"image_url": "a.jpg", "class": "x", "color": "red"}]
    problem = read([write_lines(lines)], Task.CLASSIFICATION).problems[0]
    expected = (
        "1: label: is missing; if the label is in 'class' or 'color', name it with --target-column-name"
    )
    assert str(problem).endswith(expected)


@pytest.mark.parametrize("key", ["종", "a b", "Label", "label2"])
def test_any_key_can_be_named(key: str, write_lines: WriteLines) -> None:
    result = read([write_lines([{"image_url": "a.jpg", key: "x"}])], Task.CLASSIFICATION, label_key=key)
    assert result.problems == []
    assert result.records.classes == ("x",)


@pytest.mark.parametrize("key", ["image_url", "image_details", "", 'quo"te', "back\\slash"])
def test_keys_of_something_else_are_refused(key: str, write_lines: WriteLines) -> None:
    with pytest.raises(JobError, match="target_column_name: must be the key of the lines"):
        read([write_lines([])], Task.CLASSIFICATION, label_key=key)


def test_warnings_about_all_data_name_the_key(write_lines: WriteLines) -> None:
    train = [{"image_url": f"{n}.png", "kind": kind} for n, kind in enumerate(("a", "A", "b"))]
    other = [{"image_url": "v.png", "kind": "c"}]
    paths = [write_lines(train, images=True)], [write_lines(other, "v.jsonl", images=True)]
    report = validate(Task.CLASSIFICATION, *paths, label_key="kind")
    assert [(problem.field, problem.got) for problem in report.problems] == [
        ("kind", "'c'"),
        ("kind", "'A', 'a'"),
    ]
    with pytest.raises(DataError, match="1: kind: must be a class that the model knows, got 'c'"):
        for_classes(read(paths[1], Task.CLASSIFICATION, label_key="kind"), ["a"], label_key="kind")


def test_every_reader_of_a_job_takes_its_key(write_lines: WriteLines) -> None:
    lines = [{"image_url": f"{n}.png", "label": "wrong", "kind": "ab"[n % 2]} for n in range(10)]
    path = write_lines(lines, images=True)
    other = write_lines(
        [{**line, "image_url": f"v{line['image_url']}"} for line in lines], "v.jsonl", images=True
    )
    job = Job(
        task="image-classification", training_data=path, validation_data=other, target_column_name="kind"
    )
    data = load_data(job, 0)
    assert data.classes == ("a", "b")
    assert data.validation.classes == ("a", "b")
    report = validate(Task.CLASSIFICATION, [path], [other], label_key="kind")
    assert report.summary.class_counts == {"a": 5, "b": 5}
    assert report.validation_summary is not None
    assert report.validation_summary.class_counts == {"a": 5, "b": 5}
