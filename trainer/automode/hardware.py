"""The hardware that each trial has to itself, on which AutoMode bases its estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.job.job import Job
from trainer.sweep.execution.slots import Slot


@dataclass(frozen=True)
class Hardware:
    """What one trial has to itself.

    Attributes:
        gpus: number of GPUs; 0: it trains on the CPU.
        memory: of each GPU in GiB; of different GPUs the least.
        bandwidth: of that memory, in GB/s.
        cores: number of CPU cores.
    """

    gpus: int
    memory: float
    bandwidth: float
    cores: int

    def in_words(self) -> str:
        """A phrase for the log."""
        if not self.gpus:
            cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
            return f"trials on the CPU, each on {cores}: small models"
        return f"trials on {self.gpus} GPU{'s' if self.gpus > 1 else ''} of {self.memory:.0f} GiB each"


def trial_hardware(job: Job, slots: Sequence[Slot]) -> Hardware:
    """The hardware of each of the slots; if their GPUs differ, that of the weakest."""
    slot = slots[0]
    if not slot.gpus:
        return Hardware(0, 0.0, 0.0, slot.threads * (job.processes or 1))
    import torch

    count = sum(len(slot.gpus) for slot in slots)
    devices = [torch.cuda.get_device_properties(index) for index in range(count)]
    memory = min(device.total_memory for device in devices) / 2**30
    return Hardware(len(slot.gpus), memory, min(map(_bandwidth, devices)), slot.threads)


def _bandwidth(device: Any) -> float:
    """GB/s: two transfers per clock cycle (kHz) on each line of the bus (bits)."""
    return float(2 * device.memory_clock_rate * 1e3 * device.memory_bus_width / 8 / 1e9)
