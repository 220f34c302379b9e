"""Converts published weights as `transformers` does when it loads them, for networks of that library."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as library_logging

_COUNTER = "num_batches_tracked"  # which the library's frozen batch norms lack


def converted(tensors: dict[str, Tensor], network: Any, *, without: str = "") -> dict[str, Tensor]:
    """Published tensors under the network's names, as the library's own loader converts them.

    A tensor of another shape keeps it, without values; what the loader does not know is empty.

    Args:
        without: ends the names of tensors that are left out if the loader does not know them; "" for none.
    """
    library: Any = type(network)
    with _quiet():
        loaded, report = library.from_pretrained(
            None,
            config=network.config,
            state_dict=tensors,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    state = loaded.state_dict()
    for key in report["missing_keys"]:
        state.pop(key, None)
    for key, shape, _ in report["mismatched_keys"]:
        state[key] = torch.empty(tuple(shape), device="meta")
    for key in report["unexpected_keys"]:
        if not without or not key.endswith(without):
            state[key] = torch.tensor(0) if key.endswith(_COUNTER) else torch.empty(0)
    return dict(state)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the library's report of what it loads, and its progress bar: the caller has a report."""
    logger = logging.getLogger("transformers")
    level, shows_progress = logger.level, library_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shows_progress:
            library_logging.enable_progress_bar()
