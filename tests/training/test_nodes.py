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
import yaml
from lightning import Callback, Trainer
from torch import nn
from torch.utils._pytree import tree_leaves

import trainer
from tests.training.conftest import rows
from trainer.cli import app
from trainer.data.samples import SampleData
from trainer.errors import JobError, TrainingError
from trainer.job import Job
from trainer.models import create, specify
from trainer.runs import Run
from trainer.settings import resolve
from trainer.tasks import Task
from trainer.training import devices

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


def programs(folder: Path, **scripts: str) -> str:
    """A PATH on which these come first."""
    for name, script in scripts.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.slow
def test_the_slurm_script_trains_on_two_machines(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    wanted = job(
        digits[Task.CLASSIFICATION], tmp_path / "none", settings={**VIT, "number_of_epochs": 1, "seed": None}
    )
    (tmp_path / "job.yml").write_text(wanted.to_yaml(), encoding="utf-8")
    shell = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m trainer "$@"\n'
    environment = {
        "PATH": programs(tmp_path, srun=SRUN, trainer=shell),
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
def test_two_ranks_of_a_detector_train_what_one_does(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    """Of one image all parts of a batch are alike, so that batch norms and the losses' divisors are, too.

    What is left to differ is how the ranks' gradients add up to the batch's.
    """
    source = digits[Task.DETECTION]
    line = json.loads(source.train.read_text("utf-8").splitlines()[0])
    lines = [{**line, "image_url": f"{number}.png"} for number in range(16)]
    for copied in lines:
        shutil.copyfile(source.train.parent / line["image_url"], tmp_path / copied["image_url"])
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    still = {"apply_mosaic_for_yolo": False, "apply_automl_train_augmentations": False}
    runs = []
    for processes in (1, 2):
        settings = {"image_size": 64, "training_batch_size": 8 // processes, "advanced_settings": still}
        wanted = job(
            source, tmp_path / str(processes), "yolo11n",
            training_data=str(tmp_path / "train.jsonl"), processes=processes,
            settings={**settings, "number_of_epochs": 3, "warmup_cosine_lr_warmup_epochs": 1},
        )  # fmt: skip
        with no_warnings_of_torch():
            runs.append(trainer.fit(wanted))
    assert_same(runs[1], runs[0], tolerance=2e-3)
    losses = [row["train_loss"] for row in figures(runs[0])]
    assert losses[2] < losses[0] - 0.05, "it learns enough for a wrong step to show"


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


STUCK = """
import sys, time
from pathlib import Path
from trainer.training import ranks
from trainer.training.devices import Devices

def follow(devices, ready):
    ready()
    time.sleep(1)
    sys.exit(7)

if __name__ == "__main__":
    import stuck
    ranks._SECONDS_TO_NOTICE = 1.0
    with ranks.OtherRanks(Devices("", False, 1, 0, 2, 0), Path("runs/mine")) as others:
        others.start(stuck.follow)
        print("waits", flush=True)
        time.sleep(300)
"""


@pytest.mark.slow
def test_an_exchange_that_never_ends_is_ended(tmp_path: Path) -> None:
    """As NCCL's, in which the first process cannot be spoken to."""
    (tmp_path / "stuck.py").write_text(STUCK)
    process = start([sys.executable, "stuck.py"], tmp_path)
    said, errors = process.communicate(timeout=100)
    assert (process.returncode, said) == (1, "waits\n")
    assert errors.startswith("error: rank 1 ended (exit status 7)")
    assert "trainer fit --resume runs/mine" in errors


@pytest.mark.slow
def test_ranks_end_with_the_first(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    words = arguments(digits[Task.CLASSIFICATION], "--processes", 2, "--output", "run")
    process = start([sys.executable, "-m", "trainer", *words], tmp_path)
    wait_for(lambda: an_epoch_is_over(tmp_path), process)
    (rank,) = children(process)
    process.kill()
    process.communicate(timeout=60)
    until = time.monotonic() + 20
    while Path(f"/proc/{rank}").exists() and "zombie" not in Path(f"/proc/{rank}/status").read_text():
        assert time.monotonic() < until
        time.sleep(0.1)


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
    "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
SLURM = {
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_LOCALID": "0",
    "SLURM_PROCID": "2", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "0",
    "SLURM_CPUS_PER_TASK": "1",
}  # fmt: skip


def chosen(
    values: dict[str, Any], environment: dict[str, str] | None = None, **settings: Any
) -> devices.Devices:
    made = Job(task="image-classification", training_data="t.jsonl", model="timm/test_vit", **values)
    return devices.choose(made, resolve(made.task, made.model_name, settings), environment or {})


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("values", "environment", "settings", "words", "rank"),
    [
        ({}, {}, {}, "4 GPUs", 0),
        ({"gpus": 2}, {}, {}, "2 GPUs", 0),
        ({"gpus": 2}, {}, {"distributed": False}, "1 GPU", 0),
        ({"gpus": 0}, {}, {}, "1 process on the CPU", 0),
        ({"processes": 3}, {}, {}, "3 processes on the CPU", 0),
        ({}, TORCHRUN, {}, "2 machines with 2 GPUs each", 3),
        ({"gpus": 2, "nodes": 2}, TORCHRUN, {}, "2 machines with 2 GPUs each", 3),
        ({"gpus": 0}, TORCHRUN, {}, "2 machines with 2 processes on the CPU each", 3),
        ({"processes": 2}, TORCHRUN, {}, "2 machines with 2 processes on the CPU each", 3),
        ({}, SLURM, {}, "2 machines with 2 GPUs each", 2),
        # A script of sbatch's, before it says srun.
        ({}, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, {}, "4 GPUs", 0),
        # A trial of a worker that srun started.
        ({}, {**SLURM, "TRAINER_ALONE": "1"}, {}, "4 GPUs", 0),
        (
            {"nodes": 2},
            {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
            {},
            "2 machines with 4 GPUs each",
            4,
        ),
    ],
)
def test_devices_are_what_was_asked_for_or_started(
    values: dict[str, Any], environment: dict[str, str], settings: dict[str, Any], words: str, rank: int
) -> None:
    found = chosen(values, environment, **settings)
    assert (str(found), found.rank, found.leads) == (words, rank, rank == 0)


@pytest.mark.usefixtures("four_gpus")
def test_where_the_ranks_meet() -> None:
    assert (chosen({}, TORCHRUN).address, chosen({}, TORCHRUN).port) == ("10.0.0.1", 29500)
    # The first machine's, and a port that every task derives from the job.
    assert (chosen({}, SLURM).address, chosen({}, SLURM).port) == ("gpu07", 19567)
    assert devices.cores_of_a_rank(2, SLURM) == 1
    assert devices.cores_of_a_rank(10**6, {}) == 1


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("values", "environment", "settings", "words"),
    [
        ({"gpus": 4}, TORCHRUN, {}, r"--gpus: .* torchrun starts on each machine, 2, got 4"),
        ({"processes": 3}, TORCHRUN, {}, r"--processes: .* torchrun starts on each machine, 2, got 3"),
        ({"nodes": 3}, TORCHRUN, {}, r"--nodes: .* torchrun starts processes, 2, got 3"),
        ({"nodes": 1}, SLURM, {}, r"--nodes: .* srun starts processes, 2, got 1"),
        ({}, {**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, {}, r"as many processes on each machine.*got 4 on 1"),
        ({}, {**SLURM, "SLURM_PROCID": "1"}, {}, r"numbered machine by machine.*--distribution=block"),
        ({}, TORCHRUN, {"distributed": False}, r"distributed: cannot be false for the 4 processes"),
        ({"nodes": 2}, {}, {}, r"--nodes: 2 machines need a launcher.*NODE_RANK \(0 to 1\)"),
        ({"nodes": 2}, {"NODE_RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, {}, "got NODE_RANK=2, "),
        ({"processes": 2}, {}, {"sync_batch_norm": True}, "sync_batch_norm: needs GPUs"),
        ({}, {}, {"sync_batch_norm": True, "training_batch_size": "auto"}, "each GPU tries for itself"),
        (
            {},
            {**TORCHRUN, "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": "9"},
            {},
            "8 processes that see 4; start 4 on each machine",
        ),
    ],
)
def test_a_disagreement_names_both_sides(
    values: dict[str, Any], environment: dict[str, str], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(JobError, match=words):
        chosen(values, environment, **settings)


def test_a_task_of_slurm_that_sees_one_gpu_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(JobError, match="--gpus-per-node in place of --gpus-per-task"):
        chosen({}, SLURM)


@pytest.mark.usefixtures("no_gpu")
def test_without_gpus_a_launcher_trains_on_cpus() -> None:
    assert str(chosen({}, TORCHRUN)) == "2 machines with 2 processes on the CPU each"
    assert str(chosen({}, {}, sync_batch_norm=True)) == "1 process on the CPU"


@pytest.mark.parametrize(
    ("task", "model", "settings"),
    [
        (Task.CLASSIFICATION, "timm/test_efficientnet", {"validation_crop_size": 64}),
        (Task.DETECTION, "yolo11n", {"image_size": 64}),
        (Task.DETECTION, "fasterrcnn_resnet18_fpn", {"min_size": 64, "max_size": 64}),
    ],
)
def test_synchronised_batch_norms_compute_the_same(task: Task, model: str, settings: dict[str, Any]) -> None:
    """timm's hold activations, which are not to be lost."""
    family = create(specify(task, model, resolve(task, model, settings), ("a", "b"), pretrained=False))
    torch.manual_seed(0)
    network = family.build().eval()
    tensor = torch.rand(3, 64, 64)
    before = family.infer(network, [tensor], family.spec.parameters)[0]
    names = list(network.state_dict())
    batch_norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
    network = family.sync_batch_norms(network)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in network.modules()) == batch_norms > 5
    assert list(network.state_dict()) == names
    after = family.infer(network, [tensor], family.spec.parameters)[0]
    for one, other in zip(tree_leaves(before), tree_leaves(after), strict=True):
        torch.testing.assert_close(one, other)


def parse(words: Sequence[str]) -> None:
    """The command is one that the program takes."""
    app.parse_args(list(words), print_error=False, exit_on_error=False)


def torchrun(words: Sequence[str]) -> Any:
    """torchrun's own reading of its options; the command after them is the program's."""
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(list(words))
    assert (options.module, options.training_script) == (True, "trainer")
    parse(options.training_script_args)
    return options


ECHO = '#!/bin/sh\nprintf "%s\\n" "$@"\n'


def said_by(container: dict[str, Any], folder: Path) -> list[str]:
    """The words that a container's command hands to trainer or torchrun; /runs is a folder's."""
    command = [
        word.replace("/runs/", f"{folder}/") for word in [*container["command"], *container.get("args", [])]
    ]
    environment = {"JOB_COMPLETION_INDEX": "1", "STORAGE": "postgresql://user:word@host/name"}
    if command[0] == "trainer":
        return [word.replace("$(STORAGE)", environment["STORAGE"]) for word in command[1:]]
    path = programs(folder.parent, trainer=ECHO, torchrun=ECHO)
    done = start(command, folder, PATH=path, **environment)
    words, errors = done.communicate(timeout=20)
    assert (done.returncode, errors) == (0, "")
    return words.splitlines()


def manifests(name: str) -> dict[str, dict[str, Any]]:
    found = list(yaml.safe_load_all((EXAMPLES / name).read_text("utf-8")))
    for manifest in found:
        if manifest["kind"] == "Job":
            assert manifest["apiVersion"] == "batch/v1"
            pod = manifest["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}
            assert pod["restartPolicy"] == "Never"
    return {f"{manifest['kind']} {manifest['metadata']['name']}": manifest for manifest in found}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Stands for /runs in a container."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def test_the_manifest_of_a_training_fits_torchrun_and_the_program(runs: Path) -> None:
    found = manifests("kubernetes-fit.yaml")
    service, fit = found["Service fit"], found["Job fit"]
    spec, pod = fit["spec"], fit["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert service["spec"]["selector"] == {"job-name": fit["metadata"]["name"]}
    assert service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"]
    options = torchrun(said_by(container, runs))
    assert options.nnodes == str(spec["completions"]) == str(spec["parallelism"])
    assert (spec["completionMode"], options.node_rank) == ("Indexed", 1)
    assert options.nproc_per_node == str(container["resources"]["limits"]["nvidia.com/gpu"])
    assert options.master_addr == f"{fit['metadata']['name']}-0.{pod['subdomain']}"
    assert options.training_script_args[:2] == ["fit", "--config"]
    # Begun anew it goes on, and when it has finished it does nothing.
    (runs / "fridge").mkdir()
    (runs / "fridge" / "job.yaml").touch()
    again = torchrun(said_by(container, runs)).training_script_args
    assert again == ["fit", "--resume", str(runs / "fridge")]
    (runs / "fridge" / "result.json").touch()
    assert said_by(container, runs) == []


def test_the_manifests_of_a_sweep_fit_the_program(runs: Path) -> None:
    found = manifests("kubernetes-sweep.yaml")
    (sweep,) = found["Job sweep"]["spec"]["template"]["spec"]["containers"]
    (worker,) = found["Job workers"]["spec"]["template"]["spec"]["containers"]
    begun, joined = said_by(sweep, runs), said_by(worker, runs)
    parse(begun)
    parse(joined)
    assert joined[0] == "worker"
    for flag in ("--study", "--storage"):
        assert begun[begun.index(flag) + 1] == joined[joined.index(flag) + 1]
    assert "--output" not in joined  # it sees the sweep's own directory
    (runs / "fridge").mkdir()
    (runs / "fridge" / "job.yaml").touch()
    assert said_by(sweep, runs) == ["fit", "--resume", str(runs / "fridge")]


def test_the_script_of_slurms_workers_fits_the_program(tmp_path: Path) -> None:
    path = programs(tmp_path, trainer=ECHO)
    script = ["bash", str(EXAMPLES / "slurm-workers.sh"), "fridge"]
    process = start(script, tmp_path, PATH=path, STORAGE="postgresql://host/name")
    words, errors = process.communicate(timeout=20)
    assert errors == ""
    assert words.split()[0] == "worker"
    parse(words.splitlines())


def test_the_commands_of_the_page_are_ones_that_the_program_takes() -> None:
    page = (DOCS / "many-machines.md").read_text("utf-8").replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in page.splitlines() if line.startswith("    ")]
    assert len(lines) > 10
    for words in lines:
        while "=" in words[0]:  # a variable
            words.pop(0)
        if words[0] == "torchrun":
            torchrun(words[1:])
        else:
            assert words[0] == "trainer"
            parse(words[1:])
