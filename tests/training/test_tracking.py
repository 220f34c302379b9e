"""Tracking in MLflow: what a run sends, how it is resumed and ends, and that training survives outages."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from lightning import Callback, Trainer
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

import trainer
from tests.mlflow_server import mlflow_server
from tests.training.conftest import job as make_job
from tests.training.conftest import resume, rows
from trainer import cli
from trainer.data.samples import SampleData
from trainer.errors import JobError, TrackingError
from trainer.job.job import Job
from trainer.runs import Run
from trainer.tasks import Task
from trainer.training import tracking
from trainer.training.fit import fit
from trainer.training.mlflow_store import Store

MODEL = "timm/test_resnet"


class At(Callback):
    """Calls a function at an epoch's end (from 1), after its evaluation and before its checkpoint."""

    def __init__(self, epoch: int, do: Callable[[], None]) -> None:
        self.epoch, self.do = epoch, do

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        if trainer.current_epoch + 1 == self.epoch:
            self.do()


def stop(error: BaseException) -> Callable[[], None]:
    def do() -> None:
        raise error

    return do


@pytest.fixture
def job(
    digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Job]:
    """job(name, tracking_uri=..., number_of_epochs=...) trains in tmp_path/runs/name."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    def make(name: str, **values: Any) -> Job:
        own = {key: values.pop(key) for key in tuple(values) if key in Job.model_fields}
        made = make_job(digits, Task.CLASSIFICATION, MODEL, tmp_path / "runs" / name, **values)
        return Job(**{**dict(made), **own})

    return make


def train(job: Job, *callbacks: Callback, packages: bool = False, **more: Any) -> Run:
    return fit(job, callbacks=callbacks, packages=packages, **more)


def mlflow_run(run: Path, uri: str | None = None) -> tuple[MlflowClient, MlflowRun]:
    """The run in MLflow that a directory's note names."""
    note = json.loads((run / "mlflow.json").read_text("utf-8"))
    client = MlflowClient(uri or note["tracking_uri"] or f"sqlite:///{run.parent / 'mlflow.db'}")
    return client, client.get_run(note["run_id"])


def steps(client: MlflowClient, run: MlflowRun, metric: str) -> dict[int, float]:
    history = client.get_metric_history(run.info.run_id, metric)
    assert len({each.step for each in history}) == len(history), "a step was logged twice"
    return {each.step: each.value for each in history}


class Gate:
    """A proxy before a server that can be closed, silenced and opened again."""

    def __init__(self, port: int) -> None:
        self.behind = port
        self.port = 0
        self.silent = False
        self.connections: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def fall_silent(self) -> None:
        """Accept everything, and answer nothing."""
        self.silent = True

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.connections.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.behind))
                self.connections += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                if not self.silent:
                    target.sendall(content)
            target.shutdown(socket.SHUT_WR)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"


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


