"""The devices of a training run: GPUs or CPU processes, on one machine or more, and this process's rank."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy

from trainer.cores import available_cores
from trainer.errors import JobError, Problem
from trainer.job.callback_path import search_path
from trainer.job.job import Job
from trainer.models.precision import Precision, check_precision
from trainer.settings import Settings
from trainer.training.launchers import Place, launched, number, started_by_hand

_LIGHTNINGS_PRECISION: dict[str, Any] = {"bf16": "bf16-mixed", "fp16": "16-mixed"}
_VOLTA, _AMPERE = 7, 8  # generations of GPUs

CORES = "TRAINER_CORES"
"""Environment variable with the number of CPU cores that a trial's process may use."""

_TIMEOUT = timedelta(minutes=30)
"""Longest wait of one rank for another. A rank that died is noticed at once; this limit is for a network that
fails silently. It must exceed the time in which rank 0 checks all images and downloads weights."""


@dataclass(frozen=True, slots=True)
class Devices:
    """What a run trains on, and this process's place there: rank = node · local_ranks + local_rank.

    Attributes:
        launcher: what started the processes, such as "torchrun"; "" if `fit` starts those of its machine.
        gpus: each process has a GPU; otherwise they run on the CPU.
        nodes: number of machines; `node` is this one, counted from 0.
        local_ranks: processes on each machine; `local_rank` is this one, counted from 0.
        address: of rank 0's machine; the ranks meet there, at `port`.
    """

    launcher: str
    gpus: bool
    nodes: int
    node: int
    local_ranks: int
    local_rank: int
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def ranks(self) -> int:
        """Number of processes on all machines."""
        return self.nodes * self.local_ranks

    @property
    def rank(self) -> int:
        return self.node * self.local_ranks + self.local_rank

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that logs and writes."""
        return self.rank == 0

    @property
    def are_launched_separately(self) -> bool:
        """Whether some ranks were not started by rank 0, which therefore could not send them anything."""
        return bool(self.launcher) or self.nodes > 1

    def __str__(self) -> str:
        """The devices in words, such as `2 machines with 4 GPUs each`."""
        one, more = ("GPU", "GPUs") if self.gpus else ("process on the CPU", "processes on the CPU")
        local = f"{self.local_ranks} {one if self.local_ranks == 1 else more}"
        return local if self.nodes == 1 else f"{self.nodes} machines with {local} each"

    def options(self, precision: Precision = "auto") -> dict[str, Any]:
        """Lightning's accelerator, devices, strategy, precision and cluster environment."""
        options: dict[str, Any] = {
            "accelerator": "gpu" if self.gpus else "cpu",
            "devices": self.local_ranks,
            "num_nodes": self.nodes,
            "strategy": self._ddp() if self.ranks > 1 else "auto",
            "plugins": [_Environment(self)],
        }
        if self.gpus:
            if precision == "auto":
                precision = _supported_precisions()[0]
            options["precision"] = _LIGHTNINGS_PRECISION.get(precision, "32-true")
        return options

    def _ddp(self) -> DDPStrategy:
        # Predictions and metrics are exchanged on the CPU: with NCCL alone, they would take GPU memory.
        backend = "cpu:gloo,cuda:nccl" if self.gpus else "gloo"
        return DDPStrategy(timeout=_TIMEOUT, process_group_backend=backend)


class _Environment(ClusterEnvironment):
    """Passes `Devices` to Lightning, which then detects no launcher itself."""

    def __init__(self, devices: Devices) -> None:
        super().__init__()
        self.devices = devices

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.devices.address

    @property
    def main_port(self) -> int:
        return self.devices.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.devices.ranks

    def set_world_size(self, size: int) -> None:
        """Nothing to set: `devices` has it."""

    def global_rank(self) -> int:
        return self.devices.rank

    def set_global_rank(self, rank: int) -> None:
        """Nothing to set: `devices` has it."""

    def local_rank(self) -> int:
        return self.devices.local_rank

    def node_rank(self) -> int:
        return self.devices.node


def choose_devices(job: Job, settings: Settings, environment: Mapping[str, str] = os.environ) -> Devices:
    """The devices that the job asks for, or those that a launcher started processes for.

    Raises:
        JobError: the job asks for more GPUs than there are, or contradicts the launcher.
    """
    there = torch.cuda.device_count()
    place = launched(environment, job.nodes)
    problems: list[Problem] = []
    wanted = job.processes or (there if job.gpus == "auto" else job.gpus)
    on_gpus = not job.processes and wanted > 0
    if on_gpus and wanted > there:
        got = f"{wanted}, but this machine has {there or 'none'}"
        if visible := environment.get("CUDA_VISIBLE_DEVICES"):
            got += f" with CUDA_VISIBLE_DEVICES={visible}"
        hint = f"ask for at most {there}" if there else "leave --gpus out to train on the CPU"
        problems.append(Problem("--gpus", "", "asks for too many", got, hint))
    if place is None:
        nodes, node, address, port = started_by_hand(job.nodes, environment, problems)
        count = wanted if settings.distributed or not on_gpus else 1
        devices = Devices("", on_gpus, nodes, node, count or 1, 0, address, port)
    else:
        devices = Devices(
            place.launcher, on_gpus, place.nodes, place.node, place.local_ranks, place.local_rank,
            place.address, place.port,
        )  # fmt: skip
        problems += _contradictions(job, settings, devices, there, place)
    if settings.sync_batch_norm and devices.ranks > 1:
        if not on_gpus:
            rule = "needs GPUs: PyTorch has no batch norm across CPU processes"
            problems.append(Problem("sync_batch_norm", "", rule, hint="leave it out on the CPU"))
        elif settings.training_batch_size == "auto":
            rule = "cannot be combined with training_batch_size auto, which each GPU tries for itself"
            problems.append(Problem("sync_batch_norm", "", rule, hint="give training_batch_size a number"))
    if job.precision != "auto" and not problems:
        supported = _supported_precisions() if on_gpus else ("float32",)
        problems += check_precision(job.precision, supported, "this GPU" if on_gpus else "the CPU")
    if problems:
        raise JobError("the job cannot be run:", problems)
    return devices


