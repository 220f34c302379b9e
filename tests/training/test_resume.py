"""A resumed run ends like an uninterrupted one."""

from __future__ import annotations

import csv
import gc
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

import trainer
from tests.training.conftest import job, resume, rows
from trainer.data.samples import SampleData
from trainer.errors import JobError, RunError
from trainer.job.job import Job
from trainer.models import catalog
from trainer.runs import Run
from trainer.tasks import Task
from trainer.training.callbacks import RecordMetrics, StopAt
from trainer.training.checkpoints import KeepBest
from trainer.training.fit import fit
from trainer.training.resume import check_resumable, read_checkpoint

MODELS: list[tuple[Task, str, dict[str, Any]]] = [
    # The first draws random numbers in training steps and averages weights, the second counts epochs itself.
    (
        Task.CLASSIFICATION,
        "timm/test_resnet",
        {"mixup_alpha": 0.4, "random_augment": True, "average_weights": True},
    ),
    (Task.DETECTION, "yolo11n", {}),
]


def metrics_of(run: Run) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows(run)]


class Interrupt(Callback):
    """Fails in the middle of an epoch, counted from 0."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.current_epoch == self.epoch and index == 0:
            raise OSError("the power failed")


@pytest.mark.parametrize(("task", "model", "settings"), MODELS, ids=[model for _, model, _ in MODELS])
def test_resumed_run_equals_an_uninterrupted_one(
    digits: dict[Task, SampleData],
    task: Task,
    model: str,
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    values: dict[str, Any] = {"number_of_epochs": 4, "early_stopping": False, **settings}
    half = Interrupt(values["number_of_epochs"] // 2)
    whole = trainer.fit(job(digits, task, model, tmp_path / "whole", **values))
    gc.collect()  # of a large network
    with pytest.raises(OSError, match="power"):
        trainer.fit(job(digits, task, model, tmp_path / "stopped", **values), callbacks=[half])
    gc.collect()
    run = trainer.resume(tmp_path / "stopped")
    assert metrics_of(run) == metrics_of(whole)
    assert run.predictions.read_text("utf-8") == whole.predictions.read_text("utf-8")
    assert run.read_result().best_epoch == whole.read_result().best_epoch
    assert "resuming from" in run.log.read_text("utf-8")


@pytest.mark.slow
def test_killed_command_is_resumed(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    def command(name: str) -> list[str]:
        data = digits[Task.CLASSIFICATION]
        return [
            *(sys.executable, "-m", "trainer", "fit", "--task", "image-classification", "--seed", "2"),
            *("--data", str(data.train), "--validation-data", str(data.validation), "--weights", "none"),
            *("--model", "timm/test_resnet", "--training-crop-size", "48", "--validation-crop-size", "48"),
            *("--training-batch-size", "8", "--num-workers", "1", "--number-of-epochs", "6"),
            *("--early-stopping-patience", "50", "--output", str(tmp_path / name)),
        ]

    subprocess.run(command("whole"), check=True, timeout=300, capture_output=True)
    killed = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, start_new_session=True)
    metrics, until = tmp_path / "killed" / "metrics.csv", time.monotonic() + 200
    while not (metrics.exists() and len(metrics.read_text("utf-8").splitlines()) > 3):
        assert time.monotonic() < until
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    resumed = [sys.executable, "-m", "trainer", "fit", "--resume", str(tmp_path / "killed")]
    done = subprocess.run(resumed, timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/6" not in done.stdout
    assert "epoch 6/6" in done.stdout
    assert metrics_of(Run(tmp_path / "killed")) == metrics_of(Run(tmp_path / "whole"))


def test_run_without_checkpoint_starts_from_the_beginning(
    digits: dict[Task, SampleData],
    tmp_path: Path,
) -> None:
    with pytest.raises(OSError, match="power"):
        trainer.fit(
            job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run"), callbacks=[Interrupt(0)]
        )
    assert trainer.resume(tmp_path / "run").read_result().epochs == 2


def test_finished_run_is_extended_and_packaged_again(
    digits: dict[Task, SampleData],
    tmp_path: Path,
) -> None:
    first = trainer.fit(job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run"))
    model = (first.model / "artifacts" / "weights.pt").read_bytes()
    with pytest.raises(RunError, match=r"has finished, after 2 of 2 epochs; --number-of-epochs over 2"):
        trainer.resume(first.directory)
    run = trainer.resume(first.directory, {"number_of_epochs": 5, "early_stopping": False})
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3", "4", "5"]
    assert run.read_result().epochs == 5
    assert "number_of_epochs: 5" in run.job.read_text("utf-8")
    if run.read_result().best_epoch > 2:
        assert (run.model / "artifacts" / "weights.pt").read_bytes() != model
    assert not [path.name for path in run.directory.iterdir() if path.name.startswith(".model")]


def test_timed_out_run_is_resumed(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run", number_of_epochs=3)
    run = trainer.fit(wanted, callbacks=[StopAt(0.0)])
    result = run.read_result()
    assert (result.epochs, result.timed_out) == (1, True)
    run = trainer.resume(run.directory)
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3"]
    assert not run.read_result().timed_out
    with pytest.raises(RunError, match=r"has finished, after 3 of 3 epochs"):
        trainer.resume(run.directory)


def test_time_limit_shortens_a_modern_run_to_the_end_of_its_schedule(
    digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()  # two for each epoch: how many more fit, then whether it is late
    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: float(next(ticks))})
    monkeypatch.setattr("trainer.training.callbacks.time", clock)
    wanted = job(
        digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run",
        number_of_epochs=20, recipe="modern", warmup_cosine_lr_warmup_epochs=0, momentum=0.5,
    )  # fmt: skip
    draws = Draws()
    run = fit(wanted, callbacks=[draws, StopAt(9.0)], packages=False)
    assert (draws.epochs[0], draws.epochs[-1]) == ({20}, {5})
    result = run.read_result()
    assert (result.epochs, result.timed_out) == (5, True)
    rates = [float(row["learning_rate"]) for row in rows(run)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0] / 100
    assert "of 20 epochs, as the time limit allows" in run.log.read_text("utf-8")
    assert "the learning rate rises" not in run.log.read_text("utf-8")
    assert "momentum has no effect with optimizer adamw" in run.log.read_text("utf-8")
    resumed = resume(run.directory, {"number_of_epochs": 6})
    assert float(rows(resumed)[5]["learning_rate"]) < float(rows(resumed)[0]["learning_rate"]) / 100
    said = re.search(r"the learning rate rises from (\S+) to (\S+), its", run.log.read_text("utf-8"))
    assert said is not None
    assert float(said[1]) == pytest.approx(rates[-1], rel=1e-2)
    assert float(said[1]) < float(said[2]) < rates[0]


class Draws(Callback):
    """Records the number of epochs that the draws of each epoch name."""

    def __init__(self) -> None:
        self.epochs: list[set[int]] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
        if index == 0:
            assert trainer.train_dataloader is not None
            self.epochs.append({draw.epochs or 20 for draw in trainer.train_dataloader.sampler})


def run_of_epochs(model: str, recipe: str, count: int) -> tuple[Any, Any, list[int]]:
    """What StopAt sees of a trainer and its module, and the numbers of epochs that it chooses."""
    task, chosen = catalog.MODELS[model].tasks[0], []
    strategy = SimpleNamespace(broadcast=lambda value, src: value)
    trained = SimpleNamespace(max_epochs=count, current_epoch=0, strategy=strategy, should_stop=False)
    trained.fit_loop = trained
    trained.train_dataloader = SimpleNamespace(sampler=SimpleNamespace(epochs=count))
    module = SimpleNamespace(
        family=SimpleNamespace(spec=SimpleNamespace(task=task, model=model)),
        settings=SimpleNamespace(recipe=recipe),
        evaluated_epoch=-1,
        timed_out=False,
        train_until=chosen.append,
    )
    return trained, module, chosen


@pytest.mark.parametrize(
    ("model", "recipe", "epochs"),
    [
        ("resnet18", "modern", [8, 20]),
        ("resnet18", "reference", []),  # Azure's schedule stays as it is
        ("dfine-n", "reference", [8, 20]),  # has this recipe alone
    ],
)
def test_epochs_follow_the_time_that_the_last_ones_took(
    model: str, recipe: str, epochs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("trainer.training.callbacks.time", SimpleNamespace(monotonic=lambda: clock[0]))
    trained, module, chosen = run_of_epochs(model, recipe, 20)
    stop = StopAt(40.0)
    stop.on_train_start(trained, module)
    # The first epoch takes 5 of 40 seconds, so that 7 more fit; the second one takes a second.
    timed_out = []
    for trained.current_epoch, clock[0] in ((0, 5.0), (1, 6.0)):
        stop.on_train_epoch_end(trained, module)
        timed_out.append(module.timed_out)
    assert chosen == epochs
    assert trained.train_dataloader.sampler.epochs == 20
    assert timed_out == [bool(epochs), False]


def test_run_that_is_late_still_ends_with_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("trainer.training.callbacks.time", SimpleNamespace(monotonic=lambda: clock[0]))
    trained, module, chosen = run_of_epochs("resnet18", "modern", 20)
    stop = StopAt(5.0)
    stop.on_train_start(trained, module)
    clock[0] = 9.0
    stop.on_train_epoch_end(trained, module)
    assert (chosen, trained.should_stop) == ([2], False)
    assert trained.train_dataloader.sampler.epochs == 2
    trained.current_epoch = module.evaluated_epoch = 1
    stop.on_train_epoch_end(trained, module)
    assert (trained.should_stop, module.timed_out) == (True, True)


def test_run_is_locked_for_other_processes(
    digits: dict[Task, SampleData],
    tmp_path: Path,
) -> None:
    run = trainer.fit(job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run"))
    holder = "import sys,time; from pathlib import Path; from trainer.runs import Run\n"
    holder += "with Run(Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(run.directory)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        with pytest.raises(RunError, match="being trained by another process"):
            trainer.resume(run.directory, {"number_of_epochs": 3})
        process.kill()
        process.wait()
    assert trainer.resume(run.directory, {"number_of_epochs": 3}).read_result().epochs == 3


class Rates(Callback):
    """Records the learning rates by epoch and batch, and the optimizer's groups."""

    def __init__(self) -> None:
        self.rates: dict[tuple[int, int], list[float]] = {}
        self.groups: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
        self.groups = [dict(group) for group in trainer.optimizers[0].param_groups]
        self.rates[trainer.current_epoch, index] = [group["lr"] for group in self.groups]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_new_batch_size_keeps_learning_rate_schedule(
    accumulated: int, digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    def of(name: str, size: int, epochs: int = 4) -> Any:
        values = {"training_batch_size": size, "number_of_epochs": epochs, "early_stopping": False}
        values["gradient_accumulation_step"] = accumulated
        return job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / name, **values)

    whole, resumed = Rates(), Rates()
    fit(of("whole", 3), callbacks=[whole], packages=False)
    with pytest.raises(OSError, match="power"):
        trainer.fit(of("stopped", 8), callbacks=[Interrupt(2)])
    resume(tmp_path / "stopped", {"training_batch_size": 3}, callbacks=[resumed])
    assert len(resumed.rates) == len(whole.rates) / 2
    for place, rates in resumed.rates.items():
        assert rates == pytest.approx(whole.rates[place])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizer_settings_may_change(
    optimizer: str, digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    model = "timm/test_resnet"
    begun = {"number_of_epochs": 3, "optimizer": optimizer, "weight_decay": 0.1, "early_stopping": False}
    with pytest.raises(OSError, match="power"):
        trainer.fit(
            job(digits, Task.CLASSIFICATION, model, tmp_path / "run", **begun), callbacks=[Interrupt(1)]
        )
    changes: dict[str, Any] = {"learning_rate": 1e-4, "weight_decay": 0.0}
    kind = {"sgd": {"momentum": 0.5, "nesterov": False}, "adamw": {"beta1": 0.5, "beta2": 0.6}}[optimizer]
    before, after = Rates(), Rates()
    fresh = job(digits, Task.CLASSIFICATION, model, tmp_path / "fresh", **{**begun, **changes, **kind})
    fit(fresh, callbacks=[before], packages=False)
    resume(tmp_path / "run", {**changes, **kind}, callbacks=[after])
    for one, other in zip(before.groups, after.groups, strict=True):
        assert {k: v for k, v in other.items() if k != "params"} == {
            k: v for k, v in one.items() if k != "params"
        }


def test_settings_that_shape_the_checkpoint_must_not_change(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    begun = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run", number_of_epochs=3)
    with pytest.raises(OSError, match="power"):
        trainer.fit(begun, callbacks=[Interrupt(1)])
    with pytest.raises(JobError) as refused:
        trainer.resume(tmp_path / "run", {"optimizer": "adam", "layers_to_freeze": 2})
    said = str(refused.value)
    assert "optimizer: must stay what the run was started with, sgd, got adam; leave it out, or start" in said
    assert "layers_to_freeze: must stay what the run was started with" in said
    assert f"--weights {tmp_path / 'run'}" in said
    assert "optimizer: adam" not in Run(tmp_path / "run").job.read_text("utf-8")


def test_resume_rejects_another_network(
    digits: dict[Task, SampleData],
    tmp_path: Path,
) -> None:
    run = trainer.fit(job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run"))
    with pytest.raises(RunError, match="checkpoint is of another network"):
        trainer.resume(run.directory, {"number_of_epochs": 3, "validation_crop_size": 40})
    with pytest.raises(JobError, match="number_of_epochs"):
        trainer.resume(run.directory, {"number_of_epochs": 0})


def test_resuming_an_older_run_leaves_out_what_its_recipe_has_gained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Job(
        task="image-classification", model="resnet18", training_data="a", weights="pretrained",
        settings={"recipe": "modern"},
    ).to_yaml()  # fmt: skip
    newer = "  interpolation: published\n"
    assert newer in lines
    lines = lines.replace(newer, "")
    (tmp_path / "job.yaml").write_text(lines, "utf-8")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    jobs: list[Job] = []
    monkeypatch.setattr("trainer.training.fit.fit", lambda job, **_: jobs.append(job))
    trainer.resume(tmp_path)
    settings = jobs[0].resolve_settings()
    assert (settings.recipe, settings.optimizer, settings.interpolation) == ("modern", "adamw", "bilinear")
    check_resumable(Run(tmp_path), settings)


def test_export_setting_may_change(
    digits: dict[Task, SampleData],
    tmp_path: Path,
) -> None:
    run = trainer.fit(job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run"))
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    spec = json.loads(checkpoint["spec"])
    assert spec.pop("enable_onnx_normalization") is False
    torch.save({**checkpoint, "spec": json.dumps(spec)}, run.last_checkpoint)  # as earlier versions wrote it
    resumed = trainer.resume(run.directory, {"number_of_epochs": 3, "enable_onnx_normalization": True})
    kept = torch.load(resumed.last_checkpoint, weights_only=True)["spec"]
    assert json.loads(kept)["enable_onnx_normalization"] is True


@pytest.mark.parametrize(
    "content", ["epoch;loss\n1;0.5\n", "epoch,loss\n1,low\n", "epoch,loss\n1,0.5,0.7\n", "epoch"]
)
def test_damaged_metrics_csv_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    record = RecordMetrics(Run(tmp_path), KeepBest("accuracy"))
    at_second_epoch: Any = SimpleNamespace(is_global_zero=True, current_epoch=1)
    with pytest.raises(RunError, match=r"metrics\.csv: is damaged, .* or move it away to resume"):
        record.on_train_start(at_second_epoch, None)
    assert path.read_text() == content


def test_metrics_are_appended_and_a_torn_line_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(epoch: int, metrics: dict[str, float]) -> RecordMetrics:
        recorder.on_train_epoch_start(at(epoch), None)
        classes = {"a\u2028b": {"recall": epoch / 10}, "c": {"recall": 1.0}} if metrics else {}
        module: Any = SimpleNamespace(
            evaluated_epoch=epoch - 1,
            metrics=metrics,
            metrics_by_class=classes,
            losses_of_all=lambda: {"loss": 1.0},
        )
        recorder.on_train_epoch_end(at(epoch), module)
        return recorder

    def at(epoch: int) -> Any:
        optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
        return SimpleNamespace(
            is_global_zero=True, current_epoch=epoch - 1, max_epochs=9, optimizers=[optimizer]
        )

    run = Run(tmp_path)
    recorder = RecordMetrics(run, KeepBest("accuracy"))
    record(1, {})
    record(2, {"accuracy": 0.5})  # a new column
    before = run.metrics.stat().st_ino, run.class_metrics.stat().st_ino
    record(3, {"accuracy": 0.75})
    record(4, {})
    assert (run.metrics.stat().st_ino, run.class_metrics.stat().st_ino) == before  # not written again
    assert [row["accuracy"] for row in rows(run)] == ["", "0.5", "0.75", ""]
    with run.class_metrics.open("a", encoding="utf-8") as file:
        file.write("1")  # the start of epoch 12
    recorder = RecordMetrics(run, KeepBest("accuracy"))
    recorder.on_train_start(at(4), None)  # after epoch 3
    record(4, {"accuracy": 1.0})
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3", "4"]
    lines = list(csv.reader(run.class_metrics.read_text("utf-8").split("\n")))
    assert [line[:2] for line in lines if line] == [
        ["epoch", "class"], *([str(epoch), name] for epoch in (2, 3, 4) for name in ("a\u2028b", "c"))
    ]  # fmt: skip


@pytest.mark.parametrize("content", [{"epoch": 1}, [1, 2]])
def test_file_that_is_not_a_checkpoint_of_a_run_is_an_error(tmp_path: Path, content: Any) -> None:
    run = Run(tmp_path)
    run.checkpoints.mkdir()
    torch.save(content, run.last_checkpoint)
    with pytest.raises(RunError, match=r"last\.ckpt: this version cannot resume from it"):
        read_checkpoint(run)
