"""This process's place among those that a launcher started, read from the variables that it sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from trainer.errors import JobError, Problem

ALONE = "TRAINER_ALONE"
"""Environment variable that makes a trial's process train alone, even if a launcher started the sweep."""

_FIRST_STEP_WITHOUT_TASKS = 0xFFFFFFF0
"""SLURM numbers its own steps from here on: the interactive shell, the batch script and the like."""

_BY_HAND = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
_ONE_A_MACHINE = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
"""What Kubeflow sets in each of its pods, without LOCAL_RANK: RANK and WORLD_SIZE count machines."""
_MPI = (
    tuple(f"OMPI_COMM_WORLD_{name}" for name in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK")),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
)  # fmt: skip
"""What Open MPI's, and Intel MPI's and MPICH's, mpirun set."""
_AZURE_MASTERS = ("AZ_BATCH_MASTER_NODE", "AZ_BATCHAI_MPI_MASTER_NODE")
"""HOST:PORT of the first machine of an Azure ML job with the MPI distribution."""
_DEFAULT_PORT = 29500  # PyTorch's


@dataclass(frozen=True, slots=True)
class Place:
    """A process among the ranks of a run: node · local_ranks + local_rank, if machines have equally many.

    Attributes:
        launcher: what started the processes, as messages name it.
        nodes: number of machines; `node` is this one, counted from 0.
        local_ranks: processes on each machine; `local_rank` is this one, counted from 0.
        ranks: number of processes, as the launcher says.
        rank: of this process, as the launcher says.
        address: of rank 0's machine, where the ranks meet at `port`; "" if the launcher does not say.
    """

    launcher: str
    nodes: int
    node: int
    local_ranks: int
    local_rank: int
    ranks: int
    rank: int
    address: str
    port: int


def number(environment: Mapping[str, str], name: str, default: int | None = None, *, least: int = 0) -> int:
    """A whole number that a launcher has set; the default if it has not.

    Raises:
        JobError: it is something else, or less than `least`.
    """
    text = environment.get(name, "").strip()
    if not text and default is not None:
        return default
    if not text.isdecimal() or int(text) < least:
        rule = f"must be a whole number of at least {least}, which the launcher sets"
        hint = "correct it in the launcher, or unset it to train without one"
        raise JobError("the job cannot be run:", [Problem(name, "", rule, repr(text), hint)])
    return int(text)


def launched(environment: Mapping[str, str], nodes: int = 1) -> Place | None:
    """This process among those that a launcher started; None if no launcher started several.

    Args:
        nodes: number of machines, if the launcher does not say.

    Raises:
        JobError: a variable of the launcher's is not the number that it should be.
    """
    if environment.get(ALONE):
        return None
    step = number(environment, "SLURM_STEP_ID", 0)
    if "TORCHELASTIC_RUN_ID" in environment:
        return _of_torchrun(environment)
    # Unlike SLURM_NTASKS, only what srun starts has this, salloc's shell included; batch scripts do not.
    if number(environment, "SLURM_STEP_NUM_TASKS", 1, least=1) > 1 and step < _FIRST_STEP_WITHOUT_TASKS:
        return _of_srun(environment, step)
    if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= environment.keys():
        ranks = number(environment, "WORLD_SIZE", least=1)
        # Azure ML's PyTorch distribution says only how many machines there are.
        machines = number(environment, "AZUREML_NODE_COUNT", nodes, least=1)
        local = number(environment, "LOCAL_WORLD_SIZE", max(1, ranks // machines), least=1)
        rank, local_rank = number(environment, "RANK"), number(environment, "LOCAL_RANK")
        return _place("the launcher", (ranks, rank, local, local_rank), environment)
    for variables in _MPI:
        if set(variables) <= environment.keys():
            ranks, rank, local, local_rank = _sizes_and_ranks(environment, *variables)
            return _place("mpirun", (ranks, rank, local, local_rank), environment)
    return None


def _of_torchrun(environment: Mapping[str, str]) -> Place:
    names = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
    ranks, rank, local_ranks, local_rank = _sizes_and_ranks(environment, *names)
    node = number(environment, "GROUP_RANK")
    address, port = _meeting(environment, "127.0.0.1", _DEFAULT_PORT)
    return Place("torchrun", ranks // local_ranks, node, local_ranks, local_rank, ranks, rank, address, port)


def _of_srun(environment: Mapping[str, str], step: int) -> Place:
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NUM_NODES", "SLURM_NODEID")
    ranks, rank, nodes, node = _sizes_and_ranks(environment, *names)
    local_rank = number(environment, "SLURM_LOCALID")
    first = SLURMEnvironment.resolve_root_node_address(environment.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    # Every rank derives the same port; two steps of one job almost never do.
    offset = number(environment, "SLURM_JOB_ID", 0) + 97 * step
    address, port = _meeting(environment, first, 15000 + offset % 10000)
    return Place("srun", nodes, node, ranks // nodes, local_rank, ranks, rank, address, port)


def _place(launcher: str, numbers: tuple[int, int, int, int], environment: Mapping[str, str]) -> Place | None:
    """The place of a process that knows (ranks, rank, local ranks, local rank)."""
    ranks, rank, local_ranks, local_rank = numbers
    if ranks == 1:
        return None
    nodes = max(1, ranks // local_ranks)
    masters = [environment[name].partition(":")[0] for name in _AZURE_MASTERS if environment.get(name)]
    first = next(iter(masters), "127.0.0.1" if nodes == 1 else "")
    # The launcher is the parent of all processes of its machine.
    default = 15000 + os.getppid() % 10000 if nodes == 1 else _DEFAULT_PORT
    address, port = _meeting(environment, first, default)
    return Place(launcher, nodes, rank // local_ranks, local_ranks, local_rank, ranks, rank, address, port)


def _meeting(environment: Mapping[str, str], address: str, port: int) -> tuple[str, int]:
    """Where the ranks meet: MASTER_ADDR and MASTER_PORT, or else the arguments."""
    return environment.get("MASTER_ADDR", address), number(environment, "MASTER_PORT", port, least=1)


def _sizes_and_ranks(
    environment: Mapping[str, str], size: str, rank: str, part_size: str, part_rank: str
) -> tuple[int, int, int, int]:
    """The numbers in four variables: two counts, each followed by a rank in it."""
    return (
        number(environment, size, least=1), number(environment, rank),
        number(environment, part_size, least=1), number(environment, part_rank),
    )  # fmt: skip


def started_by_hand(
    nodes: int, environment: Mapping[str, str], problems: list[Problem]
) -> tuple[int, int, str, int]:
    """The place of a process that was started alone on its machine.

    Args:
        nodes: the job's number of machines.
        problems: gets a problem if the variables say too little.

    Returns:
        The number of machines, this one's number, and rank 0's address and port.

    Raises:
        JobError: see `launched`.
    """
    alone = environment.get(ALONE) or "LOCAL_RANK" in environment
    if not alone and environment.keys() >= _ONE_A_MACHINE:
        machines = number(environment, "WORLD_SIZE", least=1)
        if nodes in (1, machines):
            nodes = machines
            environment = {**environment, "NODE_RANK": str(number(environment, "RANK"))}
    if nodes == 1:
        return nodes, 0, "127.0.0.1", 0
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
        return nodes, 0, "127.0.0.1", 0
    return nodes, int(node), address, int(port)
