"""Runs that start from a probe: a logistic regression as the head, evaluated as epoch 0."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import trainer
from tests.training.conftest import job, resume, rows
from tests.training.test_resume import Interrupt, metrics_of
from trainer.data.datasets import RecordExamples
from trainer.data.samples import SampleData
from trainer.errors import JobError
from trainer.job.job import Job
from trainer.models import create, specify
from trainer.models.weights.reading import SPEC_KEY, read_spec, scored
from trainer.runs import Run
from trainer.tasks import Task
from trainer.training import probe
from trainer.training.callbacks import StopAt
from trainer.training.fit import fit
from trainer.training.job_data import load_data
from trainer.training.probe import NotLinearError, head_inputs
from trainer.training.resume import read_checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file like those that timm publishes; random features do for a probe of digits."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    return str(file)


def probing(
    digits: dict[Task, SampleData],
    weights: str,
    output: Path,
    task: Task = Task.CLASSIFICATION,
    **settings: Any,
) -> Job:
    values = {"recipe": "reference", "probe_first": True, "early_stopping": False, **settings}
    return job(digits, task, "timm/test_resnet", output, **values).changed(weights=weights)


def fit_without_model(wanted: Job, **more: Any) -> Run:
    return fit(wanted, packages=False, **more)


def features_and_targets(run: Run) -> dict[str, tuple[Any, Any]]:
    """The head's inputs for the training and the validation images, and their targets."""
    checkpoint = torch.load(run.best_checkpoint, weights_only=True)
    family = create(read_spec(checkpoint[SPEC_KEY], run.best_checkpoint))
    network = family.build().eval()
    network.load_state_dict(scored(checkpoint["state_dict"]))
    data = load_data(Job.read(run.job), 7)
    found = {}
    for name, records in (("training", data.train), ("validation", data.validation)):
        examples = RecordExamples(records, data.classes)
        images = torch.stack([family.preprocess(examples[i].image)[0] for i in range(len(examples))])
        with torch.inference_mode():
            found[name] = head_inputs(family, network, images).numpy(), np.array(examples.targets)
    return found


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTILABEL])
def test_packaged_probe_predicts_what_scikit_learn_does(
    digits: dict[Task, SampleData], weights: str, task: Task, tmp_path: Path
) -> None:
    run = trainer.fit(
        probing(digits, weights, tmp_path / "run", task, number_of_epochs=0, average_weights=True)
    )
    said = run.log.read_text("utf-8")
    strength = float(re.search(r"probe: .* C = (\S+) \(by [2-5]-fold cross-validation", said)[1])  # type: ignore[index]
    found = features_and_targets(run)
    regression: Any = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
    if task is Task.MULTILABEL:
        regression = OneVsRestClassifier(regression)
    expected = make_pipeline(StandardScaler(), regression).fit(*found["training"])
    answers = [json.loads(line) for line in run.predictions.read_text("utf-8").splitlines()]
    wanted = expected.predict_proba(found["validation"][0])
    assert np.array([answer["probs"] for answer in answers]) == pytest.approx(wanted, abs=1e-4)

    (row,) = rows(run)
    result = run.read_result()
    assert (row["epoch"], result.best_epoch, result.epochs) == ("0", 0, 0)
    assert float(row[result.primary_metric]) == pytest.approx(result.value)
    assert result.best_epoch_chosen_on == f"{len(answers)} validation images"
    assert "best epoch: 0 (the probe) of 0" in said
    features, targets = found["training"]
    odds = torch.from_numpy(expected.predict_proba(features)).double()
    truth = (
        torch.from_numpy(targets) if task is Task.MULTILABEL else nn.functional.one_hot(torch.tensor(targets))
    )
    loss = (
        nn.functional.binary_cross_entropy(odds, truth.double())
        if task is Task.MULTILABEL
        else -(odds.log() * truth).sum(1).mean()
    )
    assert result.metrics["log_loss_train"] == pytest.approx(float(loss), abs=1e-4)
    html = run.report.read_text("utf-8")
    assert "0 (the probe) of 0" in html
    assert f"{len(answers)} validation images" in html


