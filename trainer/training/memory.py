"""Main memory and GPU memory: errors when it runs out, peak use, and reuse of what is freed."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
from lightning.pytorch.utilities.memory import is_oom_error

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
_KEEPING = {_TRIM_THRESHOLD: -1, _TOP_PAD: 2**26, _MMAP_THRESHOLD: 2**25}
"""Keep freed memory, request at least 64 MiB, and serve blocks of up to 32 MiB, the maximum, from it."""
_GIVING_BACK = {_TRIM_THRESHOLD: 2**26, _TOP_PAD: 2**17}
"""The values that the library itself arrives at after a block of 32 MiB was freed."""

NO_MEMORY = 4
"""Exit status of a training process that ran out of memory."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether the error is a lack of GPU memory or main memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or is_oom_error(error)


def free_memory(device: torch.device) -> None:
    """Free unused memory after it ran out. Call it outside the `except` block: the error holds its frames."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Make the C library keep freed memory, because the next training step needs blocks of the same sizes.

    It allocates the activations of a training step on the CPU. If it returned them to the system, the next
    step would cost a page fault for each page. Does nothing for C libraries other than GNU's.
    """
    _set(_KEEPING)
    try:
        yield
    finally:
        give_back()


def give_back() -> None:
    """Return freed memory to the system from now on, also in a process forked within `keep_freed_memory`."""
    if (library := _set(_GIVING_BACK)) is not None:
        library.malloc_trim(0)


def _set(values: Mapping[int, int]) -> ctypes.CDLL | None:
    """Set parameters of the C library's allocator. Returns the library; None if it is not GNU's."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):
        return None
    for parameter, value in values.items():
        library.mallopt(parameter, value)
    return library


def peak_memory() -> dict[str, int]:
    """This process's peak memory in bytes: "process" for main memory, and "GPU" if it used one.

    Empty where the system does not report it.
    """
    peaks = {}
    with suppress(ImportError):  # not on Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peaks["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        peaks["GPU"] = int(torch.cuda.max_memory_allocated())
    return peaks
