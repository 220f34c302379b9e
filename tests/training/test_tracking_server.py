"""Tracking on an MLflow server: files and models that it serves, and outages that training survives."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

import trainer
from tests.mlflow_server import Gate, mlflow_server
from tests.training.conftest import resume
from tests.training.tracked import At, mlflow_run, steps, train
from trainer.data.samples import SampleData
from trainer.errors import TrackingError
from trainer.job.job import Job
from trainer.runs import Run
from trainer.tasks import Task
from trainer.training import tracking

MODEL = "timm/test_resnet"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real `mlflow server`."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as port:
        yield port


@pytest.fixture
def gate(server: int) -> Iterator[Gate]:
    gate = Gate(server)
    yield gate
    gate.close()


def test_server_serves_files_and_registered_model(
    tracked_job: Callable[..., Job],
    gate: Gate,
    digits: dict[Task, SampleData],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = train(
        tracked_job("one", tracking_uri=gate.uri, register_model="digits", experiment_name="사과"),
        packages=True,
    )
    client, tracked = mlflow_run(run.directory)
    assert tracked.info.status == "FINISHED"
    assert client.get_experiment(tracked.info.experiment_id).name == "사과"
    assert set(steps(client, tracked, "accuracy")) == {1, 2}
    assert tracked.data.tags["registered_model"] == "digits/1"
    page = f"{gate.uri}/#/experiments/{tracked.info.experiment_id}/runs/{tracked.info.run_id}"
    assert f"tracking: {page}" in run.log.read_text("utf-8")
    assert "View run" not in capfd.readouterr().out
    listed = {file.path for file in client.list_artifacts(tracked.info.run_id)}
    own_files = {"metrics.csv", "metrics_by_class.csv", "metrics.json", "result.json"}
    assert listed == {"job.yaml", "report.html", "report", "outputs", *own_files}
    parts = {file.path for file in client.list_artifacts(tracked.info.run_id, "report")}
    expected = ("loss-by-epoch.svg", "confusion-matrix.svg", "all-metrics-by-class.csv")
    assert {f"report/{name}" for name in expected} <= parts
    content = Path(client.download_artifacts(tracked.info.run_id, "report.html")).read_bytes()
    assert content == run.report.read_bytes()

    predicted = json.loads(run.predictions.read_text("utf-8").splitlines()[0])
    image = digits[Task.CLASSIFICATION].validation.parent / predicted["image_url"]
    code = """
