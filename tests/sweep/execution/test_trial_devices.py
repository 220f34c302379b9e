"""Trials on several devices each: how these are divided, and what the ranks of a trial do together."""

from __future__ import annotations

import csv
import textwrap
import time
from pathlib import Path
from threading import Thread
from typing import Any

import optuna
import pytest
import torch

import trainer
from tests.sweep.processes import trial_processes
from trainer.data.samples import SampleData, make
from trainer.errors import JobError, NoMemoryError, RunError
from trainer.job.job import Job
from trainer.runs import Run
from trainer.sweep.attempts import trial_number
from trainer.sweep.execution import study_setup
from trainer.sweep.execution.join import join_sweep
from trainer.sweep.execution.slots import Slot, make_slots
from trainer.sweep.execution.storage import open_storage, quiet
from trainer.tasks import Task

MODEL = "timm/test_resnet"
SMALL = {
    "number_of_epochs": 2,
    "number_of_workers": 0,
    "random_seed": 4,
    "training_crop_size": 32,
    "validation_crop_size": 32,
    "training_batch_size": 4,
    "early_stopping": False,
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> SampleData:
    return make(Task.CLASSIFICATION, tmp_path_factory.mktemp("digits"), images=20, seed=1)


def job(digits: SampleData, output: Path | None, *spaces: dict[str, Any], **values: Any) -> Job:
    known: dict[str, Any] = {
        "task": Task.CLASSIFICATION,
        "training_data": (str(digits.train),),
        "validation_data": (str(digits.validation),),
        "model": MODEL,
        "weights": "none",
        "output": output,
        "search_space": spaces,
        "settings": SMALL,
        "tracking_uri": "none",
    }
    return Job(**{**known, **values})


def table(run: Path) -> list[dict[str, str]]:
    with (run / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def choice(*values: Any) -> dict[str, Any]:
    return {"type": "choice", "values": list(values)}


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("gpus", "count", "expected"),
    [
        (4, 2, [("0", "1"), ("2", "3")]),
        ("auto", 2, [("0", "1"), ("2", "3")]),
        ("auto", 4, [("0",), ("1",), ("2",), ("3",)]),
        (4, 3, [("0",), ("1",), ("2",)]),
        (2, 4, [("0",), ("1",)]),
        (0, 2, [(), ()]),
    ],
)
def test_gpus_are_divided_among_the_trials(
    digits: SampleData, gpus: int | str, count: int, expected: list[tuple[str, ...]]
) -> None:
    assert [slot.gpus for slot in make_slots(job(digits, None, gpus=gpus), count)] == expected


@pytest.mark.usefixtures("four_gpus")
def test_those_that_are_visible_are_divided(digits: SampleData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-5b,2,3")
    assert make_slots(job(digits, None, gpus=4), 2)[0].gpus == ("7", "GPU-5b")
    with pytest.raises(JobError, match="--gpus: must be at most the GPUs of this machine, 4, got 5"):
        make_slots(job(digits, None, gpus=5), 2)


def test_the_cores_of_processes_are_divided(digits: SampleData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.sweep.execution.slots.available_cores", lambda: 16)
    assert make_slots(job(digits, None, processes=2), 2) == [Slot((), 4, 8)] * 2


@pytest.mark.slow
@pytest.mark.usefixtures("four_gpus")
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about what trials without GPUs say")
def test_each_trials_process_is_given_its_gpus(
    digits: SampleData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are none, so the trials' processes refuse, and say what they were given and asked to use."""
    monkeypatch.setattr("trainer.training.devices.check_cuda_in_subprocess", lambda: None)
    run = tmp_path / "run"
    with pytest.raises(RunError, match="no trial finished"):
        trainer.fit(
            job(
                digits,
                run,
                {"learning_rate": choice(0.1, 0.2)},
                gpus=4,
                limits={"max_trials": 2, "max_concurrent_trials": 2},
                sweep={"sampling_algorithm": "grid"},
            )
        )
    reasons = [row["reason"] for row in table(run)]
    for visible in ("0,1", "2,3"):
        said = f"got 2, but this machine has none with CUDA_VISIBLE_DEVICES={visible};"
        assert sum(said in reason for reason in reasons) == 1, reasons


SMALL_MEMORY = '''
"""From the second epoch on, rank 1 has no memory for a forward pass of more than 4 images.

Until then there is memory to spare, so the ranks exchange gradients during the backward pass.
"""

import torch
from lightning import Callback


class SmallMemory(Callback):
    def on_fit_start(self, trainer, module):
        def before(network, inputs):
            if network.training and trainer.current_epoch > 0 and len(inputs[0]) > 4:
                torch.empty(2**55, dtype=torch.uint8)

        module._overlaps = True
        module._has_memory_to_spare = lambda: True
        if trainer.global_rank == 1:
            module.network.register_forward_pre_hook(before)


def callbacks():
    return SmallMemory()
'''


@pytest.fixture
def small_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning loads the callbacks that installed packages offer, in every process."""
    package = tmp_path / "packages"
    (package / "small_memory-1.dist-info").mkdir(parents=True)
    (package / "small_memory-1.dist-info" / "METADATA").write_text("Name: small-memory\nVersion: 1\n")
    (package / "small_memory-1.dist-info" / "entry_points.txt").write_text(
        "[lightning.pytorch.callbacks_factory]\nsmall = small_memory:callbacks\n"
    )
    (package / "small_memory.py").write_text(textwrap.dedent(SMALL_MEMORY))
    monkeypatch.setenv("PYTHONPATH", str(package), prepend=":")


def large_batches(digits: SampleData) -> dict[str, Any]:
    """Of a training for which rank 1 has no memory: all of its images at once, of a network that learns them.

    A ViT has no batch statistics, so that parts of batches train what the whole ones do.
    """
    return {
        "model": "timm/test_vit",
        "processes": 2,
        "validation_data": (str(digits.train),),
        "settings": {
            **SMALL, "optimizer": "adamw", "learning_rate": 0.003,
            "training_batch_size": 8, "number_of_epochs": 3,
        },
    }  # fmt: skip


def losses(run: Run) -> list[float]:
    with run.metrics.open(encoding="utf-8") as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(digits: SampleData, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of that training with enough memory."""
    return losses(trainer.fit(job(digits, tmp_path_factory.mktemp("whole") / "run", **large_batches(digits))))


@pytest.mark.slow
@pytest.mark.usefixtures("small_memory")
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_the_ranks_of_a_trial_are_one_trial(digits: SampleData, whole: list[float], tmp_path: Path) -> None:
    """Two trials of two processes each at a time: one ends well, one is pruned, one lacks memory."""
    run = trainer.fit(
        job(
            digits,
            tmp_path / "run",
            {"learning_rate": choice(0.003), "training_batch_size": 4, "number_of_epochs": 4},
            # Nothing is learned at a rate of 0; it would take longer than anybody waits.
            {"learning_rate": choice(0.0), "training_batch_size": 4, "number_of_epochs": 100_000},
            {"training_batch_size": choice(8)},
            **large_batches(digits),
            limits={"max_trials": 3, "max_concurrent_trials": 2},
            sweep={
                "sampling_algorithm": "grid",
                "early_termination": {"type": "bandit", "slack_amount": 0.01, "evaluation_interval": 4},
            },
        )
    ).directory
    rows = table(run)
    assert [row["state"] for row in rows] == ["complete", "pruned", "complete"], rows
    assert [row["attempts"] for row in rows] == ["1", "1", "2"]
    for row in rows:
        log = Run(Path(row["directory"])).log.read_text("utf-8")
        assert "training on 2 processes on the CPU" in log
    # Of a group of ranks one alone reports, once an evaluation.
    study = optuna.load_study(study_name=None, storage=open_storage(f"sqlite:///{run / 'study.db'}"))
    trials = study.get_trials()
    assert sorted(trial_number(trial) for trial in trials) == [0, 1, 2, 2]
    for trial in trials:
        steps = sorted(trial.intermediate_values)
        assert steps == list(range(1, len(steps) + 1))
    # Both ranks ended when the policy said so, at an evaluation.
    assert int(rows[1]["epochs"]) % 4 == 0
    assert not trial_processes(run)
    # Memory ran out at rank 1, and what was tried again needs half as much for the same steps.
    lacking = next(trial for trial in trials if trial.user_attrs.get("no_memory"))
    assert "rank 1: epoch 2: cpu ran out of memory with batches of 8 images" in lacking.user_attrs["reason"]
    assert (rows[2]["batch_parts"], rows[2]["training_batch_size"], rows[2]["epochs"]) == ("2", "8", "3")
    log = (run / "trials" / "0002" / "trainer.log").read_text("utf-8")
    assert "splitting each batch into 2 micro-batches" in log
    assert "resuming from" in log
    assert losses(Run(run / "trials" / "0002")) == pytest.approx(whole, abs=2e-4)


@pytest.mark.slow
def test_machines_end_their_trials_at_the_sweeps_deadline(digits: SampleData, tmp_path: Path) -> None:
    """A sweep that another machine began: two workers' trials end at the same time, and none begins after."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    wanted = job(
        digits,
        None,
        {"learning_rate": {"type": "uniform", "min_value": 0.001, "max_value": 0.01}},
        gpus=0,
        limits={"max_trials": 20, "timeout_minutes": 1},
        settings={**SMALL, "number_of_epochs": 100_000},
    )
    with quiet():
        study = optuna.create_study(study_name="shared", storage=open_storage(storage), direction="maximize")
    deadline = time.time() + 12
    study_setup.open_to_workers(study, wanted, Run(tmp_path), deadline=deadline, tracking=("none", None))
    counts: dict[str, int] = {}

    def machine(name: str) -> None:
        counts[name] = join_sweep(storage, "shared", output=tmp_path / name, gpus=0)

    machines = [Thread(target=machine, args=(name,)) for name in ("one", "two")]
    for thread in machines:
        thread.start()
    for thread in machines:
        thread.join(timeout=300)
    trials = study.get_trials()
    assert sum(counts.values()) == len(trials) == 2, counts
    for trial in trials:
        assert trial.state.name == "COMPLETE"
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        assert trial.datetime_start.timestamp() < deadline < trial.datetime_complete.timestamp()
        assert 0 < trial.user_attrs["epochs"] < 100_000
        assert Run(Path(trial.user_attrs["directory"])).best_checkpoint.exists()
    # What joins later finds nothing to do.
    assert join_sweep(storage, "shared", output=tmp_path / "late", gpus=0) == 0
    assert len(study.get_trials()) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("small_memory")
def test_who_trains_on_two_ranks_is_told_how_to_go_on(
    digits: SampleData, whole: list[float], tmp_path: Path
) -> None:
    """And the advice helps."""
    with pytest.raises(NoMemoryError, match=r"--training-batch-size 4 --gradient-accumulation-step 2`"):
        trainer.fit(job(digits, tmp_path / "run", **large_batches(digits)))
    run = trainer.resume(tmp_path / "run", {"training_batch_size": 4, "gradient_accumulation_step": 2})
    assert "resuming from" in run.log.read_text("utf-8")
    assert losses(run) == pytest.approx(whole, abs=2e-4)
