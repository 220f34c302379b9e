"""The optimizers and learning-rate schedules that the settings can choose."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from trainer.settings import Settings

log = logging.getLogger("trainer")


def build_optimizer(
    network: nn.Module, settings: Settings, layers: Sequence[Sequence[nn.Module]] = ()
) -> Optimizer:
    """Make the optimizer of the trainable parameters, in groups that share learning rate and weight decay.

    Norm weights, biases and parameters that the network exempts, such as a ViT's position embedding, have no
    weight decay.

    Args:
        layers: the network's groups from the input on, as `Family.freeze_groups` lists them. With n groups,
            the learning rate of group i, counted from 0, is learning_rate · layer_decay^(n − i), and that of
            all later parameters learning_rate. Source: Bao et al. 2022 (BEiT), He et al. 2022 (MAE).
    """
    exempt: set[str] = getattr(network, "no_weight_decay", set)()
    depths = _depths(network, layers)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            factor = settings.layer_decay ** (len(layers) - depths[name])
            # Norm weights and biases are the parameters of one dimension.
            decays = parameter.ndim > 1 and name not in exempt
            # Rate and decay themselves may differ in a resumed run, whose groups must stay the same.
            groups.setdefault((factor, decays), []).append(parameter)
    rate, decay = settings.learning_rate, settings.weight_decay
    return _optimizer(
        [
            {"params": group, "lr": rate * factor, "weight_decay": decay if decays else 0.0}
            for (factor, decays), group in groups.items()
        ],
        settings,
    )


def _depths(network: nn.Module, layers: Sequence[Sequence[nn.Module]]) -> dict[str, int]:
    """The group of each parameter by name, counted from 0; len(layers) for those after the last group.

    A parameter outside of all groups belongs to the group that it follows, or to the first if it precedes
    all, like a class token or a position embedding.
    """
    groups = {id(p): i for i, group in enumerate(layers) for layer in group for p in layer.parameters()}
    waiting, depth = set(groups), 0
    depths = {}
    for name, parameter in network.named_parameters():
        if not waiting and id(parameter) not in groups:
            depth = len(layers)
        depth = groups.get(id(parameter), depth)
        waiting.discard(id(parameter))
        depths[name] = depth
    return depths


def _optimizer(groups: list[dict[str, Any]], settings: Settings) -> Optimizer:
    # Fused: all parameters of a group in one pass over memory, on GPUs and CPUs.
    fused = all(p.device.type in ("cuda", "cpu") for group in groups for p in group["params"])
    rate = settings.learning_rate
    if settings.optimizer == "sgd":
        # PyTorch rejects Nesterov momentum without momentum, where it would change nothing.
        nesterov = settings.nesterov and settings.momentum > 0
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, nesterov=nesterov, fused=fused)
    adam = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    betas = (settings.beta1, settings.beta2)
    return adam(groups, lr=rate, betas=betas, amsgrad=settings.ams_gradient, fused=fused)


def rate_factor(settings: Settings, batches_per_epoch: int) -> Callable[[int], float]:
    """The factor of the learning rate as a function of the number of batches trained.

    warmup_cosine, at batch s of T with a warm-up of W batches: s/W while s < W; afterwards
    max(0, ½(1 + cos(2π · cycles · (s−W)/(T−W)))). step: gamma^(epoch // step size).
    Source: the documented schedules of Azure AutoML for Images.
    """
    if settings.learning_rate_scheduler == "step":
        return lambda batch: (
            settings.step_lr_gamma ** (batch // batches_per_epoch // settings.step_lr_step_size)
        )
    warm_up = settings.warmup_cosine_lr_warmup_epochs * batches_per_epoch
    total = settings.number_of_epochs * batches_per_epoch

    def factor(batch: int) -> float:
        if batch < warm_up:
            return batch / warm_up
        progress = (batch - warm_up) / max(1, total - warm_up)
        return max(0.0, 0.5 * (1 + math.cos(2 * math.pi * settings.warmup_cosine_lr_cycles * progress)))

    return factor


def steps_per_epoch(settings: Settings, batches_per_epoch: int) -> int:
    """The number of optimizer steps in an epoch."""
    return math.ceil(batches_per_epoch / settings.gradient_accumulation_step)


def build_schedule(optimizer: Optimizer, settings: Settings, batches_per_epoch: int) -> LambdaLR:
    """Make the schedule of an optimizer that steps once every `gradient_accumulation_step` batches."""
    return LambdaLR(optimizer, factor_at_step(settings, batches_per_epoch))


def factor_at_step(settings: Settings, batches_per_epoch: int) -> Callable[[int], float]:
    """The factor of the learning rate as a function of the number of optimizer steps."""
    factor = rate_factor(settings, batches_per_epoch)
    in_epoch = steps_per_epoch(settings, batches_per_epoch)

    def at_step(step: int) -> float:
        # The last step of an epoch may have fewer batches than the others.
        epoch, within = divmod(step, in_epoch)
        return factor(epoch * batches_per_epoch + within * settings.gradient_accumulation_step)

    return at_step


def restart(schedule: LambdaLR, groups: Sequence[Mapping[str, Any]], step: int) -> None:
    """Set a restored optimizer and its schedule to the values of the resumed run; log a change of rate.

    Args:
        groups: the options of the optimizer's parameter groups as built, with their `initial_lr`.
        step: the schedule's step, counted in the current batches.
    """
    before = max(group["lr"] for group in schedule.optimizer.param_groups)
    schedule.last_epoch = step
    schedule.base_lrs = [group["initial_lr"] for group in groups]
    rates = [base * at(step) for base, at in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, values, rate in zip(schedule.optimizer.param_groups, groups, rates, strict=True):
        group.update(values)
        group["lr"] = rate
    schedule._last_lr = [*rates]
    if not math.isclose(before, max(rates), rel_tol=1e-3):
        log.info(
            "the learning rate %s from %.3g to %.3g, its value in the schedule of all epochs",
            "rises" if max(rates) > before else "falls", before, max(rates),
        )  # fmt: skip
