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
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from tests.training.conftest import resume, rows
from tests.training.tracked import At, mlflow_run, steps, stop, train
from trainer import cli
from trainer.data.samples import SampleData
from trainer.errors import JobError, TrackingError
from trainer.job.job import Job
from trainer.metric_names import BY_CLASS
from trainer.models.catalog import CARDS
from trainer.models.libraries import is_installed
from trainer.runs import Run
from trainer.tasks import Task
from trainer.training import tracking
from trainer.training.mlflow_store import Store
from trainer.training.origin import library_versions

MODEL = "timm/test_resnet"


def test_run_is_tracked_in_default_database(
    tracked_job: Callable[..., Job],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    def state() -> tuple[dict[str, str], int]:
        variables = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW")}
        return variables, logging.getLogger("urllib3.connectionpool").level

    before = state()
    run = train(tracked_job("one", evaluation_frequency=2, number_of_epochs=3), packages=True)
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
    with run.class_metrics.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name in ("f1-score", "precision", "recall"):
                by_epoch = expected.setdefault(f"{name}_by_class/{row['class']}", {})
                by_epoch[int(row["epoch"])] = float(row[name])
    of_classes = [by_epoch for name, by_epoch in expected.items() if "_by_class/" in name]
    assert [set(by_epoch) for by_epoch in of_classes] == [{2, 3}] * 3 * int(tracked.data.params["classes"])
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
    tracked_job: Callable[..., Job],
) -> None:
    first, second = (train(tracked_job(name, number_of_epochs=1)) for name in ("one", "two"))
    (_, one), (_, two) = mlflow_run(first.directory), mlflow_run(second.directory)
    assert one.info.experiment_id == two.info.experiment_id
    assert one.info.run_id != two.info.run_id
    assert one.data.tags["data_fingerprint"] == two.data.tags["data_fingerprint"]


def test_versions_of_all_model_libraries_are_kept() -> None:
    libraries = {card.library for card in CARDS.values() if is_installed(card)}
    assert library_versions().keys() == {"torch", "lightning", "mlflow", "numpy", *libraries}


def test_child_run_of_a_model_has_the_last_metrics_but_not_those_of_single_classes() -> None:
    logged: dict[str, float] = {}
    metrics = {"accuracy": 0.5, "recall": 0.4, f"recall{BY_CLASS}cat": 0.3}
    source = SimpleNamespace(
        info=SimpleNamespace(experiment_id="0", run_name="run"), data=SimpleNamespace(metrics=metrics)
    )
    store: Any = SimpleNamespace(
        client=SimpleNamespace(
            get_run=lambda _: source,
            create_run=lambda *_, **__: SimpleNamespace(info=SimpleNamespace(run_id="child")),
            log_batch=lambda _, values: logged.update({each.key: each.value for each in values}),
            set_terminated=lambda _: None,
        )
    )
    assert Store.create_child(store, "parent", "source", {"accuracy": 0.6}) == "child"
    assert logged == {"accuracy": 0.6, "recall": 0.4}