def test_run_resumes_from_its_probe(
    digits: dict[Task, SampleData], weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    regress = probe.fit
    monkeypatch.setattr(probe, "fit", lambda *args, **more: (calls.append(args), regress(*args, **more))[1])
    # These data are too balanced for weights of their own.
    monkeypatch.setattr(
        "trainer.models.image_classifiers.class_weights", lambda _, classes, *__: torch.ones(classes)
    )
    weighted = {"balanced_sampling": True}
    whole = fit_without_model(probing(digits, weights, tmp_path / "whole", **weighted))
    assert [row["epoch"] for row in rows(whole)] == ["0", "1", "2"]
    assert (whole.report_parts / "metric-by-epoch.svg").exists()
    class_weights, image_weights = calls[0][3:]
    assert class_weights.tolist() == [1.0] * len(class_weights)
    assert image_weights.sum() == pytest.approx(1)

    with pytest.raises(OSError, match="power"):
        fit_without_model(
            probing(digits, weights, tmp_path / "stopped", **weighted), callbacks=[Interrupt(0)]
        )
    stopped = Run.open(tmp_path / "stopped")
    checkpoint = read_checkpoint(stopped)
    assert checkpoint is not None
    assert (checkpoint.epoch, checkpoint.best_epoch) == (-1, 0)
    resumed = resume(stopped.directory, {})
    assert metrics_of(resumed) == metrics_of(whole)
    assert resumed.read_result().best_epoch == whole.read_result().best_epoch

    alone = fit_without_model(probing(digits, weights, tmp_path / "alone", **weighted, number_of_epochs=0))
    with pytest.raises(JobError, match="probe_first: must stay what the run was started with"):
        resume(alone.directory, {"probe_first": False, "number_of_epochs": 2})
    assert metrics_of(resume(alone.directory, {"number_of_epochs": 2})) == metrics_of(whole)
    assert len(calls) == 3  # no resumed run fitted another


def test_time_limit_leaves_the_probe(digits: dict[Task, SampleData], weights: str, tmp_path: Path) -> None:
    late = StopAt(time.monotonic())
    run = fit_without_model(probing(digits, weights, tmp_path / "run"), callbacks=[late])
    result = run.read_result()
    assert (result.epochs, result.best_epoch, result.timed_out) == (0, 0, True)
    assert run.best_checkpoint.exists()


def test_frozen_backbone_trains_the_head_alone(
    digits: dict[Task, SampleData], weights: str, tmp_path: Path
) -> None:
    wanted = probing(
        digits, weights, tmp_path / "run", freeze="backbone", number_of_epochs=1, learning_rate=0.1,
        label_smoothing=0.3,
    )  # fmt: skip
    fit_without_model(wanted)
    file = torch.load(weights) if weights.endswith(".pt") else timm.models.load_state_dict(weights)
    trained = scored(torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"])
    head = {name for name in trained if trained[name].shape != file[name].shape}
    assert len(head) == 2
    assert all(torch.equal(trained[name], file[name]) for name in trained.keys() - head)
    probed = scored(read_state(tmp_path / "run/checkpoints/previous.ckpt"))
    assert not any(torch.equal(trained[name], probed[name]) for name in head)


def read_state(file: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(file, weights_only=True)["state_dict"]
    return state


class TwoHeads(nn.Module):
    """Its logits are the mean of two linear layers, as those of timm's distilled DeiT."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.other = nn.Linear(4, 2), nn.Linear(4, 2)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, images: Tensor) -> Tensor:
        features = images.flatten(1)[:, :4]
        return (self.fc(features) + self.other(features)) / 2


@pytest.mark.parametrize(
    "network", [TwoHeads(), timm.create_model("test_convnext", num_classes=2), nn.Conv2d(3, 2, 8)]
)
def test_only_a_head_that_gives_the_logits_alone_is_probed(
    digits: dict[Task, SampleData], network: nn.Module, tmp_path: Path
) -> None:
    model = "timm/test_resnet"
    settings = job(digits, Task.CLASSIFICATION, model, tmp_path).resolve_settings()
    family = create(specify(Task.CLASSIFICATION, model, settings, ("a", "b"), pretrained=True))
    images = torch.randn(2, 3, 48, 48)
    network.eval()
    if isinstance(network, (TwoHeads, nn.Conv2d)):
        with pytest.raises(NotLinearError):
            head_inputs(family, network, images)
    else:
        head = family.linear_head(network)
        assert head is not None
        assert torch.allclose(head(head_inputs(family, network, images)), network(images))


def test_head_that_is_not_linear_is_not_probed(
    digits: dict[Task, SampleData], weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_TOLERANCE", -1.0)
    run = fit_without_model(probing(digits, weights, tmp_path / "run", number_of_epochs=1))
    assert [row["epoch"] for row in rows(run)] == ["1"]
    assert "no probe: the logits of timm/test_resnet are not those of one linear layer" in run.log.read_text()
    with pytest.raises(JobError, match="number_of_epochs: must be greater than 0, because the logits"):
        fit_without_model(probing(digits, weights, tmp_path / "none", number_of_epochs=0))


def test_trained_head_is_kept(digits: dict[Task, SampleData], weights: str, tmp_path: Path) -> None:
    trained = {"probe_first": False, "number_of_epochs": 1}
    earlier = fit_without_model(probing(digits, weights, tmp_path / "earlier", **trained))
    start = str(earlier.directory)
    hardly = {"number_of_epochs": 1, "learning_rate": 1e-9, "freeze_batch_norm": True}
    run = fit_without_model(probing(digits, start, tmp_path / "run", **hardly))
    assert "no probe: the weights bring a head trained for the same classes" in run.log.read_text("utf-8")
    (row,) = rows(run)
    assert row["epoch"] == "1"
    assert float(row["log_loss"]) == pytest.approx(earlier.read_result().metrics["log_loss"], abs=1e-4)
    # Without an epoch to train, the probe is what was asked for.
    alone = fit_without_model(probing(digits, start, tmp_path / "alone", number_of_epochs=0))
    assert [row["epoch"] for row in rows(alone)] == ["0"]


@pytest.mark.slow
def test_ranks_probe_together(digits: dict[Task, SampleData], weights: str, tmp_path: Path) -> None:
    one, two = (
        fit_without_model(
            probing(digits, weights, tmp_path / str(processes), number_of_epochs=0).changed(
                processes=processes
            )
        )
        for processes in (1, 2)
    )
    assert [read_result_metrics(two)] == [pytest.approx(read_result_metrics(one), abs=1e-5)]


def read_result_metrics(run: Run) -> dict[str, float]:
    return run.read_result().metrics
