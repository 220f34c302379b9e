"""The exponential moving average of a network's weights, which some recipes evaluate and package."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import nn


class WeightAverage(nn.Module):
    """A moving average, updated after each step: average ← d · average + (1 − d) · weights.

    With tau, d = decay · (1 − exp(−steps / tau)), which averages over many steps only after thousands;
    source: ultralytics. Without tau, d = min(decay, (1 + steps) / (10 + steps)), which is about the mean over
    the last ninth of the run, however short the run is; source: TensorFlow.

    timm's ModelEmaV3 has only the second, walks all modules at each step, and does not save its steps.
    """

    steps: torch.Tensor

    def __init__(self, network: nn.Module, decay: float = 0.9999, tau: float | None = 2000.0) -> None:
        super().__init__()
        self.network = deepcopy(network).eval().requires_grad_(False)
        self.decay, self.tau = decay, tau
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._count = 0
        self._own, self._new = _Tensors(self.network), _Tensors(network)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Add the network's current weights and statistics to the average."""
        self._count += 1
        self.steps += 1
        if self._new.network is not network:
            self._new = _Tensors(network)
        decay = self._decay_at(self._count)
        (floats, counts), (new_floats, new_counts) = self._own.now(), self._new.now()
        torch._foreach_lerp_(floats, new_floats, 1 - decay)
        if counts:
            torch._foreach_copy_(counts, new_counts)

    def _decay_at(self, step: int) -> float:
        if self.tau is None:
            return min(self.decay, (1 + step) / (10 + step))
        return self.decay * (1 - math.exp(-step / self.tau))

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._count = int(self.steps)


class _Tensors:
    """The tensors of a state dict, collected once: walking the modules takes as long as averaging."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._parameters = list(network.parameters())
        self._buffers = [
            (module._buffers, name)
            for module in network.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and name not in module._non_persistent_buffers_set
        ]

    def now(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The floating-point tensors, and the others. Buffers are looked up: modules may replace them."""
        buffers = [buffers[name] for buffers, name in self._buffers]
        tensors = [*self._parameters, *(buffer for buffer in buffers if buffer is not None)]
        floats = [tensor for tensor in tensors if tensor.is_floating_point()]
        return floats, [tensor for tensor in tensors if not tensor.is_floating_point()]
