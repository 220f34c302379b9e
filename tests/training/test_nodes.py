"""Several processes, on one machine or more, train one model; what happens to one is heard of by all."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

import trainer
from tests.training.conftest import rows
from trainer.data.samples import SampleData
from trainer.errors import TrainingError
from trainer.job import Job
from trainer.runs import Run
from trainer.tasks import Task

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"

# A ViT has no batch norms: ranks that share a batch train what one does with all of it.
VIT = {"validation_crop_size": 32, "training_crop_size": 32, "number_of_workers": 0, "seed": 3}


def job(data: SampleData, output: Path, model: str = "timm/test_vit", **values: Any) -> Job:
    settings = {"number_of_workers": 0, "seed": 3, **values.pop("settings", {})}
    task = Task.CLASSIFICATION if model.startswith("timm/") else Task.DETECTION
    places = {"training_data": str(data.train), "validation_data": str(data.validation), "output": output}
    fixed = {"task": task, "model": model, "weights": "none", "gpus": 0, "tracking_uri": "none"}
    return Job(**{**places, **fixed, "settings": settings, **values})


def figures(run: Run) -> list[dict[str, float]]:
    return [
        {name: float(value or "nan") for name, value in row.items() if name != "seconds"} for row in rows(run)
    ]


def assert_same(run: Run, other: Run, tolerance: float = 2e-4) -> None:
    expected = figures(other)
    assert len(figures(run)) == len(expected)
    for row, wanted in zip(figures(run), expected, strict=True):
        assert row == pytest.approx(wanted, abs=tolerance, nan_ok=True)


@pytest.fixture(scope="module")
def whole(digits: dict[Task, SampleData], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One process, batches of 8, 6 epochs."""
    output = tmp_path_factory.mktemp("whole") / "run"
    settings = {**VIT, "training_batch_size": 8, "number_of_epochs": 6, "early_stopping_patience": 50}
    return trainer.fit(job(digits[Task.CLASSIFICATION], output, settings=settings))


def arguments(data: SampleData, *more: object) -> list[str]:
    """Of the command that does on two ranks what `whole` is."""
    words = [
        *("fit", "--task", "image-classification", "--data", data.train),
        *("--validation-data", data.validation, "--model", "timm/test_vit", "--weights", "none"),
        *("--validation-crop-size", 32, "--training-crop-size", 32, "--num-workers", 0, "--seed", 3),
        *("--training-batch-size", 4, "--number-of-epochs", 6, "--early-stopping-patience", 50),
        *("--tracking-uri", "none", *more),
    ]
    return list(map(str, words))


