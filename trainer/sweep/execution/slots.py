"""Divides a machine's GPUs, or its CPU cores, among the trials that run at the same time."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from trainer.cores import available_cores
from trainer.errors import JobError, Problem
from trainer.job.job import Job
from trainer.models.precision import check_precision

log = logging.getLogger("trainer")


@dataclass(frozen=True)
class Slot:
    """The devices that run one trial at a time.

    Attributes:
        gpus: names of the GPUs as CUDA_VISIBLE_DEVICES takes them; empty for the CPU.
        threads: CPU threads for each process of the trial.
        cores: CPU cores for all of its processes, data loading included.
    """

    gpus: tuple[str, ...]
    threads: int
    cores: int

    def thread_variables(self) -> dict[str, str]:
        """Environment variables that OpenMP reads when its library is loaded."""
        variables = {"OMP_NUM_THREADS": str(self.threads)}
        if not self.gpus:
            variables["OMP_WAIT_POLICY"] = "PASSIVE"  # threads of parallel trials must not spin
        return variables

    def variables(self) -> dict[str, str]:
        """The environment variables that keep a trial to its slot."""
        devices = {"TRAINER_CORES": str(self.cores), "CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}
        return self.thread_variables() | devices


def make_slots(job: Job, count: int) -> list[Slot]:
    """Divide this machine into `count` equal slots; into fewer if it has fewer GPUs.

    Raises:
        JobError: the job asks for more GPUs than there are, or for a precision that the CPU lacks.
    """
    gpus = [] if job.processes else _gpus(job.gpus)
    if not gpus and (problems := check_precision(job.precision, ("float32",), "the CPU")):
        raise JobError("the job cannot be run:", problems)
    if 0 < len(gpus) < count:
        log.warning("running %d trials at a time, not %d: there are %d GPUs", len(gpus), count, len(gpus))
        count = len(gpus)
    cores = max(1, available_cores() // count)
    if not gpus:
        return [Slot((), max(1, cores // (job.processes or 1)), cores)] * count
    gpus_per_slot, idle = divmod(len(gpus), count)
    if idle:
        log.warning("%d of %d GPUs stay idle: %d trials cannot share them evenly", idle, len(gpus), count)
    return [Slot(tuple(gpus[i * gpus_per_slot :][:gpus_per_slot]), cores, cores) for i in range(count)]


def _gpus(wanted: int | str) -> list[str]:
    if wanted == 0:
        return []
    import torch

    count = torch.cuda.device_count()
    if wanted != "auto" and int(wanted) > count:
        problem = Problem("--gpus", "", f"must be at most the GPUs of this machine, {count}", str(wanted))
        raise JobError("the job cannot be run:", [problem])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(count)]
    return names[: count if wanted == "auto" else int(wanted)]
