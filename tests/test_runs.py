"""Run directories: never shared, and a result that is read as it was written."""

from __future__ import annotations

import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Timer

import pytest
from pydantic import ValidationError

from trainer.errors import RunError
from trainer.runs import Durations, Result, Run
from trainer.tasks import Task

RESULT = Result(
    task=Task.DETECTION,
    model="yolo11n",
    primary_metric="mean_average_precision",
    value=0.75,
    best_epoch=3,
    epochs=10,
    durations=Durations(prepare=1.5, train=20, evaluate=3, package=2, total=26.5),
    model_path="model",
    metrics={"mean_average_precision": 0.75, "precision": 0.5, "AUC_macro": math.nan},
    seed=7,
    versions={"torch": "2.11.0"},
)


def test_a_run_is_called_by_time_and_name(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "new" / "runs", "object-detection-yolo11n")
    assert run.directory.parent == tmp_path / "new" / "runs"
    assert re.fullmatch(r"\d{8}-\d{6}-object-detection-yolo11n", run.directory.name)
    assert re.fullmatch(r"\d{8}-\d{6}(-\d+)?", Run.create(tmp_path).directory.name)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("timm/resnet18.a1_in1k", "timm-resnet18.a1_in1k"),
        ("../../etc/passwd", "etc-passwd"),
        ("냉장고 모델", "냉장고-모델"),
        ("///", "run"),
        ("x" * 400, "x" * 100),
    ],
)
def test_a_name_is_made_fit_for_a_path(tmp_path: Path, name: str, ending: str) -> None:
    run = Run.create(tmp_path, name)
    assert run.directory.parent == tmp_path
    assert re.fullmatch(r"\d{8}-\d{6}-" + re.escape(ending), run.directory.name)


def test_runs_begun_at_once_get_directories_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda _: Run.create(tmp_path, "same"), range(64)))
    assert len({run.directory for run in runs}) == 64
    assert len(list(tmp_path.iterdir())) == 64
    assert any(run.directory.name.endswith("same-2") for run in runs)


def test_a_named_directory_goes_to_one_run_alone(tmp_path: Path) -> None:
    def attempt(_: int) -> bool:
        try:
            Run.create_at(tmp_path / "here")
        except RunError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(attempt, range(32))) == 1


def test_a_directory_claimed_since_it_was_seen_empty_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(()))
    with pytest.raises(RunError, match="must be new or empty, it holds checkpoints"):
        Run.create_at(tmp_path)


def test_a_named_directory_may_exist_if_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert Run.create_at(tmp_path / "empty").directory == tmp_path / "empty"
    assert Run.create_at(tmp_path / "a" / "b").directory.is_dir()


def test_a_named_directory_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"must be new or empty, it holds notes\.txt; name another"):
        Run.create_at(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_the_place_of_a_directory_is_named(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    for make in (Run.create, Run.create_at):
        for path in (taken, taken / "below"):
            with pytest.raises(RunError, match="must be a directory, a file is in its place"):
                make(path)
    with pytest.raises(RunError, match="is a file"):
        Run.open(taken)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_directory_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:  # root may write anywhere but in /proc
        where = Path("/proc/runs")
    else:
        where = tmp_path / "locked" / "runs"
        where.parent.mkdir(mode=0o500)
    for make in (Run.create, Run.create_at):
        with pytest.raises(RunError, match="cannot be made"):
            make(where)


def test_what_lies_where(tmp_path: Path) -> None:
    run = Run.create_at(tmp_path / "run")
    names = "job metrics best_checkpoint last_checkpoint model predictions result log skipped"
    places = {name: getattr(run, name).relative_to(run.directory).as_posix() for name in names.split()}
    assert places == {
        "job": "job.yaml",
        "metrics": "metrics.csv",
        "best_checkpoint": "checkpoints/best.ckpt",
        "last_checkpoint": "checkpoints/last.ckpt",
        "model": "model",
        "predictions": "predictions.jsonl",
        "result": "result.json",
        "log": "trainer.log",
        "skipped": "skipped.jsonl",
    }
    assert run.checkpoints.is_dir()


def test_opening_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist; give the directory of a run"):
        Run.open(tmp_path / "none")
    run = Run.create_at(tmp_path / "run")
    with pytest.raises(RunError, match=r"lacks job\.yaml; is it a run's directory"):
        Run.open(run.directory)
    run.job.write_text("task: image_classification\n")
    assert Run.open(run.directory) == run
    with pytest.raises(RunError, match=r"lacks model, checkpoints/best\.ckpt"):
        Run.open(run.directory, needs=("job.yaml", "model", "checkpoints/best.ckpt"))


def test_opening_a_packaged_model_points_at_its_run(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("")
    with pytest.raises(RunError, match="packaged model, the run is likely the directory above"):
        Run.open(tmp_path)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = Run.create_at(tmp_path / "run")
    run.write_result(RESULT)
    read = run.read_result()
    assert read.model_dump(exclude={"metrics"}) == RESULT.model_dump(exclude={"metrics"})
    assert read.metrics == pytest.approx(RESULT.metrics, nan_ok=True)
    run.write_result(RESULT.model_copy(update={"value": 0.8}))  # replaces the first
    assert run.read_result().value == 0.8
    assert {path.name for path in run.directory.iterdir()} == {"checkpoints", "result.json"}


def test_a_result_is_plain_json_that_others_can_read(tmp_path: Path) -> None:
    run = Run.create_at(tmp_path / "run")
    run.write_result(RESULT.model_copy(update={"model": "모델"}))
    text = run.result.read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    document = json.loads(text, parse_constant=refuse)
    assert document["task"] == "object-detection"
    assert document["metrics"]["AUC_macro"] is None
    assert "모델" in text


@pytest.mark.parametrize("path", ["/tmp/model", "../model", "model/../../x"])
def test_the_model_lies_in_its_run(path: str) -> None:
    with pytest.raises(ValidationError, match="relative to the run's directory"):
        Result.model_validate(RESULT.model_dump() | {"model_path": path})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is not the result of a run: file: Invalid JSON"),
        (b"{}", "task: Field required; model: Field required"),
        (b"\xff", "cannot be read"),
    ],
)
def test_a_damaged_result_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    run = Run.create_at(tmp_path / "run")
    run.result.write_bytes(text)
    with pytest.raises(RunError, match=message):
        run.read_result()


def test_a_run_without_a_result_has_not_finished(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"result\.json: does not exist; the run has not finished"):
        Run.create_at(tmp_path / "run").read_result()


def test_a_run_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    run = Run.create_at(tmp_path / "run")
    held, leave = Event(), Event()

    def hold() -> None:
        with run.lock():
            held.set()
            leave.wait(60)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(hold)
        held.wait(60)
        with pytest.raises(RunError, match="is being trained by another process at present"), run.lock():
            pass
        Timer(0.2, leave.set).start()
        with run.lock(patience=60):
            assert leave.is_set()
