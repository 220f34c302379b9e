"""What Azure's notebooks for images do after training: from the best trial to the answers of its endpoint.

The steps follow the notebooks of the four tasks, with another address for the client.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image as PILImage

import trainer
from serving.locate import find_artifacts
from serving.scorer import Scorer
from tests.conftest import ROOT
from tests.mlflow_server import mlflow_server
from trainer.data.samples import make
from trainer.job.job import Job
from trainer.tasks import Task
from trainer.training import tracking

Serve = Callable[..., AbstractContextManager[httpx.Client]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as port:
        yield f"http://127.0.0.1:{port}"


def download_best(client: MlflowClient, job_name: str, folder: Path) -> tuple[Path, Any]:
    """Retrieve the best trial of a job: the folder of its model, and its run."""
    parent = client.get_run(job_name)
    best = client.get_run(parent.data.tags["automl_best_child_run_id"])
    folder.mkdir()
    local = client.download_artifacts(best.info.run_id, "outputs", str(folder))
    model = Path(local) / "mlflow-model"
    assert model == folder / "outputs" / "mlflow-model"
    files = {"artifacts", "conda.yaml", "MLmodel", "python_env.yaml", "requirements.txt"}
    assert files <= set(os.listdir(model))
    return model, best


def invoke(serve: Serve, model: Path, rows: list[str], folder: Path) -> Any:
    """Deploy a downloaded model, and send the rows as the notebooks do, by way of a file."""
    request = folder / "sample_request_data.json"
    with request.open("w") as file:
        json.dump({"input_data": {"columns": ["image"], "data": rows}}, file)
    with serve(Scorer.load(find_artifacts(model))) as endpoint:
        answer = endpoint.post(
            "/score", content=request.read_bytes(), headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text)


def predict_locally(model: Path, images: list[bytes]) -> Any:
    """Load a downloaded model, and score a table of base64 in bytes, as base64.encodebytes returns it."""
    table = pd.DataFrame(data=[base64.encodebytes(image) for image in images], columns=["image"])
    return json.loads(mlflow.pyfunc.load_model(str(model)).predict(table).to_json(orient="records"))


def explained(image: bytes) -> str:
    """A row that requests an explanation."""
    return json.dumps(
        {
            "image_base64": base64.encodebytes(image).decode("utf-8"),
            "model_explainability": True,
            "xai_parameters": {"xai_algorithm": "xrai", "visualizations": True, "attributions": False},
        }
    )


def picture(text: str) -> PILImage.Image:
    return PILImage.open(io.BytesIO(base64.b64decode(text.encode("utf-8"))))


def test_classification_notebook_runs_after_a_sweep(
    server: str, serve_app: Serve, tmp_path: Path, warm_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(Task.CLASSIFICATION, tmp_path / "data", images=12, seed=1)
    run = trainer.fit(
        Job(
            task=Task.CLASSIFICATION,
            training_data=(str(data.train),),
            validation_data=(str(data.validation),),
            model="timm/test_resnet",
            weights="none",
            gpus=0,
            output=tmp_path / "sweep",
            tracking_uri=server,
            search_space=({"learning_rate": {"type": "choice", "values": [0.001, 0.002]}},),
            limits={"max_trials": 2},
            sweep={"sampling_algorithm": "grid"},
            settings={
                "number_of_epochs": 1,
                "number_of_workers": 0,
                "random_seed": 4,
                "training_crop_size": 32,
                "validation_crop_size": 32,
            },
        )
    )
    job_name = json.loads((run.directory / "mlflow.json").read_text("utf-8"))["run_id"]
    client = MlflowClient(server)
    model, best = download_best(client, job_name, tmp_path / "artifact_downloads")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/serving.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "page" / "artifact_downloads").mkdir(parents=True)
    for shown, own in (
        ("sqlite:///runs/mlflow.db", server),
        ("runs/…", str(run.directory)),
        ("artifact_downloads", str(tmp_path / "page" / "artifact_downloads")),
    ):
        assert shown in code
        code = code.replace(shown, own)
    exec(compile(code, "serving.md", "exec"), {"MlflowClient": MlflowClient, "json": json, "Path": Path})
    downloaded = tmp_path / "page" / "artifact_downloads" / "outputs" / "mlflow-model"
    assert (downloaded / "MLmodel").read_bytes() == (model / "MLmodel").read_bytes()
    result = run.read_result()
    assert best.data.tags["mlflow.parentRunId"] == job_name
    assert best.data.tags["run_directory"] == str(run.directory / "trials" / f"{result.best_trial:04d}")
    assert pd.DataFrame(best.data.metrics, index=[0]).T.loc["best_accuracy", 0] == result.value
    others = {each.info.run_id for each in client.search_runs([best.info.experiment_id])}
    others -= {job_name, best.info.run_id}
    assert len(others) == 1
    assert not client.list_artifacts(others.pop(), "outputs"), "only the best trial is packaged"

    # "Register the best model", from the run itself.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    registered = mlflow.register_model(f"runs:/{best.info.run_id}/outputs/mlflow-model", "fridge-items")
    copied = mlflow.artifacts.download_artifacts(f"models:/fridge-items/{registered.version}")
    assert (Path(copied) / "artifacts" / "weights.pt").read_bytes() == (
        model / "artifacts" / "weights.pt"
    ).read_bytes()

    expected = json.loads(run.predictions.read_text("utf-8").splitlines()[0])
    image = (data.validation.parent / expected.pop("image_url")).read_bytes()
    rows = [base64.encodebytes(image).decode("utf-8")]
    (prediction,) = invoke(serve_app, model, rows, tmp_path)
    assert prediction["labels"] == expected["labels"]
    assert prediction["probs"] == pytest.approx(expected["probs"], abs=1e-4)
    assert prediction["labels"][np.argmax(prediction["probs"])] in expected["labels"]
    (prediction,) = invoke(serve_app, model, [explained(image)], tmp_path)
    assert prediction.keys() == {"probs", "labels", "visualizations"}
    assert picture(prediction["visualizations"]).width > 0
    assert predict_locally(model, [image])[0]["probs"] == pytest.approx(expected["probs"], abs=1e-4)


@pytest.fixture
def publish(server: str, packaged: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """publish(task) → the run ID of a sweep, one of whose trials has the packaged, untrained model."""

    def publish(task: Task) -> str:
        job = Job(task=task, training_data="train.jsonl", experiment_name=f"notebooks-{task}")
        store = tracking.find(server, tmp_path)
        trial_directory = tmp_path / "trials" / "0000"
        trial_directory.mkdir(parents=True)
        with tracking.start(store, tmp_path, job, {}, {}) as sweep:
            assert sweep.run_id is not None
            with tracking.start(store, trial_directory, job, {}, {}, parent_run_id=sweep.run_id) as trial:
                trial.log(1, {job.metric: 0.5})
            sweep.publish(packaged(task), trial_directory)
        return sweep.run_id

    return publish


def test_tag_follows_the_best_trial(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed sweep may find a better trial, and a trial of another machine may not be tracked."""
    job = Job(task=Task.DETECTION, training_data="train.jsonl", experiment_name="resumed")
    store = tracking.find(server, tmp_path / "sweep")
    names = ("sweep", "first", "second", "untracked", "model")
    sweep, first, second, untracked, model = (tmp_path / name for name in names)
    for folder in (sweep, first, second, untracked, model):
        folder.mkdir()
    (model / "MLmodel").write_text("flavors: {}\n")
    client, ids = MlflowClient(server), {}
    for trial in (first, second, untracked):
        with tracking.start(store, sweep, job, {}, {}) as tracker:
            assert tracker.run_id is not None
            ids[sweep] = tracker.run_id
            if trial is not untracked:
                with tracking.start(store, trial, job, {}, {}, parent_run_id=ids[sweep]) as tracked:
                    ids[trial] = str(tracked.run_id)
            tracker.publish(model, trial)
        best = client.get_run(ids[sweep]).data.tags["automl_best_child_run_id"]
        assert best == ids.get(trial, ids[sweep])
        assert [file.path for file in client.list_artifacts(best, "outputs")] == ["outputs/mlflow-model"]

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(MlflowClient, "log_artifacts", fail)
    with tracking.start(store, sweep, job, {}, {}) as tracker:
        tracker.publish(model, second)
    assert "did not accept the model of the run" in caplog.text
    assert client.get_run(ids[sweep]).data.tags["automl_best_child_run_id"] == ids[sweep]