def start(command: Sequence[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 200) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def an_epoch_is_over(folder: Path) -> bool:
    """The run in it, or under it, can go on."""
    return any(folder.glob("**/checkpoints/last.ckpt"))


def children(process: subprocess.Popen[str]) -> list[int]:
    return list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def free_port(low: int = 15000) -> int:
    for port in range(low + os.getpid() % 5000, low + 10000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


@contextmanager
def no_warnings_of_torch() -> Iterator[None]:
    """This process stands for the user's, in which warnings are no errors."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.slow
def test_a_killed_rank_ends_the_training_and_resume_goes_on(
    digits: dict[Task, SampleData], whole: Run, tmp_path: Path
) -> None:
    data = digits[Task.CLASSIFICATION]
    command = [sys.executable, "-m", "trainer", *arguments(data, "--processes", 2, "--output", "run")]
    process = start(command, tmp_path)
    wait_for(lambda: an_epoch_is_over(tmp_path), process)
    (rank,) = children(process)
    os.kill(rank, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.startswith("error: rank 1 ended (signal 9, SIGKILL")
    assert "trainer fit --resume run" in said
    assert "Traceback" not in said
    assert "gloo" in (tmp_path / "run" / "trainer.log").read_text("utf-8")

    with no_warnings_of_torch():
        run = trainer.resume(tmp_path / "run")
    assert_same(run, whole)
    assert "going on from" in run.log.read_text("utf-8")


@pytest.mark.slow
def test_two_torchrun_nodes_train_together(
    digits: dict[Task, SampleData], whole: Run, tmp_path: Path
) -> None:
    def nodes(*words: str) -> list[subprocess.Popen[str]]:
        port = str(free_port(25000))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        torchrun += ["--master_addr", "127.0.0.1", "--master_port", port]
        return [
            start([*torchrun, "--node_rank", str(node), "-m", "trainer", *words], tmp_path)
            for node in range(2)
        ]

    # Neither is told where the other writes.
    first, second = nodes(*arguments(digits[Task.CLASSIFICATION], "--gpus", 0))
    wait_for(lambda: an_epoch_is_over(tmp_path), first)
    (run,) = [Run(directory) for directory in (tmp_path / "runs").iterdir()]
    (rank,) = children(second)
    os.kill(rank, signal.SIGKILL)
    said = [process.communicate(timeout=60) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [1, 1]
    assert "error: another rank does not answer any more" in said[0][1]
    assert "SIGKILL" in said[1][1]
    assert said[1][0] == ""

    processes = nodes("fit", "--resume", str(run.directory))
    said = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert said[0][0].count("epoch 6/6") == 1
    assert "training on 2 machines with 1 process on the CPU each" in said[0][0]
    assert said[1][0] == ""
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.directory.name]
    assert_same(run, whole)


SRUN = """#!/bin/bash
# What srun does with --nodes=2 --ntasks-per-node=1, on one machine.
while [[ $1 == -* ]]; do shift; done
export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=2 SLURM_STEP_ID=0 SLURM_STEP_NODELIST=localhost,other
for task in 0 1; do
    SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 "$@" &
done
wait -n && wait -n
"""


@pytest.mark.slow
def test_the_slurm_script_trains_on_two_machines(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    wanted = job(
        digits[Task.CLASSIFICATION], tmp_path / "none", settings={**VIT, "number_of_epochs": 1, "seed": None}
    )
    (tmp_path / "job.yml").write_text(wanted.to_yaml(), encoding="utf-8")
    shell = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m trainer "$@"\n'
    for name, text in (("srun", SRUN), ("trainer", shell)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(free_port() - 15000),
        "SLURM_CPUS_PER_TASK": "1",
    }
    script = ["bash", str(EXAMPLES / "slurm-fit.sh"), "job.yml", "run"]
    process = start(script, tmp_path, **environment)
    said, errors = process.communicate(timeout=200)
    assert (process.returncode, errors) == (0, ""), said
    assert said.count("epoch 1/1") == 1
    assert "training on 2 machines" in said
    assert "random_seed: 0" in said
    assert Run(tmp_path / "run").read_result().epochs == 1

    process = start(script, tmp_path, **environment)
    assert process.communicate(timeout=200) == ("run has finished\n", "")


@pytest.mark.slow
def test_two_ranks_of_a_detector_take_the_step_that_one_does(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    """Of one image all parts of a batch are alike, so that batch norms and the losses' divisors are, too.

    What is left to differ is how the ranks' gradients add up to the batch's.
    """
    source = digits[Task.DETECTION]
    line = json.loads(source.train.read_text("utf-8").splitlines()[0])
    # Large enough for a network that begins from nothing to find it, so that all losses count.
    box = {"label": "one", "topX": 0.02, "topY": 0.02, "bottomX": 0.98, "bottomY": 0.98}
    lines = [{"label": [box], "image_url": f"{number}.png"} for number in range(8)]
    for copied in lines:
        shutil.copyfile(source.train.parent / line["image_url"], tmp_path / copied["image_url"])
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    still = {"apply_mosaic_for_yolo": False, "apply_automl_train_augmentations": False}
    settings = {"image_size": 96, "advanced_settings": still, "gradient_clip_value": 1e9}
    settings |= {"warmup_cosine_lr_warmup_epochs": 0, "number_of_epochs": 1}
    weights, losses = [], []
    # Without a step, with one, with one of two ranks.
    for number, (processes, rate) in enumerate(((1, 0.0), (1, 1e-4), (2, 1e-4))):
        sizes = {"training_batch_size": 8 // processes, "learning_rate": rate}
        wanted = job(
            source, tmp_path / str(number), "yolo11n", processes=processes,
            training_data=str(tmp_path / "train.jsonl"), settings={**settings, **sizes},
        )  # fmt: skip
        with no_warnings_of_torch():
            run = trainer.fit(wanted)
        losses.append(figures(run)[0]["train_loss"])
        state = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
        learned = [state[name] for name in state if name.endswith((".weight", ".bias"))]
        weights.append(torch.cat([tensor.flatten() for tensor in learned]))
    # A CPU's batch norms round a little differently for batches of other sizes.
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)
    step = torch.linalg.vector_norm(weights[1] - weights[0])
    assert torch.linalg.vector_norm(weights[2] - weights[1]) < 0.05 * step


@pytest.mark.slow
def test_what_was_scored_is_what_is_packaged(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    """Every rank has batch norms of its own; all score with those of the first, which are saved."""
    data = digits[Task.CLASSIFICATION]
    settings = {"training_crop_size": 48, "validation_crop_size": 48, "training_batch_size": 4}
    wanted = job(
        data, tmp_path / "run", "timm/test_resnet", processes=2,
        settings={**settings, "number_of_epochs": 1, "learning_rate": 0.1},
    )  # fmt: skip
    with no_warnings_of_torch():
        run = trainer.fit(wanted)
    answers = [json.loads(line) for line in run.predictions.read_text("utf-8").splitlines()]
    labels = [json.loads(line)["label"] for line in data.validation.read_text("utf-8").splitlines()]
    losses = [
        -math.log(a["probs"][a["labels"].index(label)]) for a, label in zip(answers, labels, strict=True)
    ]
    assert run.read_result().metrics["log_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("rfdetr") is None, reason="rfdetr, an extra, is not installed")
def test_ranks_may_have_unlike_numbers_of_validation_batches(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    """rfdetr's own loss would wait for a batch that the other rank does not have."""
    source = digits[Task.DETECTION]
    for name, file, count in (("train", source.train, 4), ("validation", source.validation, 3)):
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()[:count]]
        for line in lines:
            line["image_url"] = str(file.parent / line["image_url"])
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    settings = {"image_size": 96, "training_batch_size": 2, "validation_batch_size": 1, "number_of_epochs": 1}
    wanted = job(
        source, tmp_path / "run", "rfdetr-nano", processes=2, settings=settings,
        training_data=str(tmp_path / "train.jsonl"), validation_data=str(tmp_path / "validation.jsonl"),
    )  # fmt: skip
    with no_warnings_of_torch():
        run = trainer.fit(wanted)
    assert math.isfinite(run.read_result().metrics["log_loss"])


class FailOn(Callback):
    """One rank cannot go on."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        if trainer.global_rank == self.rank:
            raise TrainingError("cuda:1 ran out of memory")


@pytest.mark.slow
def test_the_error_of_another_rank_is_the_trainings(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    wanted = job(digits[Task.CLASSIFICATION], tmp_path / "run", processes=2, settings=VIT)
    with pytest.raises(TrainingError, match=r"^rank 1: cuda:1 ran out of memory$"), no_warnings_of_torch():
        trainer.fit(wanted, callbacks=[FailOn(1)])
    assert not torch.distributed.is_initialized()


def test_callbacks_that_cannot_be_sent_are_an_error(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    class Local(Callback):
        pass

    wanted = job(digits[Task.CLASSIFICATION], tmp_path / "run", processes=2, settings=VIT)
    with pytest.raises(TrainingError, match=r"callbacks cannot be sent .*Local"):
        trainer.fit(wanted, callbacks=[Local()])


WAITING = """
import os, sys, time
from pathlib import Path
from trainer.training import ranks
from trainer.training.devices import Devices

def follow(devices, ready, seconds):
    ready()
    time.sleep(seconds)
    sys.exit(7)

if __name__ == "__main__":
    import waiting
    ranks._SECONDS_TO_NOTICE = 1.0
    with ranks.OtherRanks(Devices("", False, 1, 0, 2, 0), Path("runs/mine")) as others:
        others.start(waiting.follow, int(sys.argv[1]))
        print("waits", flush=True)
        time.sleep(300)
"""
"""As in an exchange of NCCL's, in which the first process cannot be spoken to."""


@pytest.mark.slow
def test_an_exchange_that_never_ends_is_ended(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    process = start([sys.executable, "waiting.py", "1"], tmp_path)
    said, errors = process.communicate(timeout=100)
    assert (process.returncode, said) == (1, "waits\n")
    assert errors.startswith("error: rank 1 ended (exit status 7)")
    assert "trainer fit --resume runs/mine" in errors


@pytest.mark.slow
def test_ranks_end_with_the_first(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    process = start([sys.executable, "waiting.py", "300"], tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    (rank,) = children(process)
    process.kill()
    process.communicate(timeout=60)
    until = time.monotonic() + 20
    while Path(f"/proc/{rank}").exists() and "zombie" not in Path(f"/proc/{rank}/status").read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
