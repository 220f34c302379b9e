"""The devices of a training run: GPUs or CPU processes, on one machine or more, and this process's rank."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy

from trainer.cores import available_cores
from trainer.errors import JobError, Problem
from trainer.job.job import Job
from trainer.settings import Settings

ALONE = "TRAINER_ALONE"
"""Environment variable that makes a trial's process train alone, even if a launcher started the sweep."""

CORES = "TRAINER_CORES"
"""Environment variable with the number of CPU cores that a trial's process may use."""

_TIMEOUT = timedelta(minutes=30)
"""Longest wait of one rank for another. A rank that died is noticed at once; this limit is for a network that
fails silently. It must exceed the time in which rank 0 checks all images and downloads weights."""

_FIRST_STEP_WITHOUT_TASKS = 0xFFFFFFF0
"""SLURM numbers its own steps from here on: the interactive shell, the batch script and the like."""

_BY_HAND = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Devices:
    """What a run trains on, and this process's place there: rank = node · local_ranks + local_rank.

    Attributes:
        launcher: what started the processes, "torchrun" or "srun"; "" if `fit` starts those of its machine.
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

    def options(self) -> dict[str, Any]:
        """Lightning's accelerator, devices, strategy, precision and cluster environment."""
        options: dict[str, Any] = {
            "accelerator": "gpu" if self.gpus else "cpu",
            "devices": self.local_ranks,
            "num_nodes": self.nodes,
            "strategy": DDPStrategy(timeout=_TIMEOUT) if self.ranks > 1 else "auto",
            "plugins": [_Environment(self)],
        }
        if self.gpus:
            # PyTorch emulates bfloat16 on older GPUs, where it is slower than float32.
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            options["precision"] = "bf16-mixed" if native else "32-true"
        return options


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
    """The devices that the job asks for, or those that torchrun or srun started processes for.

    Raises:
        JobError: the job asks for more GPUs than there are, or contradicts the launcher.
    """
    there = torch.cuda.device_count()
    launched = _launched(environment)
    problems: list[Problem] = []
    wanted = job.processes or (there if job.gpus == "auto" else job.gpus)
    on_gpus = not job.processes and wanted > 0
    if on_gpus and wanted > there:
        got = f"{wanted}, but this machine has {there or 'none'}"
        if visible := environment.get("CUDA_VISIBLE_DEVICES"):
            got += f" with CUDA_VISIBLE_DEVICES={visible}"
        hint = f"ask for at most {there}" if there else "leave --gpus out to train on the CPU"
        problems.append(Problem("--gpus", "", "asks for too many", got, hint))
    if launched is None:
        node, address, port = _by_hand(job.nodes, environment, problems)
        count = wanted if settings.distributed or not on_gpus else 1
        devices = Devices("", on_gpus, job.nodes, node, count or 1, 0, address, port)
    else:
        devices = replace(launched, gpus=on_gpus)
        problems += _contradictions(job, settings, devices, there, environment)
    if settings.sync_batch_norm and devices.ranks > 1:
        if not on_gpus:
            rule = "needs GPUs: PyTorch has no batch norm across CPU processes"
            problems.append(Problem("sync_batch_norm", "", rule, hint="leave it out on the CPU"))
        elif settings.training_batch_size == "auto":
            rule = "cannot be combined with training_batch_size auto, which each GPU tries for itself"
            problems.append(Problem("sync_batch_norm", "", rule, hint="give training_batch_size a number"))
    if problems:
        raise JobError("the job cannot be run:", problems)
    return devices


def cores_of_a_rank(local_ranks: int, environment: Mapping[str, str] = os.environ) -> int:
    """The CPU cores that each of a machine's ranks may use; at least 1."""
    cores = available_cores()
    cores = min(cores, int(environment.get(CORES, cores)))
    launched = _launched(environment)
    if launched and launched.launcher == "srun" and "SLURM_CPUS_PER_TASK" in environment:
        return min(cores, int(environment["SLURM_CPUS_PER_TASK"]))  # each task has cores of its own
    return max(1, cores // local_ranks)


def _launched(environment: Mapping[str, str]) -> Devices | None:
    """This process among those that torchrun or srun started, not yet on GPUs; None without a launcher."""
    if environment.get(ALONE):
        return None

    def number(name: str) -> int:
        return int(environment[name])

    step = int(environment.get("SLURM_STEP_ID", 0))
    if "TORCHELASTIC_RUN_ID" in environment:
        launcher, local_ranks = "torchrun", number("LOCAL_WORLD_SIZE")
        nodes = number("WORLD_SIZE") // local_ranks
        node, local_rank = number("GROUP_RANK"), number("LOCAL_RANK")
    # Unlike SLURM_NTASKS, batch scripts do not have this: only what srun starts, a shell for salloc included.
    elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and step < _FIRST_STEP_WITHOUT_TASKS:
        launcher, nodes = "srun", number("SLURM_STEP_NUM_NODES")
        local_ranks = number("SLURM_STEP_NUM_TASKS") // nodes
        node, local_rank = number("SLURM_NODEID"), number("SLURM_LOCALID")
    else:
        return None
    first = SLURMEnvironment.resolve_root_node_address(environment.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    # Every rank derives the same port; two steps of one job almost never do.
    offset = int(environment.get("SLURM_JOB_ID", 0)) + 97 * step
    address = environment.get("MASTER_ADDR", first)
    port = int(environment.get("MASTER_PORT", 15000 + offset % 10000))
    return Devices(launcher, False, nodes, node, local_ranks, local_rank, address, port)


def _contradictions(
    job: Job, settings: Settings, devices: Devices, there: int, environment: Mapping[str, str]
) -> list[Problem]:
    """Problems where the job contradicts what the launcher started."""
    by, count = devices.launcher, devices.local_ranks
    problems = []
    total, rank = ("WORLD_SIZE", "RANK") if by == "torchrun" else ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    if int(environment[total]) != devices.ranks or int(environment[rank]) != devices.rank:
        got = f"{environment[total]} on {devices.nodes}, of which this is {environment[rank]}"
        hint = "--ntasks-per-node and --distribution=block give that" if by == "srun" else ""
        rule = f"{by} must start the same number of processes on each machine, numbered machine by machine"
        problems.append(Problem("", "", rule, got, hint))
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


def _by_hand(nodes: int, environment: Mapping[str, str], problems: list[Problem]) -> tuple[int, str, int]:
    """This machine's number, and rank 0's address and port, if the user starts a command on each machine."""
    if nodes == 1:
        return 0, "127.0.0.1", 0
    rule = f"{nodes} machines need a launcher on each"
    values = [environment.get(name, "") for name in _BY_HAND]
    node, address, port = values
    if not (all(values) and node.isdecimal() and int(node) < nodes and port.isdecimal()):
        got = ", ".join(f"{name}={value}" for name, value in zip(_BY_HAND, values, strict=True) if value)
        hint = (
            f"start it by torchrun or srun, or set NODE_RANK (0 to {nodes - 1}), MASTER_ADDR and MASTER_PORT "
            "(docs/many-machines.md); --nodes 1 trains on this machine only"
        )
        problems.append(Problem("--nodes", "", rule, got or "none", hint))
        return 0, "127.0.0.1", 0
    return int(node), address, int(port)
