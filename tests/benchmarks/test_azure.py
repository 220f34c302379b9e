"""A finished run of Azure AutoML, as its MLflow records it, next to the same job file trained here."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from benchmarks import azure
from tests.benchmarks.test_scripts import table
from tests.mlflow_server import mlflow_server
from trainer.data.samples import make
from trainer.runs import Durations, Result, Run
from trainer.tasks import Task

pytestmark = pytest.mark.usefixtures("warm_processes")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as port:
        yield MlflowClient(f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it was run on Azure; where the data are here, a flag says."""
    folder = tmp_path_factory.mktemp("job")
    made = make(Task.CLASSIFICATION, folder / "data", images=12, seed=1)
    for name, file in (("training", made.train), ("validation", made.validation)):
        table = folder / name
        table.mkdir()
        shutil.copytree(folder / "data" / "images", table / "images")
        shutil.copy(file, table / "lines.jsonl")
        described = {"paths": [{"file": "./lines.jsonl"}], "transformations": [{"read_json_lines": {}}]}
        (table / "MLTable").write_text(yaml.safe_dump(described))
    content = {
        "type": "automl",
        "task": "image_classification",
        "primary_metric": "accuracy",
        "compute": "azureml:gpu-cluster",
        "training_data": {"path": "azureml:digits:1", "type": "mltable"},
        "validation_data": {"path": "azureml:digits-validation:1", "type": "mltable"},
        "training_parameters": {
            "model_name": "timm/test_resnet", "number_of_epochs": 2, "training_crop_size": 48,
            "validation_crop_size": 48, "number_of_workers": 0, "training_batch_size": 8,
        },
    }  # fmt: skip
    path = folder / "job.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def azure_run(client: MlflowClient, name: str, *, status: str = "FINISHED") -> str:
    """A job with two trials, whose best child has metrics of three epochs."""
    experiment = client.create_experiment(name)
    parent = client.create_run(experiment, start_time=1_000_000)
    children = []
    for measurements in ([0.2, 0.3, 0.25], [0.5, 0.875, 0.75]):
        tags = {azure.PARENT_TAG: parent.info.run_id}
        child = client.create_run(experiment, start_time=1_000_000, tags=tags)
        for step, value in enumerate(measurements):
            client.log_metric(child.info.run_id, "accuracy", value, step=step)
            client.log_metric(child.info.run_id, "AUC_macro", value / 2, step=step)
        client.log_metric(child.info.run_id, "gpu_utilisation", 40.0)
        children.append(child.info.run_id)
        client.set_terminated(child.info.run_id, end_time=1_000_000 + 1_500_000)  # in parallel
    client.set_tag(parent.info.run_id, azure.BEST_CHILD_TAG, children[1])
    client.set_terminated(parent.info.run_id, status, end_time=1_000_000 + 1_800_000)
    return str(parent.info.run_id)


def compare(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/azure.py", *map(str, arguments)])
    azure.main()


def test_side_by_side(
    client: MlflowClient,
    job_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run_id, output = azure_run(client, "digits"), tmp_path / "run"
    key = tmp_path / "key.txt"
    key.write_text("secret-of-the-endpoint\n")
    own = ["--config", job_file, "--azure-run", run_id, "--tracking-uri", client.tracking_uri]
    own += ["--output", output, "--price-per-hour", 3.0, "--own-price-per-hour", 1.0]
    assets = [f"digits={job_file.parent}/training", f"digits-validation={job_file.parent}/validation"]
    flags = ["--", "--weights", "none", "--gpus", "0", "--tracking-uri", "none"]
    flags += [part for asset in assets for part in ("--data-asset", asset)]
    compare(monkeypatch, *own, *flags)
    rows = {row[""]: row for row in table(capfd.readouterr().out)}
    result = Run(output).read_result()
    assert list(rows)[:2] == ["accuracy", "AUC_macro"], "what both have, the primary metric first"
    assert rows["accuracy"]["Azure"] == "0.8750", "the best epoch of the best trial"
    assert rows["AUC_macro"]["Azure"] == "0.4375", "at that epoch"
    assert rows["accuracy"]["ours"] == f"{result.value:.4f}"
    assert rows["epochs trained"]["Azure"] == "3"
    assert rows["epochs trained"]["ours"] == "2"
    assert rows["best trial, s"]["Azure"] == "1,500"
    assert rows["whole job, s"]["Azure"] == "1,800"
    assert rows["whole job, s"]["ours"] == rows["best trial, s"]["ours"], "no sweep"
    assert rows["cost at 3 and 1 per hour"]["Azure"] == "2.5000", "each trial has a machine"
    assert rows["cost at 3 and 1 per hour"]["ours"] == f"{result.durations.total / 3600:.4f}"

    # The finished run is taken as it is; its own server stands for Azure's endpoint.
    with azure.served(Run(output), "--auth-key-file", str(key)) as url:
        compare(monkeypatch, *own, "--endpoint", url, "--key-file", key, "--requests", 2, *flags)
        told = capfd.readouterr()
        with (
            azure.Endpoint(url, "another") as closed,
            pytest.raises(SystemExit, match=r"rejects the key \(401"),
        ):
            closed.ask(b"{}")
    rows = {row[""]: row for row in table(told.out)}
    for share in ("50%", "95%", "99%"):
        row = rows[f"latency, {share} of requests, ms"]
        assert float(row["Azure"].replace(",", "")) > 0
        assert float(row["ours"].replace(",", "")) > 0
    assert "secret-of-the-endpoint" not in told.out + told.err
    with azure.Endpoint(url) as gone, pytest.raises(SystemExit, match="does not answer"):
        gone.ask(b"{}")


def test_runs_that_cannot_be_compared_are_refused_before_anything_is_trained(
    client: MlflowClient, job_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = ["--config", job_file, "--tracking-uri", client.tracking_uri, "--output", tmp_path / "run"]
    with pytest.raises(SystemExit, match=r"cannot be read: .*nothing"):
        compare(monkeypatch, *own, "--azure-run", "nothing")
    running = azure_run(client, "fails", status="FAILED")
    with pytest.raises(SystemExit, match=f"{running} is FAILED; only a finished one"):
        compare(monkeypatch, *own, "--azure-run", running)
    with pytest.raises(SystemExit, match="has no mean_average_precision, but AUC_macro, accuracy, gpu_util"):
        azure.read_azure(client.tracking_uri, azure_run(client, "other"), "mean_average_precision")
    assert not (tmp_path / "run").exists()


def test_of_a_sweep_here_the_best_trials_time_is_told(tmp_path: Path) -> None:
    durations = {"train": 40.0, "total": 90.0}
    result = Result(
        task=Task.CLASSIFICATION, model="resnet18", primary_metric="accuracy", value=0.9, best_epoch=1,
        epochs=1, durations=Durations(**durations), model_path="model", metrics={"accuracy": 0.9},
        best_trial=1, seed=None, versions={},
    )  # fmt: skip
    run = Run(tmp_path)
    run.write_result(result)
    trial = dict.fromkeys(("state", "latency_ms", "pareto", "directory", "reason"), "")
    with (tmp_path / "trials.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ("trial", "accuracy", "seconds", *trial))
        writer.writeheader()
        writer.writerows({**trial, "trial": n, "accuracy": 0.9, "seconds": 30 + n} for n in range(2))
    side = azure.read_ours(run)
    assert (side.best_seconds, side.seconds, side.machine_seconds) == (31, 90, 90)
