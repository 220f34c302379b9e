"""Run directories are never shared, and a result is read as it was written."""

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


def test_create_names_directory_by_time_and_name(tmp_path: Path) -> None:
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
def test_create_makes_names_safe_for_paths(tmp_path: Path, name: str, ending: str) -> None:
    run = Run.create(tmp_path, name)
    assert run.directory.parent == tmp_path
    assert re.fullmatch(r"\d{8}-\d{6}-" + re.escape(ending), run.directory.name)


def test_concurrent_runs_get_different_directories(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda _: Run.create(tmp_path, "same"), range(64)))
    assert len({run.directory for run in runs}) == 64
    assert len(list(tmp_path.iterdir())) == 64
    assert any(run.directory.name.endswith("same-2") for run in runs)


def test_create_at_gives_a_directory_to_one_run_only(tmp_path: Path) -> None:
    def attempt(_: int) -> bool:
        try:
            Run.create_at(tmp_path / "here")
        except RunError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(attempt, range(32))) == 1


def test_create_at_rejects_directory_claimed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(()))
    with pytest.raises(RunError, match="must be new or empty, but it contains checkpoints"):
        Run.create_at(tmp_path)


def test_create_at_accepts_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert Run.create_at(tmp_path / "empty").directory == tmp_path / "empty"
    assert Run.create_at(tmp_path / "a" / "b").directory.is_dir()


def test_create_at_rejects_filled_directory(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"must be new or empty, but it contains notes\.txt; name another"):
        Run.create_at(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_file_in_place_of_directory_is_an_error(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    for make in (Run.create, Run.create_at):
        for path in (taken, taken / "below"):
            with pytest.raises(RunError, match="must be a directory, but is a file"):
                make(path)
    with pytest.raises(RunError, match="is a file"):
        Run.open(taken)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_unwritable_directory_is_an_error(tmp_path: Path) -> None:
    if os.geteuid() == 0:  # root may write anywhere but in /proc
        where = Path("/proc/runs")
    else:
        where = tmp_path / "locked" / "runs"
        where.parent.mkdir(mode=0o500)
    for make in (Run.create, Run.create_at):
        with pytest.raises(RunError, match="cannot be created"):
            make(where)


def test_paths_in_a_run(tmp_path: Path) -> None:
    run = Run.create_at(tmp_path / "run")
    names = "job metrics class_metrics best_checkpoint last_checkpoint model predictions result log skipped"
    places = {name: getattr(run, name).relative_to(run.directory).as_posix() for name in names.split()}
    assert places == {
        "job": "job.yaml",
        "metrics": "metrics.csv",
        "class_metrics": "metrics_by_class.csv",
        "best_checkpoint": "checkpoints/best.ckpt",
        "last_checkpoint": "checkpoints/last.ckpt",
        "model": "model",
        "predictions": "predictions.jsonl",
        "result": "result.json",
        "log": "trainer.log",
        "skipped": "skipped.jsonl",
    }
    assert run.checkpoints.is_dir()


def test_open_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist; give the directory of a run"):
        Run.open(tmp_path / "none")
    run = Run.create_at(tmp_path / "run")
    with pytest.raises(RunError, match=r"lacks job\.yaml; is it the directory of a run"):
        Run.open(run.directory)
    run.job.write_text("task: image_classification\n")
    assert Run.open(run.directory) == run
    with pytest.raises(RunError, match=r"lacks model, checkpoints/best\.ckpt"):
        Run.open(run.directory, needs=("job.yaml", "model", "checkpoints/best.ckpt"))


def test_open_of_a_packaged_model_points_at_its_run(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("")
    with pytest.raises(RunError, match="packaged model; the run is probably the directory above"):
        Run.open(tmp_path)


def test_result_is_read_as_written(tmp_path: Path) -> None:
    run = Run.create_at(tmp_path / "run")
    run.write_result(RESULT)
    read = run.read_result()
    assert read.model_dump(exclude={"metrics"}) == RESULT.model_dump(exclude={"metrics"})
    assert read.metrics == pytest.approx(RESULT.metrics, nan_ok=True)
    run.write_result(RESULT.model_copy(update={"value": 0.8}))  # replaces the first
    assert run.read_result().value == 0.8
    assert {path.name for path in run.directory.iterdir()} == {"checkpoints", "result.json"}


def test_result_is_standard_json(tmp_path: Path) -> None:
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
def test_model_path_must_be_inside_the_run(path: str) -> None:
    with pytest.raises(ValidationError, match="relative to the run's directory"):
        Result.model_validate(RESULT.model_dump() | {"model_path": path})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is not the result of a run: invalid JSON"),
        (b"{}", "task: field required; model: field required"),
        (b"\xff", "cannot be read"),
    ],
)
def test_damaged_result_is_an_error(tmp_path: Path, text: bytes, message: str) -> None:
    run = Run.create_at(tmp_path / "run")
    run.result.write_bytes(text)
    with pytest.raises(RunError, match=message):
        run.read_result()


def test_missing_result_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"result\.json: does not exist; the run failed, or has not finished"):
        Run.create_at(tmp_path / "run").read_result()


def test_lock_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    run = Run.create_at(tmp_path / "run")
    held, leave = Event(), Event()

    def hold() -> None:
        with run.lock():
            held.set()
            leave.wait(60)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(hold)
        held.wait(60)
        with pytest.raises(RunError, match="is being trained by another process"), run.lock():
            pass
        Timer(0.2, leave.set).start()
        with run.lock(patience=60):
            assert leave.is_set()
