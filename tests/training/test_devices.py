"""The devices of a run: those that flags ask for or a launcher started, which must agree."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import trainer
from trainer.errors import JobError
from trainer.job.job import Job
from trainer.models import create, specify
from trainer.models.defaults import resolve
from trainer.tasks import Task
from trainer.training import devices

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
    "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
SLURM = {
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_LOCALID": "0",
    "SLURM_PROCID": "2", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "0",
    "SLURM_CPUS_PER_TASK": "1",
}  # fmt: skip

LAUNCHER = {  # such as Azure ML's PyTorch distribution
    "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "NODE_RANK": "1", "AZUREML_NODE_COUNT": "2",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "6105",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0", "AZ_BATCH_MASTER_NODE": "10.0.0.4:6000",
}  # fmt: skip
INTEL_MPI = {"PMI_SIZE": "4", "PMI_RANK": "1", "MPI_LOCALNRANKS": "4", "MPI_LOCALRANKID": "1"}
KUBEFLOW = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "pod-0", "MASTER_PORT": "23456"}
LOCAL = {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "2"}


def chosen(
    values: dict[str, Any], environment: dict[str, str] | None = None, **settings: Any
) -> devices.Devices:
    made = Job(task="image-classification", training_data="t.jsonl", model="timm/test_vit", **values)
    return devices.choose_devices(made, resolve(made.task, made.model_name, settings), environment or {})


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
        # An sbatch script, before it calls srun.
        ({}, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, {}, "4 GPUs", 0),
        # The shell of salloc.
        ({}, {**SLURM, "SLURM_STEP_ID": "4294967290"}, {}, "4 GPUs", 0),
        # A trial of a worker that srun started.
        ({}, {**SLURM, "TRAINER_ALONE": "1"}, {}, "4 GPUs", 0),
        ({}, LAUNCHER, {}, "2 machines with 2 GPUs each", 3),
        ({"nodes": 2}, {**LAUNCHER, "AZUREML_NODE_COUNT": ""}, {}, "2 machines with 2 GPUs each", 3),
        (
            {},
            {**LAUNCHER, "AZUREML_NODE_COUNT": "", "LOCAL_WORLD_SIZE": "2"},
            {},
            "2 machines with 2 GPUs each",
            3,
        ),
        ({}, LOCAL, {}, "4 GPUs", 2),
        ({}, {**LOCAL, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, {}, "4 GPUs", 0),
        ({}, OPEN_MPI, {}, "2 machines with 2 GPUs each", 2),
        ({}, INTEL_MPI, {}, "4 GPUs", 1),
        # A process in each pod, which starts the ranks of its machine.
        ({}, KUBEFLOW, {}, "2 machines with 4 GPUs each", 4),
        ({"nodes": 2}, KUBEFLOW, {}, "2 machines with 4 GPUs each", 4),
        ({}, {**KUBEFLOW, "TRAINER_ALONE": "1"}, {}, "4 GPUs", 0),
        (
            {"nodes": 2},
            {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
            {},
            "2 machines with 4 GPUs each",
            4,
        ),
    ],
)
def test_devices_follow_job_and_launcher(
    values: dict[str, Any], environment: dict[str, str], settings: dict[str, Any], words: str, rank: int
) -> None:
    found = chosen(values, environment, **settings)
    assert (str(found), found.rank, found.is_rank_zero) == (words, rank, rank == 0)


@pytest.mark.usefixtures("four_gpus")
def test_address_port_and_cores_of_ranks() -> None:
    assert (chosen({}, TORCHRUN).address, chosen({}, TORCHRUN).port) == ("10.0.0.1", 29500)
    # The first machine, and a port that every task derives from the job.
    assert (chosen({}, SLURM).address, chosen({}, SLURM).port) == ("gpu07", 19567)
    assert (chosen({}, LAUNCHER).address, chosen({}, LAUNCHER).port) == ("10.0.0.1", 6105)
    assert (chosen({}, OPEN_MPI).address, chosen({}, OPEN_MPI).port) == ("10.0.0.4", 29500)
    older = {**OPEN_MPI, "AZ_BATCH_MASTER_NODE": "", "AZ_BATCHAI_MPI_MASTER_NODE": "10.0.0.5"}
    assert chosen({}, older).address == "10.0.0.5"
    assert (chosen({}, KUBEFLOW).address, chosen({}, KUBEFLOW).port) == ("pod-0", 23456)
    # Another launch on this machine, whose processes have another parent, gets another port.
    assert (chosen({}, LOCAL).address, chosen({}, LOCAL).port) == ("127.0.0.1", 15000 + os.getppid() % 10000)
    assert devices.cores_of_a_rank(2, SLURM) == 1
    assert devices.cores_of_a_rank(10**6, {}) == 1
    assert devices.cores_of_a_rank(1, {"TRAINER_CORES": "1"}) == 1, "concurrent trials divide the cores"
    with pytest.raises(JobError, match="SLURM_CPUS_PER_TASK: must be"):
        devices.cores_of_a_rank(2, {**SLURM, "SLURM_CPUS_PER_TASK": "all"})


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("values", "environment", "settings", "words"),
    [
        ({"gpus": 4}, TORCHRUN, {}, r"--gpus: .* torchrun starts on each machine, 2, got 4"),
        ({"processes": 3}, TORCHRUN, {}, r"--processes: .* torchrun starts on each machine, 2, got 3"),
        ({"nodes": 3}, TORCHRUN, {}, r"--nodes: .* torchrun starts processes, 2, got 3"),
        ({"nodes": 1}, SLURM, {}, r"--nodes: .* srun starts processes, 2, got 1"),
        (
            {},
            {**TORCHRUN, "LOCAL_WORLD_SIZE": "3"},
            {},
            r"same number of processes on each machine.*got 4 on 1",
        ),
        ({}, {**SLURM, "SLURM_PROCID": "1"}, {}, r"numbered machine by machine.*--distribution=block"),
        # Nothing says that there are two machines.
        ({}, {**LAUNCHER, "AZUREML_NODE_COUNT": ""}, {}, r"got 4 on 1, .*LOCAL_WORLD_SIZE .*--nodes"),
        ({}, {**OPEN_MPI, "AZ_BATCH_MASTER_NODE": ""}, {}, r"MASTER_ADDR: mpirun must say where rank 0 is"),
        ({}, TORCHRUN, {"distributed": False}, r"distributed: cannot be false for the 4 processes"),
        ({}, {**TORCHRUN, "LOCAL_WORLD_SIZE": "0"}, {}, "LOCAL_WORLD_SIZE: must be a whole .* 1, .* got '0'"),
        ({}, {**TORCHRUN, "GROUP_RANK": "a"}, {}, "GROUP_RANK: must be a whole number of at least 0.* 'a'"),
        ({}, {**LAUNCHER, "AZUREML_NODE_COUNT": "0"}, {}, "AZUREML_NODE_COUNT: must be"),
        ({}, {**LAUNCHER, "MASTER_PORT": "0"}, {}, "MASTER_PORT: must be"),
        ({}, {**LAUNCHER, "RANK": ""}, {}, "RANK: must be"),
        ({}, {**SLURM, "SLURM_STEP_NUM_NODES": "two"}, {}, "SLURM_STEP_NUM_NODES: must be"),
        ({}, {**SLURM, "SLURM_STEP_NUM_TASKS": "0"}, {}, "SLURM_STEP_NUM_TASKS: must be"),
        ({}, {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "-1"}, {}, "OMPI_COMM_WORLD_LOCAL_SIZE: must be"),
        ({}, {**KUBEFLOW, "WORLD_SIZE": "many"}, {}, "WORLD_SIZE: must be .* unset it to train without"),
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
def test_contradiction_names_both_sides(
    values: dict[str, Any], environment: dict[str, str], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(JobError, match=words):
        chosen(values, environment, **settings)


def test_slurm_task_that_sees_one_gpu_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(JobError, match="--gpus-per-node in place of --gpus-per-task"):
        chosen({}, SLURM)


@pytest.mark.usefixtures("no_gpu")
def test_launcher_without_gpus_trains_on_cpus() -> None:
    assert str(chosen({}, TORCHRUN)) == "2 machines with 2 processes on the CPU each"
    assert str(chosen({}, {}, sync_batch_norm=True)) == "1 process on the CPU"


@pytest.mark.parametrize(("gpus", "backend"), [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_ranks_exchange_predictions_on_the_cpu(gpus: bool, backend: str) -> None:
    assert devices.Devices("", gpus, 1, 0, 2, 0)._ddp()._process_group_backend == backend


TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update"


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize("searches", [False, True])
def test_gpu_that_does_not_compute_is_an_error_before_the_data_are_read(
    searches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "ones", lambda *_, **__: (_ for _ in ()).throw(RuntimeError(TOO_OLD)))
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stdout=TOO_OLD + "\n")
    )
    space = {"search_space": {"learning_rate": "uniform(0.001, 0.1)"}, "limits": {"max_trials": 2}}
    made = Job(
        task="image-classification",
        training_data="missing.jsonl",
        model="timm/test_vit",
        tracking_uri="none",
        **(space if searches else {}),
    )
    with pytest.raises(JobError, match=r"driver on your system is too old.*--gpus 0 trains on the CPU"):
        trainer.fit(made)


def test_gpus_are_tried_in_another_process_with_this_ones_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """If that process fails, its last words are the reason."""
    environments: list[dict[str, str]] = []

    def fail(*_: Any, env: dict[str, str], **__: Any) -> Any:
        environments.append(env)
        return SimpleNamespace(returncode=1, stdout="", stderr="Traceback:\nImportError: libcudart.so.12\n")

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr(sys, "path", ["/scripts", *sys.path])
    with pytest.raises(JobError, match=r"ImportError: libcudart.so.12; install an NVIDIA driver"):
        devices.check_cuda_in_subprocess()
    assert "/scripts" in environments[0]["PYTHONPATH"].split(os.pathsep)
    assert environments[0]["PATH"] == os.environ["PATH"]


def test_pytorch_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "Torch not compiled with CUDA enabled"
    monkeypatch.setattr(torch, "ones", lambda *_, **__: (_ for _ in ()).throw(AssertionError(words)))
    assert devices.cuda_error() == words


@pytest.mark.parametrize(
    ("task", "model", "settings"),
    [
        (Task.CLASSIFICATION, "timm/test_efficientnet", {"validation_crop_size": 64}),
        (Task.DETECTION, "yolo11n", {"image_size": 64}),
        (Task.DETECTION, "fasterrcnn_resnet18_fpn", {"min_size": 64, "max_size": 64}),
    ],
)
def test_synchronised_batch_norms_keep_outputs(task: Task, model: str, settings: dict[str, Any]) -> None:
    """timm's batch norms contain activations, which must not be lost."""
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