def test_run_is_tracked_in_default_database(
    job: Callable[..., Job], caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def state() -> tuple[dict[str, str], int]:
        variables = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW")}
        return variables, logging.getLogger("urllib3.connectionpool").level

    before = state()
    run = train(job("one", evaluation_frequency=2, number_of_epochs=3), packages=True)
    client, tracked = mlflow_run(run.directory)
    assert client.get_experiment(tracked.info.experiment_id).name == "trainer-image-classification"
    assert tracked.info.run_name == "one"
    assert tracked.info.status == "FINISHED"
    written = yaml.safe_load(run.job.read_text("utf-8"))
    parameters = {name: str(value) for name, value in written["training_parameters"].items()}
    assert parameters.items() <= tracked.data.params.items()
    assert tracked.data.params["training_images"] == "16"
    assert tracked.data.params["primary_metric"] == "accuracy"

    expected: dict[str, dict[int, float]] = {}
    for row in rows(run):
        for name, text in row.items():
            if name != "epoch" and text != "":
                expected.setdefault(name, {})[int(row["epoch"])] = float(text)
    assert set(expected["accuracy"]) == {2, 3}
    assert set(expected["train_loss"]) == {1, 2, 3}
    for name, values in expected.items():
        assert steps(client, tracked, name) == pytest.approx(values, nan_ok=True), name
    result = run.read_result()
    assert tracked.data.metrics["best_accuracy"] == result.value
    assert tracked.data.metrics["best_epoch"] == result.best_epoch

    tags = tracked.data.tags
    assert (tags["task"], tags["model"]) == ("image-classification", MODEL)
    assert tags["run_directory"] == str(run.directory)
    assert tags["model_path"] == str(run.model)
    # As after a sweep, Azure's notebooks find the model by the tag: here it names the run itself.
    assert tags["automl_best_child_run_id"] == tracked.info.run_id
    model = Path(client.download_artifacts(tracked.info.run_id, "outputs/mlflow-model", str(tmp_path)))
    assert (model / "artifacts/weights.pt").read_bytes() == run.model.joinpath(
        "artifacts/weights.pt"
    ).read_bytes()
    assert f"model in MLflow: runs:/{tracked.info.run_id}/outputs/mlflow-model" in run.log.read_text("utf-8")
    assert tags["version.torch"] == result.versions["torch"]
    assert len(tags["data_fingerprint"]) == 32
    assert "mlflow.source.git.commit" not in tags  # this working directory is no repository

    files = tracked.info.artifact_uri.removeprefix("file://")
    assert Path(files).is_relative_to(tmp_path / "runs")
    for name in ("job.yaml", "metrics.csv", "result.json", "report.html", "report/metric-by-epoch.svg"):
        assert (Path(files) / name).read_bytes() == (run.directory / name).read_bytes()

    said = "tracking: mlflow ui --backend-store-uri sqlite:///runs/mlflow.db"
    assert run.log.read_text("utf-8").count(said) == 1
    assert not (tmp_path / "mlruns").exists()
    assert state() == before
    assert mlflow.active_run() is None
    assert caplog.text.count("alembic") == 0


def test_runs_of_same_data_share_fingerprint_and_experiment(
    job: Callable[..., Job],
) -> None:
    first, second = (train(job(name, number_of_epochs=1)) for name in ("one", "two"))
    (_, one), (_, two) = mlflow_run(first.directory), mlflow_run(second.directory)
    assert one.info.experiment_id == two.info.experiment_id
    assert one.info.run_id != two.info.run_id
    assert one.data.tags["data_fingerprint"] == two.data.tags["data_fingerprint"]


def test_commit_of_working_directory_is_a_tag(
    job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "repository"
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    monkeypatch.chdir(folder)
    store = tracking.find(None, tmp_path / "runs" / "one")
    (tmp_path / "runs" / "one").mkdir(parents=True)
    with tracking.start(store, tmp_path / "runs" / "one", job("one"), {}, {}):
        pass
    assert mlflow_run(tmp_path / "runs" / "one")[1].data.tags["mlflow.source.git.commit"] == commit.strip()


def test_failed_run_is_resumed_as_same_run(job: Callable[..., Job], tmp_path: Path) -> None:
    # Epoch 2 is in metrics.csv, but in no checkpoint: it is trained again.
    with pytest.raises(OSError, match="power"):
        train(job("one", number_of_epochs=3), At(2, stop(OSError("the power failed"))))
    client, stopped = mlflow_run(tmp_path / "runs" / "one")
    assert stopped.info.status == "FAILED"
    assert stopped.data.tags["failure"] == "OSError: the power failed"
    assert set(steps(client, stopped, "train_loss")) == {1}

    run = resume(tmp_path / "runs" / "one", {"number_of_epochs": 4, "early_stopping": False})
    client, tracked = mlflow_run(run.directory)
    assert tracked.info.run_id == stopped.info.run_id
    assert tracked.info.status == "FINISHED"
    assert "failure" not in tracked.data.tags
    assert set(steps(client, tracked, "train_loss")) == {1, 2, 3, 4}
    assert tracked.data.params["number_of_epochs"] == "3"
    assert tracked.data.tags["changed.number_of_epochs"] == "4"
    assert len(client.search_runs([tracked.info.experiment_id])) == 1


def test_interrupted_run_has_status_killed(job: Callable[..., Job], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(job("one"), At(1, stop(KeyboardInterrupt())))
    assert mlflow_run(tmp_path / "runs" / "one")[1].info.status == "KILLED"


def test_untracked_run_is_tracked_in_full_once_resumed(job: Callable[..., Job], tmp_path: Path) -> None:
    run = train(job("one", tracking_uri="none"))
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["one"]
    assert not (run.directory / "mlflow.json").exists()
    assert "tracking" not in run.log.read_text("utf-8")
    # job.yaml has "none", too; a flag overrides it
    uri = f"sqlite:///{tmp_path}/elsewhere.db"
    resume(run.directory, {"number_of_epochs": 3}, tracking_uri=uri)
    client, tracked = mlflow_run(run.directory)
    assert json.loads((run.directory / "mlflow.json").read_text("utf-8"))["tracking_uri"] == uri
    assert set(steps(client, tracked, "accuracy")) == {1, 2, 3}


def test_environment_variables_of_mlflow_apply(
    job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/named.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "apples")
    client = MlflowClient(uri)
    run = train(job("one", number_of_epochs=1))
    _, tracked = mlflow_run(run.directory)
    assert client.get_experiment(tracked.info.experiment_id).name == "apples"
    # the job overrides the environment
    run = train(job("two", number_of_epochs=1, experiment_name="pears"))
    pears = client.get_experiment(mlflow_run(run.directory)[1].info.experiment_id)
    assert pears.name == "pears"
    # a run that was created before, as by `mlflow run`; a second training run becomes its child
    begun = client.create_run(pears.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", begun)
    run = train(job("three", number_of_epochs=1))
    assert mlflow_run(run.directory)[1].info.run_id == begun
    below = mlflow_run(train(job("four", number_of_epochs=1)).directory)[1]
    assert below.data.tags["mlflow.parentRunId"] == begun
    assert below.info.experiment_id == pears.experiment_id
    assert not (tmp_path / "runs" / "mlflow.db").exists()


@pytest.mark.fresh_processes
def test_sweep_run_is_parent_of_trials_and_needs_no_torch(job: Callable[..., Job], tmp_path: Path) -> None:
    one = job("sweep/trials/one", number_of_epochs=1, experiment_name="pears")
    (tmp_path / "runs" / "sweep").mkdir(parents=True)
    code = """
import sys, pathlib, logging
from trainer.job.job import Job
from trainer.training import tracking
directory = pathlib.Path(sys.argv[2])
job = Job.model_validate_json(sys.argv[1])
for trial in (1, 2):  # the second time as after a stop
    store = tracking.find(None, directory)
    with tracking.start(store, directory, job, {"max_trials": 2}, {"task": job.task}) as sweep:
        sweep.log(1, {"accuracy": 0.5})
        if trial == 2:
            sweep.log(2, {"accuracy": float("nan")})
            sweep.tag({"best_trial": "1"})
assert not {"torch", "lightning"} & set(sys.modules)
print(store.uri, sweep.run_id)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, one.model_dump_json(), str(tmp_path / "runs" / "sweep")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    uri, parent = done.stdout.split()
    assert uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    run = train(one.model_copy(update={"tracking_uri": uri}), parent_run_id=parent)
    client, tracked = mlflow_run(run.directory)
    assert tracked.data.tags["mlflow.parentRunId"] == parent
    above = client.get_run(parent)
    assert (above.info.status, above.info.run_name) == ("FINISHED", "sweep")
    assert above.info.experiment_id == tracked.info.experiment_id
    assert (above.data.params["max_trials"], above.data.tags["best_trial"]) == ("2", "1")
    values = steps(client, above, "accuracy")
    assert values[1] == 0.5
    assert math.isnan(values[2])


def test_server_serves_files_and_registered_model(
    job: Callable[..., Job],
    gate: Gate,
    digits: dict[Task, SampleData],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = train(
        job("one", tracking_uri=gate.uri, register_model="digits", experiment_name="사과"), packages=True
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
    figures = {"metrics.csv", "metrics.json", "result.json"}
    assert listed == {"job.yaml", "report.html", "report", "model", "outputs", *figures}
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
    trainer.resume(run.directory, {"number_of_epochs": 3, "early_stopping": False})
    versions = client.search_model_versions("name='digits'")
    assert {int(each.version): each.source.rsplit("/", 1)[-1] for each in versions} == {
        1: "model",
        2: "model-2",
    }
    assert {each.run_id for each in versions} == {tracked.info.run_id}


@pytest.mark.parametrize("way", ["close", "fall_silent"])
def test_outage_is_logged_once_and_resume_sends_the_rest(
    job: Callable[..., Job], gate: Gate, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")  # the user's own setting applies
    epochs: list[float] = []
    started = time.monotonic()
    run = train(
        job("one", tracking_uri=gate.uri, number_of_epochs=6, early_stopping=False),
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


def test_server_that_returns_before_the_end_has_all_metrics(job: Callable[..., Job], gate: Gate) -> None:
    run = train(
        job("one", tracking_uri=gate.uri, number_of_epochs=4, early_stopping=False),
        At(2, gate.close),
        At(4, gate.open),
    )
    client, tracked = mlflow_run(run.directory)
    assert tracked.info.status == "FINISHED"
    assert set(steps(client, tracked, "accuracy")) == {1, 2, 3, 4}
    assert "did not accept" not in run.log.read_text("utf-8")


def test_missing_server_is_an_error_before_the_data_are_read(job: Callable[..., Job], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri = f"http://me:secret@127.0.0.1:{port}"
    started = time.monotonic()
    with pytest.raises(TrackingError, match=r"refused.*--tracking-uri none") as refusal:
        train(job("one", tracking_uri=uri, training_data="missing.jsonl"))
    assert time.monotonic() - started < 10
    assert "secret" not in str(refusal.value)
    assert not (tmp_path / "runs").exists()


def test_silent_server_is_an_error_within_seconds(
    job: Callable[..., Job], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    gate.fall_silent()
    started = time.monotonic()
    with pytest.raises(TrackingError, match=r"timed out.*--tracking-uri none"):
        train(job("one", tracking_uri=gate.uri, training_data="missing.jsonl"))
    assert time.monotonic() - started < 10


def test_resume_tracks_again_if_database_was_deleted(job: Callable[..., Job], tmp_path: Path) -> None:
    run = train(job("one"))
    _, before = mlflow_run(run.directory)
    (tmp_path / "runs" / "mlflow.db").unlink()
    resume(run.directory, {"number_of_epochs": 3})
    client, tracked = mlflow_run(run.directory)
    assert tracked.info.run_id != before.info.run_id
    assert set(steps(client, tracked, "accuracy")) == {1, 2, 3}
    assert f"has no run {before.info.run_id}" in run.log.read_text("utf-8")


def test_only_rank_zero_tracks(job: Callable[..., Job]) -> None:
    run = train(job("one", processes=2))
    client, tracked = mlflow_run(run.directory)
    assert tracked.info.status == "FINISHED"
    assert set(steps(client, tracked, "train_loss")) == {1, 2}
    assert len(client.search_runs([tracked.info.experiment_id])) == 1


def test_tracking_flags_reach_the_run(
    digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["fit", "--task", "image-classification", "--data", str(digits[Task.CLASSIFICATION].train)]
    flags += ["--weights", "none", "--output", str(tmp_path / "one")]
    with pytest.raises(TrackingError, match=r"http://127.0.0.1:9: MLflow's store cannot be used"):
        cli.app([*flags, "--tracking-uri", "http://127.0.0.1:9"])
    with pytest.raises(JobError, match=r"register_model: needs MLflow"):
        cli.app([*flags, "--tracking-uri", "none", "--register-model", "digits"])
    with pytest.raises(JobError, match=r"must be a name without / and :, got 'a/b'"):
        cli.app([*flags, "--register-model", "a/b"])


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:////proc/none/mlflow.db", r"/proc/none"),
        ("mysql+nothing://127.0.0.1/x", r"nothing"),
        ("strange://x", r"[Uu]nsupported"),
        ("runs", r"maintenance mode"),
    ],
)
def test_unusable_store_is_an_error(job: Callable[..., Job], tmp_path: Path, uri: str, reason: str) -> None:
    with pytest.raises(TrackingError, match=reason):
        train(job("one", tracking_uri=uri))
    assert not (tmp_path / "runs").exists()


def test_deleted_experiment_is_an_error(job: Callable[..., Job], tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    store = Store(uri)
    with store.use() as client:
        client.delete_experiment(store.experiment("pears"))
    with pytest.raises(TrackingError, match=r"'pears' was deleted; restore it with"):
        train(job("one", tracking_uri=uri, experiment_name="pears"))


def test_failed_registration_leaves_a_finished_run(
    job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "strange://x")
    with pytest.raises(TrackingError, match=r"strange://x"):  # before training starts
        train(job("one", register_model="digits"))
    assert not (tmp_path / "runs" / "one").exists()
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")

    def lose_files() -> None:
        (tmp_path / "runs" / "mlartifacts").write_text("in the way")

    with pytest.raises(TrackingError, match=r"the model is trained and is in .* could not be registered"):
        train(job("two", register_model="digits"), At(2, lose_files), packages=True)
    _, tracked = mlflow_run(tmp_path / "runs" / "two")
    assert tracked.info.status == "FINISHED"
    assert Run.open(tmp_path / "runs" / "two").read_result().epochs == 2


def test_passwords_are_not_written_to_files(job: Callable[..., Job], gate: Gate) -> None:
    uri = gate.uri.replace("http://", "http://me:secret@")
    run = train(job("one", tracking_uri=uri, number_of_epochs=1))
    _, tracked = mlflow_run(run.directory, gate.uri)
    assert tracked.info.status == "FINISHED"
    for path in run.directory.glob("*.*"):
        assert "secret" not in path.read_text("utf-8"), path
    assert Job.read(run.job).tracking_uri == gate.uri


def test_store_path_is_relative_to_job_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yml"
    content = (
        "task: image_classification\ntraining_data: train\nlocal:\n  tracking_uri: sqlite:///runs/m.db\n"
    )
    path.write_text(content + "  register_model: digits\n", encoding="utf-8")
    made = Job.read(path)
    assert (made.tracking_uri, made.register_model) == (f"sqlite:///{tmp_path}/runs/m.db", "digits")


def test_concurrent_processes_create_one_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/a folder/50%25 사과/mlflow.db"
    code = "import sys; from trainer.training.mlflow_store import Store; Store(sys.argv[1]).check()"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, uri], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert (process.returncode, said) == (0, "")
    assert (tmp_path / "a folder" / "50% 사과" / "mlflow.db").exists()
    assert [each.name for each in MlflowClient(uri).search_experiments()] == ["Default"]


@pytest.mark.parametrize("place", ["file", "server"])
def test_undefined_and_oddly_named_metrics_are_tracked(
    job: Callable[..., Job], tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    uri = request.getfixturevalue("gate").uri if place == "server" else None
    store = tracking.find(uri, tmp_path / "one")
    (tmp_path / "one").mkdir()
    with tracking.start(store, tmp_path / "one", job("one"), {"long": "x" * 9000}, {}) as tracker:
        tracker.log(1, {"loss": math.nan, "map": -1.0, "precision (사과, 50 %)": 0.5})
        tracker.log(1, {f"figure_{number}": number for number in range(1500)})
    _, tracked = mlflow_run(tmp_path / "one")
    metrics = tracked.data.metrics
    assert math.isnan(metrics["loss"])
    assert metrics["map"] == -1
    assert metrics["precision _사과_ 50 __"] == 0.5
    assert metrics["figure_1499"] == 1499
    assert tracked.data.params["long"] == "x" * 500


def test_tracking_leaves_metrics_csv_unchanged(job: Callable[..., Job]) -> None:
    """Tracking does not change the run's own files."""
    with_it, without = train(job("one")), train(job("two", tracking_uri="none"))

    def metrics_of(run: Run) -> list[dict[str, str]]:
        with run.metrics.open(encoding="utf-8") as file:
            return [
                {name: value for name, value in row.items() if name != "seconds"}
                for row in csv.DictReader(file)
            ]

    assert metrics_of(with_it) == metrics_of(without)
