"""Incremental training: what an earlier run trained is taken, fitted to other classes, or rejected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import trainer
from tests.models.weights.conftest import family_of, load
from trainer.data.samples import make
from trainer.errors import WeightsError
from trainer.job.job import Job
from trainer.models import Family
from trainer.models.weights.choice import is_address, of_run
from trainer.models.weights.sources import spec_of
from trainer.tasks import Task


def packaged(family: Family, directory: Path) -> tuple[Path, Mapping[str, Tensor]]:
    """What a packaged model holds of a network; the place of its artifacts, and its tensors."""
    torch.manual_seed(5)
    state = family.build().state_dict()
    artifacts = directory / "artifacts"
    artifacts.mkdir(parents=True)
    torch.save(state, artifacts / "weights.pt")
    (artifacts / "spec.json").write_text(family.spec.model_dump_json(), encoding="utf-8")
    return artifacts, state


@pytest.mark.parametrize("given", ["", "model", "model/artifacts", "model/artifacts/weights.pt"])
def test_a_run_goes_on_with_the_same_classes_whole(tmp_path: Path, resnet: Family, given: str) -> None:
    _, state = packaged(resnet, tmp_path / "실행/model")
    network, loaded = load(resnet, tmp_path / "실행" / given)
    assert (loaded.fresh, loaded.left, loaded.notes) == ((), (), ())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert str(loaded) == f"{len(state)} tensors from {tmp_path / '실행/model/artifacts/weights.pt'}"


@pytest.mark.parametrize("classes", [("a", "b", "d"), ("b", "a", "c"), ("a", "b"), ("a", "b", "c", "d")])
def test_a_run_of_other_classes_gives_all_but_its_head(
    tmp_path: Path, resnet: Family, classes: tuple[str, ...]
) -> None:
    _, state = packaged(resnet, tmp_path / "model")
    network, loaded = load(family_of(Task.CLASSIFICATION, "resnet18", *classes), tmp_path)
    assert loaded.fresh == ("fc.weight", "fc.bias")
    assert f"trained on 3 classes: a, b, c, now {len(classes)} classes: {', '.join(classes)}" in str(loaded)
    assert "made for other classes, so randomly initialized: fc.weight, fc.bias" in str(loaded)
    own = network.state_dict()
    assert torch.equal(own["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
    assert own["fc.weight"].shape[0] == len(classes)
    assert not any(torch.equal(own["fc.weight"][0], row) for row in state["fc.weight"])


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTILABEL])
def test_head_is_trained_if_the_task_is_the_same(tmp_path: Path, resnet: Family, task: Task) -> None:
    packaged(resnet, tmp_path / "model")
    _, loaded = load(family_of(task, "resnet18"), tmp_path)
    assert loaded.fresh == ()
    assert loaded.has_trained_head is (task is Task.CLASSIFICATION)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ((Task.CLASSIFICATION, "resnet34"), (Task.CLASSIFICATION, "resnet18"), ("resnet34", "resnet18")),
        ((Task.DETECTION, "yolo11s"), (Task.DETECTION, "yolo11n"), ("yolo11s", "yolo11n")),
        (
            (Task.DETECTION, "fasterrcnn_resnet18_fpn"),
            (Task.SEGMENTATION, "maskrcnn_resnet18_fpn"),
            (
                "fasterrcnn_resnet18_fpn for object-detection",
                "maskrcnn_resnet18_fpn for instance-segmentation",
            ),
        ),
    ],
)
def test_a_run_of_another_model_is_refused_with_both_names(
    tmp_path: Path, before: tuple[Task, str], now: tuple[Task, str], said: tuple[str, str]
) -> None:
    packaged(family_of(*before), tmp_path / "model")
    with pytest.raises(WeightsError) as caught:
        load(family_of(*now), tmp_path)
    for words in (*said, f"--model {before[1]} --task {before[0]}", str(tmp_path)):
        assert words in str(caught.value)


def test_a_run_of_another_size_of_the_model_is_refused(tmp_path: Path) -> None:
    small = family_of(Task.DETECTION, "yolov5", model_size="small")
    packaged(small, tmp_path / "model")
    with pytest.raises(WeightsError, match=r"yolov5 \(yolov5s\), but this run trains yolov5 \(yolov5m\)"):
        load(family_of(Task.DETECTION, "yolov5"), tmp_path)
    assert load(small, tmp_path)[1].fresh == ()


def test_of_a_head_with_norms_only_what_was_trained_is_said_to_be_left(tmp_path: Path) -> None:
    packaged(family_of(Task.DETECTION, "yolo11n"), tmp_path / "model")
    _, loaded = load(family_of(Task.DETECTION, "yolo11n", "x", "y", "z"), tmp_path)
    assert loaded.fresh == loaded.left != ()
    assert all(key.startswith("model.23.cv3.") for key in loaded.fresh)


def test_one_network_under_timms_name_and_ours_is_the_same_model(tmp_path: Path, resnet: Family) -> None:
    packaged(resnet, tmp_path / "model")
    assert load(family_of(Task.CLASSIFICATION, "timm/resnet18"), tmp_path)[1].fresh == ()
    assert load(family_of(Task.MULTILABEL, "timm/resnet18.a1_in1k"), tmp_path)[1].fresh == ()


def test_a_run_of_a_model_that_this_version_does_not_know_is_refused(tmp_path: Path, resnet: Family) -> None:
    artifacts, _ = packaged(resnet, tmp_path / "model")
    spec = resnet.spec.model_copy(update={"model": "resnet9000"})
    (artifacts / "spec.json").write_text(spec.to_json(), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"holds weights of resnet9000 .*, but this run trains resnet18"):
        load(resnet, tmp_path)


def test_a_damaged_spec_is_refused(tmp_path: Path, resnet: Family) -> None:
    artifacts, _ = packaged(resnet, tmp_path / "model")
    (artifacts / "spec.json").write_text('{"model": "resnet18"}', encoding="utf-8")
    with pytest.raises(WeightsError, match=r"spec\.json describes no model"):
        load(resnet, tmp_path)


def test_a_run_that_did_not_end_gives_its_best_checkpoint(tmp_path: Path, resnet: Family) -> None:
    state = resnet.build().state_dict()
    checkpoint = {
        "spec": resnet.spec.model_dump_json(),
        "state_dict": {f"network.{key}": value for key, value in state.items()},
    }
    (tmp_path / "checkpoints").mkdir()
    torch.save(checkpoint, tmp_path / "checkpoints/best.ckpt")
    _, loaded = load(resnet, tmp_path)
    assert loaded.source == str(tmp_path / "checkpoints/best.ckpt")
    assert "has not finished" in str(loaded)
    moved = (tmp_path / "checkpoints/best.ckpt").rename(tmp_path / "mine.ckpt")
    assert load(family_of(Task.CLASSIFICATION, "resnet18", "x", "y", "z"), moved)[1].fresh != ()
    with pytest.raises(
        WeightsError, match="holds weights of resnet18 for image-classification, but this run trains resnet34"
    ):
        load(family_of(Task.CLASSIFICATION, "resnet34"), moved)


@pytest.mark.parametrize(
    ("run", "choice"),
    [
        ("0123456789abcdef0123456789abcdef", "runs:/0123456789abcdef0123456789abcdef"),
        ("AutoML_1f2e_HD_3", "runs:/AutoML_1f2e_HD_3"),
        ("runs:/x/other", "runs:/x/other"),
        ("models:/cans/3", "models:/cans/3"),
        ("no/such/run", "no/such/run"),
    ],
)
def test_a_checkpoint_run_id_is_a_path_or_a_run_of_mlflow(run: str, choice: str) -> None:
    assert of_run(run) == choice
    assert is_address(choice) == (":/" in choice)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tracking store is, which MLflow takes seconds to create."""
    return tmp_path_factory.mktemp("store") / "tracking.db"


