"""The exponential moving average of a network's weights, which some recipes evaluate and package."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import nn


class WeightAverage(nn.Module):
    """average ← d · average + (1 − d) · weights after each step.

    With tau, d = decay · (1 − exp(−steps / tau)); source: the average that ultralytics keeps, which reaches
    further back only after thousands of steps. Without, d = min(decay, (1 + steps) / (10 + steps)): at any
    time it is over the last ninth of the training, however short that is; source: the one of TensorFlow.
    """

    steps: torch.Tensor

    def __init__(self, network: nn.Module, decay: float = 0.9999, tau: float | None = 2000.0) -> None:
        super().__init__()
        self.network = deepcopy(network).eval().requires_grad_(False)
        self.decay, self.tau = decay, tau
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._count = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network's present weights and statistics."""
        self._count += 1
        self.steps += 1
        decay = self._decay_at(self._count)
        own, new = _tensors(self.network), _tensors(network)
        pairs = list(zip(own, new, strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([one for one, _ in floats], [other for _, other in floats], 1 - decay)
        for one, other in pairs:
            if not one.is_floating_point():
                one.copy_(other)

    def _decay_at(self, step: int) -> float:
        if self.tau is None:
            return min(self.decay, (1 + step) / (10 + step))
        return self.decay * (1 - math.exp(-step / self.tau))

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._count = int(self.steps)


def _tensors(network: nn.Module) -> list[torch.Tensor]:
    """Those of the state dict, in an order of their own: to make one takes longer than to average."""
    buffers = [
        buffer
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]
    return [*network.parameters(), *buffers]