import sys, base64, json, mlflow, pandas
text = base64.b64encode(open(sys.argv[1], "rb").read()).decode()
answer = mlflow.pyfunc.load_model("models:/digits/1").predict(pandas.DataFrame({"image": [text]}))
print(json.dumps(answer.to_dict("records")[0]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(image)],
        env={**os.environ, "MLFLOW_TRACKING_URI": gate.uri, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"},
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["labels"] == predicted["labels"]
    assert answer["probs"] == pytest.approx(predicted["probs"], abs=1e-5)

    # More epochs make a second version, and leave the first as it is.
    before = stored_files(client, tracked.info.run_id)
    trainer.resume(run.directory, {"number_of_epochs": 3, "early_stopping": False})
    versions = {int(each.version): each for each in client.search_model_versions("name='digits'")}
    assert {number: each.source.split("/", 2)[2] for number, each in versions.items()} == {
        number: f"{each.run_id}/artifacts/outputs/mlflow-model" for number, each in versions.items()
    }
    assert versions[1].run_id == tracked.info.run_id
    assert stored_files(client, tracked.info.run_id) == before
    best = client.get_run(versions[2].run_id)
    assert best.data.tags["mlflow.parentRunId"] == tracked.info.run_id
    assert best.data.metrics["best_accuracy"] == Run.open(run.directory).read_result().value
    tags = client.get_run(tracked.info.run_id).data.tags
    assert tags["automl_best_child_run_id"] == best.info.run_id
    assert tags["registered_model"] == "digits/2"


def stored_files(client: MlflowClient, run_id: str) -> dict[str, bytes]:
    """The files of the published model by their paths in it."""
    folder = Path(client.download_artifacts(run_id, "outputs/mlflow-model"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("way", ["close", "fall_silent"])
def test_outage_is_logged_once_and_resume_sends_the_rest(
    tracked_job: Callable[..., Job], gate: Gate, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")  # the user's own setting applies
    epochs: list[float] = []
    started = time.monotonic()
    run = train(
        tracked_job("one", tracking_uri=gate.uri, number_of_epochs=6, early_stopping=False),
        At(2, getattr(gate, way)),
        *(At(epoch, lambda: epochs.append(time.monotonic())) for epoch in range(1, 7)),
    )
    assert run.read_result().epochs == 6
    assert epochs[-1] - epochs[1] < 12, "each epoch waited for the server, which is at least 3 s"
    assert time.monotonic() - started < 60
    said = run.log.read_text("utf-8")
    assert 1 <= said.count("WARNING tracking: ") <= 2, "as it is noticed, and at the end"
    assert said.count("did not accept the last metrics of the run") == 1
    assert "Retrying" not in said
    gate.close()
    gate.silent = False
    gate.open()
    client, tracked = mlflow_run(run.directory)
    assert tracked.info.status == "RUNNING"
    assert 6 not in steps(client, tracked, "train_loss")
    resume(run.directory, {"number_of_epochs": 7})
    client, tracked = mlflow_run(run.directory)
    assert tracked.info.status == "FINISHED"
    assert set(steps(client, tracked, "train_loss")) == {1, 2, 3, 4, 5, 6, 7}


def test_server_that_returns_before_the_end_has_all_metrics(
    tracked_job: Callable[..., Job], gate: Gate
) -> None:
    run = train(
        tracked_job("one", tracking_uri=gate.uri, number_of_epochs=4, early_stopping=False),
        At(2, gate.close),
        At(4, gate.open),
    )
    client, tracked = mlflow_run(run.directory)
    assert tracked.info.status == "FINISHED"
    assert set(steps(client, tracked, "accuracy")) == {1, 2, 3, 4}
    assert "did not accept" not in run.log.read_text("utf-8")


def test_silent_server_is_an_error_within_seconds(
    tracked_job: Callable[..., Job], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    gate.fall_silent()
    started = time.monotonic()
    with pytest.raises(TrackingError, match=r"timed out.*--tracking-uri none"):
        train(tracked_job("one", tracking_uri=gate.uri, training_data="missing.jsonl"))
    assert time.monotonic() - started < 10


def test_passwords_are_not_written_to_files(tracked_job: Callable[..., Job], gate: Gate) -> None:
    uri = gate.uri.replace("http://", "http://me:secret@")
    run = train(tracked_job("one", tracking_uri=uri, number_of_epochs=1))
    _, tracked = mlflow_run(run.directory, gate.uri)
    assert tracked.info.status == "FINISHED"
    for path in run.directory.glob("*.*"):
        assert "secret" not in path.read_text("utf-8"), path
    assert Job.read(run.job).tracking_uri == gate.uri


@pytest.mark.parametrize("place", ["file", "server"])
def test_undefined_and_oddly_named_metrics_are_tracked(
    tracked_job: Callable[..., Job], tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    uri = request.getfixturevalue("gate").uri if place == "server" else None
    store = tracking.find(uri, tmp_path / "one")
    (tmp_path / "one").mkdir()
    with tracking.start(store, tmp_path / "one", tracked_job("one"), {"long": "x" * 9000}, {}) as tracker:
        tracker.log(1, {"loss": math.nan, "map": -1.0, "precision (사과, 50 %)": 0.5})
        tracker.log(1, {f"figure_{number}": number for number in range(1500)})
    _, tracked = mlflow_run(tmp_path / "one")
    metrics = tracked.data.metrics
    assert math.isnan(metrics["loss"])
    assert metrics["map"] == -1
    assert metrics["precision _사과_ 50 __"] == 0.5
    assert metrics["figure_1499"] == 1499
    assert tracked.data.params["long"] == "x" * 500