@pytest.fixture
def store(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A real tracking store; its URI, which is the user's."""
    uri = f"sqlite:///{database}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)  # where MLflow puts what is logged
    return uri


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's own use of SQLAlchemy
def test_an_mlflow_run_gives_its_model(tmp_path: Path, resnet: Family, store: str) -> None:
    from mlflow.tracking import MlflowClient

    _, state = packaged(resnet, tmp_path / "model")
    client = MlflowClient(tracking_uri=store)
    experiment = client.create_experiment("incremental")
    older, single, sweep, trial = (client.create_run(experiment).info.run_id for _ in range(4))
    published = "outputs/mlflow-model"
    for run, folder in ((older, "model"), (single, published), (trial, published)):
        client.log_artifacts(run, str(tmp_path / "model"), folder)
    for run, best in ((single, single), (sweep, trial)):
        client.set_tag(run, "automl_best_child_run_id", best)
    for run, found in (
        (older, f"runs:/{older}/model"),
        (single, f"runs:/{single}/{published}"),
        (sweep, f"runs:/{trial}/{published}"),
        (trial, f"runs:/{trial}/{published}"),
    ):
        settings = {"checkpoint_run_id": run}
        job = Job(task="image-classification", model="resnet18", training_data="a", settings=settings)
        network, loaded = load(resnet, job.weights_choice)
        assert str(loaded) == f"{len(state)} tensors from {found}"
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_spec_in_mlflow_is_downloaded_once_for_each_version(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import artifacts
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    client.create_registered_model("shapes")
    run = client.create_run(client.create_experiment("versions")).info.run_id
    for version, model in enumerate(("first", "second"), start=1):
        family = family_of(Task.CLASSIFICATION, "resnet18", model)
        packaged(family, tmp_path / model)
        client.log_artifacts(run, str(tmp_path / model), model)
        address = f"{client.get_run(run).info.artifact_uri}/{model}"
        client.create_model_version("shapes", address, run)
        client.set_registered_model_alias("shapes", "best", str(version))
        asked: list[str] = []
        download = artifacts.download_artifacts

        def counted(artifact_uri: str, dst_path: str, download: Any = download, asked: Any = asked) -> Any:
            asked.append(artifact_uri)
            return download(artifact_uri=artifact_uri, dst_path=dst_path)

        with monkeypatch.context() as patch:
            patch.setattr(artifacts, "download_artifacts", counted)
            found = [spec_of("models:/shapes@best") for _ in range(3)]
            assert found == [family.spec] * 3
            assert spec_of(f"models:/shapes/{version}") == family.spec
        assert asked == [f"models:/shapes/{version}"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_that_mlflow_does_not_know_is_refused_with_the_store(resnet: Family, store: str) -> None:
    with pytest.raises(WeightsError) as caught:
        load(resnet, of_run("0123456789abcdef0123456789abcdef"))
    assert f"MLflow found no such model in its store at {store}" in str(caught.value)
    assert "MLFLOW_TRACKING_URI" in str(caught.value)


def test_a_job_trains_an_earlier_run_further(tmp_path: Path) -> None:
    """Two real training runs: the second starts where the first ended, named by checkpoint_run_id."""
    data = make(Task.CLASSIFICATION, tmp_path / "data", images=12, seed=1)
    small = {
        "number_of_epochs": 1,
        "number_of_workers": 0,
        "training_crop_size": 32,
        "training_batch_size": 4,
    }

    def job(output: str, **more: Any) -> Job:
        given: dict[str, Any] = {"validation_crop_size": 32, "learning_rate": 1e-8, **small, **more}
        weights = None if "checkpoint_run_id" in more else "none"
        return Job(
            task="image-classification", model="resnet18", weights=weights, output=tmp_path / output, gpus=0,
            training_data=str(data.train), validation_data=str(data.validation), settings=given,
        )  # fmt: skip

    first = trainer.fit(job("first"))
    second = trainer.fit(job("second", checkpoint_run_id=str(first.directory)))
    before, after = (
        torch.load(run.model / "artifacts/weights.pt", weights_only=True) for run in (first, second)
    )
    assert torch.allclose(before["fc.weight"], after["fc.weight"], atol=1e-5)
    assert "model/artifacts/weights.pt" in second.log.read_text("utf-8")