def test_multilabel_notebook_explains_each_class(
    server: str, publish: Callable[[Task], str], serve_app: Serve, make_image: Any, tmp_path: Path
) -> None:
    model, best = download_best(MlflowClient(server), publish(Task.MULTILABEL), tmp_path / "downloads")
    assert best.data.metrics["iou"] == 0.5
    image = make_image(1)
    (prediction,) = invoke(serve_app, model, [base64.encodebytes(image).decode("utf-8")], tmp_path)
    assert prediction.keys() == {"probs", "labels"}
    assert len(prediction["probs"]) == len(prediction["labels"]) == 3
    request = json.loads(explained(image))
    request["xai_parameters"] |= {"confidence_score_threshold_multilabel": 0.0, "n_steps": 2}
    (prediction,) = invoke(serve_app, model, [json.dumps(request)], tmp_path)
    assert [picture(each).width > 0 for each in prediction["visualizations"]] == [True] * 3


@pytest.mark.parametrize("task", [Task.DETECTION, Task.SEGMENTATION])
def test_notebooks_of_boxes_draw_the_answer(
    task: Task,
    server: str,
    publish: Callable[[Task], str],
    serve_app: Serve,
    make_image: Any,
    tmp_path: Path,
) -> None:
    model, _ = download_best(MlflowClient(server), publish(task), tmp_path / "downloads")
    image = make_image(1, (60, 40))
    (detections,) = invoke(serve_app, model, [base64.encodebytes(image).decode("utf-8")], tmp_path)
    assert detections["boxes"]
    for found in detections["boxes"]:
        box = found["box"]
        left, top, right, bottom = (
            60 * box["topX"], 40 * box["topY"], 60 * box["bottomX"], 40 * box["bottomY"]
        )  # fmt: skip
        assert 0 <= left <= right <= 60
        assert 0 <= top <= bottom <= 40
        assert isinstance(found["label"], str)
        assert 0 <= found["score"] <= 1
        if task is Task.SEGMENTATION:
            points = np.array(found["polygon"][0]).reshape(-1, 2) * (60, 40)
            assert len(points) >= 3
    assert len(predict_locally(model, [image])[0]["boxes"]) == len(detections["boxes"])
