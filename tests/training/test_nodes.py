"""Two processes, on one machine or two, train the same model as one; killing one ends the others."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import trainer
from tests.training.processes import ROOT, VIT, children, job, metrics_of, start
from trainer.data.samples import SampleData
from trainer.runs import Run
from trainer.tasks import Task

EXAMPLES = ROOT / "docs" / "examples"


def assert_same(run: Run, other: Run, tolerance: float = 2e-4) -> None:
    expected = metrics_of(other)
    assert len(metrics_of(run)) == len(expected)
    for row, wanted in zip(metrics_of(run), expected, strict=True):
        assert row == pytest.approx(wanted, abs=tolerance, nan_ok=True)


@pytest.fixture(scope="module")
def whole(digits: dict[Task, SampleData], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One process, batches of 8, 6 epochs."""
    output = tmp_path_factory.mktemp("whole") / "run"
    settings = {**VIT, "training_batch_size": 8, "number_of_epochs": 6, "early_stopping_patience": 50}
    return trainer.fit(job(digits[Task.CLASSIFICATION], output, settings=settings))


def arguments(data: SampleData, *more: object) -> list[str]:
    """Arguments of the command that trains on two ranks what `whole` trains on one."""
    words = [
        *("fit", "--task", "image-classification", "--data", data.train),
        *("--validation-data", data.validation, "--model", "timm/test_vit", "--weights", "none"),
        *("--validation-crop-size", 32, "--training-crop-size", 32, "--num-workers", 0, "--seed", 3),
        *("--training-batch-size", 4, "--number-of-epochs", 6, "--early-stopping-patience", 50),
        *("--tracking-uri", "none", *more),
    ]
    return list(map(str, words))


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 200) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def an_epoch_is_over(folder: Path) -> bool:
    """Whether a run in the folder, or below it, can be resumed."""
    return any(folder.glob("**/checkpoints/last.ckpt"))


def free_port(low: int = 15000) -> int:
    for port in range(low + os.getpid() % 5000, low + 10000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


@pytest.mark.slow
def test_killed_rank_ends_the_run_and_resume_completes_it(
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

    run = trainer.resume(tmp_path / "run")
    assert_same(run, whole)
    assert "resuming from" in run.log.read_text("utf-8")


@pytest.mark.slow
def test_two_torchrun_nodes_train_one_model(
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

    # Neither knows where the other writes.
    first, second = nodes(*arguments(digits[Task.CLASSIFICATION], "--gpus", 0))
    wait_for(lambda: an_epoch_is_over(tmp_path), first)
    (run,) = [Run(directory) for directory in (tmp_path / "runs").iterdir()]
    (rank,) = children(second)
    os.kill(rank, signal.SIGKILL)
    said = [process.communicate(timeout=60) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [1, 1]
    assert "error: another rank stopped responding" in said[0][1]
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


SCRIPT = """
import sys
import trainer

run = trainer.fit(trainer.Job.model_validate_json(sys.argv[1]))
print("got", run.directory, run.is_rank_zero)
"""


@pytest.mark.slow
def test_fit_returns_the_run_on_every_rank(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    wanted = job(digits[Task.CLASSIFICATION], tmp_path / "none", settings={**VIT, "number_of_epochs": 1})
    wanted = wanted.model_copy(update={"output": None})  # only rank 0 knows the directory at first
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = start([*torchrun, "script.py", wanted.model_dump_json()], tmp_path)
    said, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    (directory,) = (tmp_path / "runs").iterdir()
    expected = [f"got runs/{directory.name} {is_rank_zero}" for is_rank_zero in (False, True)]
    assert sorted(line for line in said.splitlines() if line.startswith("got")) == expected


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
def test_slurm_script_trains_on_two_machines(digits: dict[Task, SampleData], tmp_path: Path) -> None:
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
