"""Main memory and the GPU's: that it ran out, how much was taken, and that what is freed is used again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
from lightning.pytorch.utilities.memory import is_oom_error

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
_KEEPING = {_TRIM_THRESHOLD: -1, _TOP_PAD: 2**26, _MMAP_THRESHOLD: 2**25}
"""Give nothing back, fetch 64 MiB at least, and take blocks up to 32 MiB, the most allowed, from there."""
_GIVING_BACK = {_TRIM_THRESHOLD: 2**26, _TOP_PAD: 2**17}
"""What the library itself comes to once 32 MiB were freed; that threshold stays as large."""

NO_MEMORY = 4
"""Exit status of a process that trains, if memory ran out."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the GPU, or of the machine, was not enough."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or is_oom_error(error)


@contextmanager
def reused() -> Iterator[None]:
    """Within it the C library keeps what is freed, since the next step asks for blocks of the same sizes.

    On a CPU a step's activations come from it; given back to the system and fetched anew, each page of them
    costs a fault. Does nothing where the C library is not GNU's.
    """
    _set(_KEEPING)
    try:
        yield
    finally:
        give_back()


def give_back() -> None:
    """What is freed, and will be from now on: in a process that was forked within `reused`, too."""
    if (library := _set(_GIVING_BACK)) is not None:
        library.malloc_trim(0)


def _set(values: Mapping[int, int]) -> ctypes.CDLL | None:
    """The C library with these parameters of its allocator; None if it is not GNU's."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):
        return None
    for parameter, value in values.items():
        library.mallopt(parameter, value)
    return library


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
