"""A network rewritten so that its gradients cost less and stay the same, for where many of them are needed.

What follows what is seen in one run, not traced: torch.fx would change every module in the process while it
traces, those of other threads that score as well. A rewriting that a network does not allow fails, or shows
in its answers; then the network goes without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from serving.explain.subject import with_shared_tensors


@dataclass(frozen=True, slots=True)
class Halves:
    """A network as `body(stem(images))`, its stem being affine: of a straight path it makes a straight path.

    Both can be run by several threads at once.
    """

    stem: nn.Module
    body: nn.Module


def halves(network: nn.Module, size: int) -> Halves:
    """Rewrite a copy of a network, which shares the tensors that stay as they are.

    Args:
        network: in eval mode, [N, 3, size, size] → logits [N, C].
    """
    parameter = next(network.parameters())
    # Noise, so that no part of the network stays without influence on the answer.
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(parameter)
    with torch.no_grad():
        expected = network(noise)
        best = Halves(nn.Identity(), with_shared_tensors(network))
        for rewrite in (_without_batch_norms, _pooled_first, _cut):
            try:
                tried = rewrite(best, noise)
                found = tried.body(tried.stem(noise))
            except Exception:  # noqa: BLE001 (networks refuse in as many ways as they are written)
                continue
            if bool((found - expected).abs().max() <= 1e-3 * expected.abs().max()):
                best = tried
    return best


def _without_batch_norms(given: Halves, images: Tensor) -> Halves:
    """Convolutions take over the scale and shift of the batch norm behind them."""
    body = with_shared_tensors(given.body)
    for before, after in _pairs(given.body, images):
        convolution, norm = (given.body.get_submodule(name) for name in (before, after))
        # Not of their subclasses, but for timm's, which have an activation with them.
        if type(convolution) is not nn.Conv2d or not isinstance(norm, nn.BatchNorm2d):
            continue
        if type(norm) is not nn.BatchNorm2d and not (hasattr(norm, "drop") and hasattr(norm, "act")):
            continue
        fused = fuse_conv_bn_eval(convolution, norm).requires_grad_(False)
        if images.device.type == "cpu":
            fused = fused.to(memory_format=torch.channels_last)
        body.set_submodule(before, fused)
        plain = type(norm) is nn.BatchNorm2d
        rest = nn.Identity() if plain else nn.Sequential(norm.drop, norm.act)  # type: ignore[arg-type]
        body.set_submodule(after, rest)
    return Halves(given.stem, body)


def _pooled_first(given: Halves, images: Tensor) -> Halves:
    """The maximum of ReLUs is the ReLU of the maximum, for a quarter of the values."""
    body = with_shared_tensors(given.body)
    for before, after in _pairs(given.body, images):
        relu, pool = (given.body.get_submodule(name) for name in (before, after))
        if type(relu) is nn.ReLU and type(pool) is nn.MaxPool2d:
            body.set_submodule(before, nn.Identity())
            body.set_submodule(after, nn.Sequential(pool, relu))
    return Halves(given.stem, body)


def _cut(given: Halves, images: Tensor) -> Halves:
    """A convolution that alone looks at the image is the stem. Its gradient is among the costliest."""
    body = with_shared_tensors(given.body)
    run = _watched(given.body, images)
    first = next(name for name, values in run.inputs.items() if values is images)
    stem = body.get_submodule(first)
    if type(stem) is not nn.Conv2d or run.times[first] > 1:
        return given
    body.set_submodule(first, nn.Identity())
    return Halves(stem, body)


@dataclass
class _Run:
    """What went into each module without children and what came out, by its name, in the order of the run."""

    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)


def _watched(network: nn.Module, images: Tensor) -> _Run:
    network, run = with_shared_tensors(network), _Run()

    def watch(name: str, module: nn.Module) -> None:
        def before(_: nn.Module, values: tuple[Any, ...]) -> None:
            run.inputs[name] = values[0] if values else None
            run.times[name] += 1

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            run.outputs[name] = output

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    for name, module in network.named_modules():
        if name and (not any(module.children()) or isinstance(module, nn.BatchNorm2d)):
            watch(name, module)
    network(images)
    return run


def _pairs(network: nn.Module, images: Tensor) -> Iterator[tuple[str, str]]:
    """Names of modules of which the second takes what the first gives, each used once."""
    run = _watched(network, images)
    # In-place modules and identities give what they take: the last one counts.
    made_by = {id(output): name for name, output in run.outputs.items() if isinstance(output, Tensor)}
    for name, values in run.inputs.items():
        maker = made_by.get(id(values), name)
        if maker != name and run.times[maker] == run.times[name] == 1:
            yield maker, name
