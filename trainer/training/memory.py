"""Out of memory, as PyTorch's devices say it."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities.memory import is_oom_error


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the GPU, or of the machine, was not enough."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or is_oom_error(error)
