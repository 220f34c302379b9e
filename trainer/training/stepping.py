"""An optimizer's step: gradients are clipped, and a step that runs out of memory is tried again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

from trainer.errors import NoMemoryError
from trainer.settings import Settings
from trainer.training.memory import free_memory, ran_out_of_memory


def clip(parameters: Sequence[nn.Parameter], settings: Settings) -> None:
    """Clip the gradients. Lightning rejects that for fused optimizers, which could unscale gradients."""
    if settings.gradient_clip_norm:
        nn.utils.clip_grad_norm_(parameters, settings.gradient_clip_norm)
    elif settings.gradient_clip_value:
        # On a CPU the loop is faster: it reads each gradient once, foreach reads it twice.
        foreach = False if parameters[0].device.type == "cpu" else None
        nn.utils.clip_grad_value_(parameters, settings.gradient_clip_value, foreach=foreach)


def step_within_memory(optimizer: LightningOptimizer, settings: Settings, device: torch.device) -> None:
    """Take a step; if memory runs out, free what is unused and take the rest of the step.

    The first step makes the state that the optimizer keeps of each parameter, group by group.

    Raises:
        NoMemoryError: it does not fit.
    """
    if _steps(optimizer):
        return
    plain = optimizer.optimizer
    groups = plain.param_groups
    # A group without state was not stepped. If all have it, memory ran out at another point of the step.
    waiting = [
        any(p.grad is not None and not plain.state.get(p) for p in group["params"]) for group in groups
    ]
    if True in waiting:
        free_memory(device)
        plain.param_groups = groups[waiting.index(True) :]
        try:
            if _steps(optimizer):
                return
        finally:
            plain.param_groups = groups
    smaller = "" if settings.optimizer == "sgd" else "optimizer sgd, which keeps less of each weight, "
    raise NoMemoryError(
        f"{device} ran out of memory in the optimizer's step, which no smaller batch would change; take "
        f"{smaller}layers_to_freeze or a smaller model"
    )


def _steps(optimizer: LightningOptimizer) -> bool:
    """Take a step. Returns False if memory ran out."""
    try:
        optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return False
    return True
