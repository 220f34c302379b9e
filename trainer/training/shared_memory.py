"""Limits loader processes to those whose batches fit in /dev/shm, which containers make small."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from torch import Tensor

log = logging.getLogger("trainer")

_SHARED = Path("/dev/shm")
_BATCHES_PER_WORKER = 3
"""Two that PyTorch prefetches, and one that is being passed on."""
_PLENTY = 2**30
"""Bytes. If each worker has this much, batches are not measured."""


def workers_that_fit(workers: int, batch_bytes: int, free_bytes: int) -> int:
    """The number of loader processes, at most `workers`, whose batches fit; 0: load in the main process.

    Args:
        free_bytes: for the workers' batches and the one that is in use.
    """
    return max(0, min(workers, (free_bytes // max(1, batch_bytes) - 1) // _BATCHES_PER_WORKER))


def limit_workers(workers: int, items: Any, first: Any, size: int, loaders: int) -> int:
    """The number of loader processes that shared memory allows; logs a warning if it is below `workers`.

    Args:
        items: a data set with `collate`, of which `first` is an index.
        size: number of items in a batch.
        loaders: number of loaders, on all ranks of this machine, that share the memory.
    """
    free_bytes = _free_bytes() // loaders
    if not workers or free_bytes >= workers * _PLENTY:
        return workers
    batch_bytes = size * _bytes_of(items.collate([items[first]]))
    fitting = workers_that_fit(workers, batch_bytes, free_bytes)
    if fitting < workers:
        needed = loaders * batch_bytes * (_BATCHES_PER_WORKER * workers + 1)
        log.warning(
            "%s has %d MB free, and the batches of %d loader processes need up to %d MB there: using %d. "
            "For all, start the container with --shm-size=%dm (Kubernetes: an emptyDir of medium Memory)",
            _SHARED, _free_bytes() // 2**20, workers, needed // 2**20, fitting, 2 * needed // 2**20,
        )  # fmt: skip
    return fitting


def _free_bytes() -> int:
    """Free bytes of shared memory; a huge number if the system has no such folder."""
    try:
        found = os.statvfs(_SHARED)
    except OSError:
        return 2**62
    return found.f_bavail * found.f_frsize


def _bytes_of(nested: Any) -> int:
    """Size of the tensors in nested dicts, lists and tuples."""
    if isinstance(nested, Tensor):
        return nested.numel() * nested.element_size()
    if isinstance(nested, dict):
        return sum(map(_bytes_of, nested.values()))
    return sum(map(_bytes_of, nested)) if isinstance(nested, (list, tuple)) else 0
