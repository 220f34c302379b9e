"""Clips gradients and takes an optimizer's step, which is continued if it runs out of memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

from trainer.errors import NoMemoryError
from trainer.settings import Settings
from trainer.training.memory import free_memory, ran_out_of_memory


def clip(parameters: Sequence[nn.Parameter], settings: Settings) -> None:
    """Clip the gradients. Lightning's own clipping rejects fused optimizers."""
    if settings.gradient_clip_norm:
        nn.utils.clip_grad_norm_(parameters, settings.gradient_clip_norm)
    elif settings.gradient_clip_value:
        # On a CPU, foreach reads each gradient twice, and a loop only once.
        foreach = False if parameters[0].device.type == "cpu" else None
        nn.utils.clip_grad_value_(parameters, settings.gradient_clip_value, foreach=foreach)


def step_within_memory(optimizer: LightningOptimizer, settings: Settings, device: torch.device) -> None:
    """Take a step; if memory runs out, free unused memory and take the rest of the step.

    The first step creates the optimizer's state of each parameter, group by group.

    Raises:
        NoMemoryError: the step does not fit in memory.
    """
    if _succeeds(optimizer):
        return
    plain = optimizer.optimizer
    groups = plain.param_groups
    # Groups without state are still to be stepped. If all have state, memory ran out elsewhere in the step.
    waiting = [
        any(p.grad is not None and not plain.state.get(p) for p in group["params"]) for group in groups
    ]
    if True in waiting:
        free_memory(device)
        plain.param_groups = groups[waiting.index(True) :]
        try:
            if _succeeds(optimizer):
                return
        finally:
            plain.param_groups = groups
    smaller = "" if settings.optimizer == "sgd" else "optimizer sgd, which keeps less of each weight, "
    raise NoMemoryError(
        f"{device} ran out of memory in the optimizer's step, where a smaller batch would not help; use "
        f"{smaller}layers_to_freeze or a smaller model"
    )


def _succeeds(optimizer: LightningOptimizer) -> bool:
    """Take a step; False if memory ran out."""
    try:
        optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return False
    return True
