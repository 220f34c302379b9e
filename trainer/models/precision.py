"""The precision in which networks compute: float32, float32 with products in TF32, or half precision."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from trainer.errors import Problem, RunError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "bf16", "fp16", "tf32", "float32"]
"""bf16 and fp16 are mixed precision; in tf32 a GPU rounds the factors of float32 products to 11 bits."""


def check_precision(precision: Precision, supported: Sequence[Precision], devices: str) -> list[Problem]:
    """The problem of a job's precision that its devices do not compute in, if it has one.

    Args:
        devices: what they are, such as "the CPU".
    """
    if precision == "auto" or precision in supported:
        return []
    hint = f"use auto or {' or '.join(supported)}"
    return [Problem("--precision", "", f"must be one that {devices} trains in", precision, hint)]


def half_of(precision: Precision) -> torch.dtype | None:
    """The type of 16 bits in which a network mostly computes; None for float32."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def check_scoring_precision(precision: Precision, device: torch.device) -> None:
    """Reject a precision that has no meaning on the device that scores.

    Raises:
        RunError: names those that have one.
    """
    if precision == "tf32" and device.type != "cuda":
        raise RunError(f"--precision tf32: needs a GPU, not {device.type}; use float32, bf16 or fp16")


@contextmanager
def in_precision(device: torch.device, half: torch.dtype | None) -> Iterator[None]:
    """Compute in mixed precision of a type of 16 bits within the block; in float32 with None."""
    import torch

    with torch.autocast(device.type, dtype=half, enabled=half is not None):
        yield


class _GpuSettings:
    """Counts who relies on PyTorch's settings of products and convolutions, which are the whole process's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = ("highest", True, False)

    def enter(self, *, exact: bool) -> None:
        import torch

        with self._lock:
            if not self._users:
                cudnn = torch.backends.cudnn
                self._before = (torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark)
                torch.set_float32_matmul_precision("highest" if exact else "high")
                cudnn.allow_tf32 = not exact
            self._users += 1

    def leave(self) -> None:
        import torch

        with self._lock:
            self._users -= 1
            if not self._users:
                products, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = self._before
                torch.set_float32_matmul_precision(products)


_settings = _GpuSettings()


@contextmanager
def float32_products(precision: Precision, *, on_gpu: bool) -> Iterator[None]:
    """Within the block, let GPUs compute products of float32 in TF32, which is several times faster.

    With the precision float32 they are exact. Afterwards PyTorch has its former settings, that of cuDNN's
    benchmark, which Lightning sets, too. Blocks in other threads, and blocks within this one, get what the
    first sets.

    Args:
        on_gpu: whether a GPU computes at all; without, nothing changes.
    """
    if not on_gpu:
        yield
        return
    _settings.enter(exact=precision == "float32")
    try:
        yield
    finally:
        _settings.leave()