def _supported_precisions() -> tuple[Precision, ...]:
    """The precisions for which the GPU has units of its own, the fastest first."""
    generation, _ = torch.cuda.get_device_capability()
    precisions: list[Precision] = []
    # PyTorch emulates bfloat16 on older GPUs, where it is slower than float32.
    if torch.cuda.is_bf16_supported(including_emulation=False):
        precisions.append("bf16")
    if generation >= _VOLTA:  # a scaler keeps gradients in the range of float16
        precisions.append("fp16")
    if generation >= _AMPERE:
        precisions.append("tf32")
    return (*precisions, "float32")


def check_cuda(device: int = 0) -> None:
    """Compute one number on a GPU, to find out whether it works before anything that takes long.

    Raises:
        JobError: the driver is too old for the installed PyTorch, or the GPU is not one that it is built for.
    """
    _raise_cuda_error(cuda_error(device))


def check_cuda_in_subprocess() -> None:
    """Run `check_cuda` in another process, so that this one can still fork training processes.

    Raises:
        JobError: see `check_cuda`.
    """
    code = f"from {__name__} import cuda_error; print(cuda_error())"
    environment = {**os.environ, **search_path()}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    _raise_cuda_error((done.stdout if done.returncode == 0 else done.stderr).strip().rpartition("\n")[2])


def cuda_error(device: int = 0) -> str:
    """What keeps a GPU from computing, in CUDA's words; "" if it computes."""
    try:
        torch.ones(1, device=torch.device("cuda", device)).add_(1).item()
    except (RuntimeError, AssertionError) as error:
        return str(error).partition("\n")[0].rstrip(". ") or type(error).__name__
    return ""


def _raise_cuda_error(reason: str) -> None:
    if not reason:
        return
    hint = (
        f"install an NVIDIA driver for CUDA {torch.version.cuda} or newer, or a PyTorch for the CUDA of the "
        "driver, which `nvidia-smi` names (pytorch.org/get-started); --gpus 0 trains on the CPU"
    )
    problem = Problem("--gpus", "", "needs a GPU that the installed PyTorch can use", reason, hint)
    raise JobError("the job cannot be run:", [problem])


def cores_of_a_rank(local_ranks: int, environment: Mapping[str, str] = os.environ) -> int:
    """The CPU cores that each of a machine's ranks may use; at least 1."""
    cores = available_cores()
    cores = min(cores, int(environment.get(CORES, cores)))
    place = launched(environment)
    if place and place.launcher == "srun" and "SLURM_CPUS_PER_TASK" in environment:
        # Each task has cores of its own.
        return min(cores, number(environment, "SLURM_CPUS_PER_TASK", least=1))
    return max(1, cores // local_ranks)


def _contradictions(
    job: Job, settings: Settings, devices: Devices, there: int, place: Place
) -> list[Problem]:
    """Problems where the job contradicts what the launcher started."""
    by, count = devices.launcher, devices.local_ranks
    problems = []
    if (place.ranks, place.rank) != (devices.ranks, devices.rank):
        got = f"{place.ranks} on {devices.nodes}, of which this is {place.rank}"
        hints = {
            "srun": "use --ntasks-per-node and --distribution=block",
            "the launcher": "set LOCAL_WORLD_SIZE to the number on each machine, or give --nodes",
            "mpirun": "use --map-by ppr:N:node for N processes on each machine",
        }
        hint = hints.get(by, "")
        rule = f"{by} must start the same number of processes on each machine, numbered machine by machine"
        problems.append(Problem("", "", rule, got, hint))
    if not devices.address:
        rule = f"{by} must say where rank 0 is, for processes on {devices.nodes} machines"
        problems.append(Problem("MASTER_ADDR", "", rule, "none", "set it to the first machine's address"))
    for flag, value in (("--processes", job.processes), ("--gpus", job.gpus)):
        if isinstance(value, int) and value not in (0, count):
            rule = f"must be the number of processes that {by} starts on each machine, {count}"
            problems.append(Problem(flag, "", rule, str(value), "or leave it out"))
    if devices.gpus and count > there:
        hint = f"start {there} on each machine, or use --processes {count} for the CPU"
        if by == "srun" and there == 1:
            hint = "let each task see all GPUs of its machine: --gpus-per-node in place of --gpus-per-task"
        rule = f"{by} must start one process per GPU"
        problems.append(Problem("", "", rule, f"{count} processes that see {there}", hint))
    if "nodes" in job.model_fields_set and job.nodes != devices.nodes:
        rule = f"must be the number of machines on which {by} starts processes, {devices.nodes}"
        problems.append(Problem("--nodes", "", rule, str(job.nodes), "or leave it out"))
    if devices.gpus and not settings.distributed and devices.ranks > 1:
        rule = f"cannot be false for the {devices.ranks} processes that {by} starts"
        problems.append(Problem("distributed", "", rule))
    return problems
