"""Rewrites a network so that many gradients of it cost less, with the same outputs.

Which module follows which is observed in one forward pass. torch.fx is no alternative: while it traces, it
patches every module in the process, including those of threads that score. A rewrite is kept only if
the network's output stays the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from serving.explain.subject import Halves, with_shared_tensors


def halves(network: nn.Module, size: int) -> Halves:
    """Rewrite a copy of a network; it shares the tensors that stay the same.

    Args:
        network: in eval mode, [N, 3, size, size] → logits [N, C].
    """
    parameter = next(network.parameters())
    # With noise, every part of the network has an influence on the output.
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(parameter)
    with torch.no_grad():
        expected = network(noise)
        best = Halves(nn.Identity(), with_shared_tensors(network))
        for rewrite in (_fold_batch_norms, _pool_before_relu, _cut_off_stem):
            try:
                candidate = rewrite(best, noise)
                output = candidate.body(candidate.stem(noise))
            except Exception:  # noqa: BLE001 (a network may object to a rewrite in any way)
                continue
            if bool((output - expected).abs().max() <= 1e-3 * expected.abs().max()):
                best = candidate
    return best


def _fold_batch_norms(network: Halves, images: Tensor) -> Halves:
    """Move the scale and shift of each batch norm into the convolution before it."""
    body = with_shared_tensors(network.body)
    for first, second in _consecutive(network.body, images):
        convolution, norm = (network.body.get_submodule(name) for name in (first, second))
        if type(convolution) is not nn.Conv2d or not isinstance(norm, nn.BatchNorm2d):
            continue
        # Of the subclasses only timm's is known: it then applies its children, dropout and activation.
        children = dict(norm.named_children())
        if type(norm) is not nn.BatchNorm2d and children.keys() != {"drop", "act"}:
            continue
        fused = fuse_conv_bn_eval(convolution, norm).requires_grad_(False)
        if images.device.type == "cpu":
            fused = fused.to(memory_format=torch.channels_last)
        body.set_submodule(first, fused)
        body.set_submodule(second, nn.Sequential(*children.values()))
    return Halves(network.stem, body)


def _pool_before_relu(network: Halves, images: Tensor) -> Halves:
    """Swap a ReLU and the max pooling after it: the result is the same, for a quarter of the values."""
    body = with_shared_tensors(network.body)
    for first, second in _consecutive(network.body, images):
        relu, pool = (network.body.get_submodule(name) for name in (first, second))
        if type(relu) is nn.ReLU and type(pool) is nn.MaxPool2d:
            body.set_submodule(first, nn.Identity())
            body.set_submodule(second, nn.Sequential(pool, relu))
    return Halves(network.stem, body)


def _cut_off_stem(network: Halves, images: Tensor) -> Halves:
    """Make the first convolution the stem if nothing else sees the image: its gradient is expensive."""
    body = with_shared_tensors(network.body)
    run = _observe(network.body, images)
    first = next(name for name, values in run.inputs.items() if values is images)
    stem = body.get_submodule(first)
    if type(stem) is not nn.Conv2d or run.calls[first] > 1:
        return network
    body.set_submodule(first, nn.Identity())
    return Halves(stem, body)


@dataclass
class _Run:
    """Inputs and outputs of the innermost modules in a forward pass, by name, in the order of their ends."""

    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)


def _observe(network: nn.Module, images: Tensor) -> _Run:
    network, run = with_shared_tensors(network), _Run()

    def observe(name: str, _: nn.Module, values: tuple[Any, ...], output: Any) -> None:
        run.inputs[name] = values[0] if values else None
        run.outputs[name] = output
        run.calls[name] += 1

    for name, module in network.named_modules():
        if name and (not any(module.children()) or isinstance(module, nn.BatchNorm2d)):
            module.register_forward_hook(partial(observe, name))
    network(images)
    return run


def _consecutive(network: nn.Module, images: Tensor) -> Iterator[tuple[str, str]]:
    """Names of two modules, each called once, where the second gets what the first returns."""
    run = _observe(network, images)
    # In-place modules and identities return their input, so the last producer counts.
    producers = {id(output): name for name, output in run.outputs.items() if isinstance(output, Tensor)}
    for name, values in run.inputs.items():
        producer = producers.get(id(values), name)
        if producer != name and run.calls[producer] == run.calls[name] == 1:
            yield producer, name