def test_commit_of_working_directory_is_a_tag(
    tracked_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "repository"
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    monkeypatch.chdir(folder)
    store = tracking.find(None, tmp_path / "runs" / "one")
    (tmp_path / "runs" / "one").mkdir(parents=True)
    with tracking.start(store, tmp_path / "runs" / "one", tracked_job("one"), {}, {}):
        pass
    assert mlflow_run(tmp_path / "runs" / "one")[1].data.tags["mlflow.source.git.commit"] == commit.strip()


def test_failed_run_is_resumed_as_same_run(tracked_job: Callable[..., Job], tmp_path: Path) -> None:
    # Epoch 2 is in metrics.csv, but in no checkpoint: it is trained again.
    with pytest.raises(OSError, match="power"):
        train(tracked_job("one", number_of_epochs=3), At(2, stop(OSError("the power failed"))))
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


def test_interrupted_run_has_status_killed(tracked_job: Callable[..., Job], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tracked_job("one"), At(1, stop(KeyboardInterrupt())))
    assert mlflow_run(tmp_path / "runs" / "one")[1].info.status == "KILLED"


def test_untracked_run_is_tracked_in_full_once_resumed(
    tracked_job: Callable[..., Job], tmp_path: Path
) -> None:
    run = train(tracked_job("one", tracking_uri="none"))
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
    tracked_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/named.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "apples")
    client = MlflowClient(uri)
    run = train(tracked_job("one", number_of_epochs=1))
    _, tracked = mlflow_run(run.directory)
    assert client.get_experiment(tracked.info.experiment_id).name == "apples"
    # the job overrides the environment
    run = train(tracked_job("two", number_of_epochs=1, experiment_name="pears"))
    pears = client.get_experiment(mlflow_run(run.directory)[1].info.experiment_id)
    assert pears.name == "pears"
    # a run that was created before, as by `mlflow run`; a second training run becomes its child
    begun = client.create_run(pears.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", begun)
    run = train(tracked_job("three", number_of_epochs=1))
    assert mlflow_run(run.directory)[1].info.run_id == begun
    below = mlflow_run(train(tracked_job("four", number_of_epochs=1)).directory)[1]
    assert below.data.tags["mlflow.parentRunId"] == begun
    assert below.info.experiment_id == pears.experiment_id
    assert not (tmp_path / "runs" / "mlflow.db").exists()


@pytest.mark.fresh_processes
def test_sweep_run_is_parent_of_trials_and_needs_no_torch(
    tracked_job: Callable[..., Job], tmp_path: Path
) -> None:
    one = tracked_job("sweep/trials/one", number_of_epochs=1, experiment_name="pears")
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


def test_missing_server_is_an_error_before_the_data_are_read(
    tracked_job: Callable[..., Job], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri = f"http://me:secret@127.0.0.1:{port}"
    started = time.monotonic()
    with pytest.raises(TrackingError, match=r"refused.*--tracking-uri none") as refusal:
        train(tracked_job("one", tracking_uri=uri, training_data="missing.jsonl"))
    assert time.monotonic() - started < 10
    assert "secret" not in str(refusal.value)
    assert not (tmp_path / "runs").exists()


def test_resume_tracks_again_if_database_was_deleted(tracked_job: Callable[..., Job], tmp_path: Path) -> None:
    run = train(tracked_job("one"))
    _, before = mlflow_run(run.directory)
    (tmp_path / "runs" / "mlflow.db").unlink()
    resume(run.directory, {"number_of_epochs": 3})
    client, tracked = mlflow_run(run.directory)
    assert tracked.info.run_id != before.info.run_id
    assert set(steps(client, tracked, "accuracy")) == {1, 2, 3}
    assert f"has no run {before.info.run_id}" in run.log.read_text("utf-8")


def test_only_rank_zero_tracks(tracked_job: Callable[..., Job]) -> None:
    run = train(tracked_job("one", processes=2))
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
def test_unusable_store_is_an_error(
    tracked_job: Callable[..., Job], tmp_path: Path, uri: str, reason: str
) -> None:
    with pytest.raises(TrackingError, match=reason):
        train(tracked_job("one", tracking_uri=uri))
    assert not (tmp_path / "runs").exists()


def test_deleted_experiment_is_an_error(tracked_job: Callable[..., Job], tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    store = Store(uri)
    with store.use() as client:
        client.delete_experiment(store.experiment("pears"))
    with pytest.raises(TrackingError, match=r"'pears' was deleted; restore it with"):
        train(tracked_job("one", tracking_uri=uri, experiment_name="pears"))


def test_failed_registration_leaves_a_finished_run(
    tracked_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "strange://x")
    with pytest.raises(TrackingError, match=r"strange://x"):  # before training starts
        train(tracked_job("one", register_model="digits"))
    assert not (tmp_path / "runs" / "one").exists()
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")

    def lose_files() -> None:
        (tmp_path / "runs" / "mlartifacts").write_text("in the way")

    with pytest.raises(TrackingError, match=r"the model is trained and is in .* could not be registered"):
        train(tracked_job("two", register_model="digits"), At(2, lose_files), packages=True)
    _, tracked = mlflow_run(tmp_path / "runs" / "two")
    assert tracked.info.status == "FINISHED"
    assert Run.open(tmp_path / "runs" / "two").read_result().epochs == 2


def test_resumed_run_stores_its_model_where_there_is_no_registry(
    tracked_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "strange://x")
    directory, model = tmp_path / "runs" / "one", tmp_path / "model"
    directory.mkdir(parents=True)
    model.mkdir()
    for name in ("first", "second"):
        (model / name).write_text(name)
        store = tracking.find(None, directory)
        with tracking.start(store, directory, tracked_job("one"), {}, {}) as tracker:
            tracker.publish(model)
    client, tracked = mlflow_run(directory)
    assert tracked.data.tags["automl_best_child_run_id"] == tracked.info.run_id
    stored = client.list_artifacts(tracked.info.run_id, "outputs/mlflow-model")
    assert {Path(file.path).name for file in stored} == {"first", "second"}


@pytest.mark.parametrize(
    ("code", "may_be"), [(databricks_pb2.ENDPOINT_NOT_FOUND, False), (databricks_pb2.PERMISSION_DENIED, True)]
)
def test_only_a_store_without_registry_is_sure_to_have_no_registered_model(code: int, may_be: bool) -> None:
    def refuse(_: str) -> None:
        raise MlflowException("no", code)

    store = Store("https://example.org")
    vars(store)["client"] = SimpleNamespace(search_model_versions=refuse)
    assert store.is_registered("1", "outputs/mlflow-model") is may_be


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


def test_tracking_leaves_metrics_csv_unchanged(tracked_job: Callable[..., Job]) -> None:
    """Tracking does not change the run's own files."""
    with_it, without = train(tracked_job("one")), train(tracked_job("two", tracking_uri="none"))

    def metrics_of(run: Run) -> list[dict[str, str]]:
        with run.metrics.open(encoding="utf-8") as file:
            return [
                {name: value for name, value in row.items() if name != "seconds"}
                for row in csv.DictReader(file)
            ]

    assert metrics_of(with_it) == metrics_of(without)
