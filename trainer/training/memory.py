"""Out of memory, as PyTorch's devices say it."""

from __future__ import annotations

import sys
from contextlib import suppress

import torch
from lightning.pytorch.utilities.memory import is_oom_error

NO_MEMORY = 4
"""Exit status of a process that trains, if memory ran out."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the GPU, or of the machine, was not enough."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or is_oom_error(error)


def peak() -> dict[str, int]:
    """Bytes that this process took at most so far: of main memory as "process", and as "GPU" if it used one.

    Empty where the system does not tell.
    """
    taken = {}
    with suppress(ImportError):  # not on Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        taken["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        taken["GPU"] = int(torch.cuda.max_memory_allocated())
    return taken
