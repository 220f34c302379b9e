"""Copies between the CPU and a GPU without the waits that PyTorch's defaults make.

A GPU works through a queue that the CPU fills. Each `.cpu()`, and each small tensor that a library makes of
Python numbers "on the device", waits until the queue is empty, and the GPU then waits for the CPU to fill it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MAKING: tuple[Callable[..., Tensor], ...] = (torch.tensor, torch.as_tensor)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device; to a GPU through pinned memory, without waiting."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def on_cpu(nested: Any) -> Any:
    """Copy the tensors in nested dicts, lists and (named) tuples to the CPU, all in one transfer.

    The structure stays the same; tensors become contiguous. What is on the CPU already is returned as it is.
    """
    tensors: list[Tensor] = []
    _collect(nested, tensors)
    if not tensors:
        return nested
    # The largest element size first, so that each tensor is aligned.
    order = sorted(range(len(tensors)), key=lambda index: -tensors[index].element_size())
    data = torch.cat([tensors[index].contiguous().view(-1).view(torch.uint8) for index in order]).cpu()
    copies: list[Tensor] = list(tensors)
    start = 0
    for index in order:
        tensor = tensors[index]
        stop = start + tensor.numel() * tensor.element_size()
        copies[index] = data[start:stop].view(tensor.dtype).view(tensor.shape)
        start = stop
    remaining = iter(copies)
    return _replaced(nested, lambda tensor: tensor if tensor.device.type == "cpu" else next(remaining))


def as_full(nested: Any) -> Any:
    """Convert the tensors of 16-bit floats in nested dicts, lists and (named) tuples to float32."""
    halves = (torch.bfloat16, torch.float16)
    return _replaced(nested, lambda tensor: tensor.float() if tensor.dtype in halves else tensor)


def _collect(nested: Any, tensors: list[Tensor]) -> None:
    if isinstance(nested, Tensor):
        if nested.device.type != "cpu":
            tensors.append(nested)
    elif isinstance(nested, (dict, list, tuple)):
        for value in nested.values() if isinstance(nested, dict) else nested:
            _collect(value, tensors)


def _replaced(nested: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with its tensors replaced, in the order in which `_collect` finds them."""
    if isinstance(nested, Tensor):
        return replace(nested)
    if isinstance(nested, dict):
        return type(nested)((key, _replaced(value, replace)) for key, value in nested.items())
    if isinstance(nested, (list, tuple)):
        values = [_replaced(value, replace) for value in nested]
        return type(nested)(*values) if hasattr(nested, "_fields") else type(nested)(values)
    return nested


def without_waits(device: torch.device) -> AbstractContextManager[Any]:
    """Run a library's code so that tensors which it makes on the CPU reach the GPU without waiting for it.

    It costs about a microsecond for each call of PyTorch, so leave the network's forward pass outside. On the
    CPU it does nothing.
    """
    return _PinnedCopies() if device.type == "cuda" else nullcontext()


class _PinnedCopies(TorchFunctionMode):
    """Replaces blocking copies from the CPU; everything else runs as it is."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MAKING:
            return _made(func, args, kwargs)
        if args and isinstance(args[0], Tensor):
            if func in (Tensor.to, Tensor.type_as):
                return _sent(func, args, kwargs)
            if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device.type == "cuda":
                return func(args[0], _index(args[1], args[0].device), *args[2:])
            if func is Tensor.new_full and isinstance(fill := args[-1], Tensor):
                return fill.to(kwargs.get("dtype", args[0].dtype)).expand(args[1]).clone()
        return func(*args, **kwargs)


def _made(make: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """What `torch.tensor` and `torch.as_tensor` return."""
    device = kwargs.pop("device", None)
    made = make(*args, **kwargs)
    return made if device is None else to_device(made, torch.device(device))


def _sent(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """What `Tensor.to` and `Tensor.type_as` return."""
    tensor, *places = args
    for place in (*places, kwargs.get("device"), kwargs.get("other")):
        if isinstance(place, (str, torch.device, Tensor)):
            device = place.device if isinstance(place, Tensor) else torch.device(place)
            tensor = to_device(tensor, device) if device.type == "cuda" else tensor
    sent: Tensor = function(tensor, *places, **kwargs)
    return sent


def _index(index: Any, device: torch.device) -> Any:
    """An index into a tensor of the GPU whose own tensors are there, too."""
    if isinstance(index, tuple):
        parts: list[Any] = []
        for part in index:
            moved = _index(part, device)
            parts += moved if isinstance(moved, tuple) else [moved]
        return tuple(parts)
    if isinstance(index, list) and all(type(number) is int for number in index):
        index = torch.tensor(index, dtype=torch.int64)  # an empty list would make a float tensor
    if not isinstance(index, Tensor) or index.device.type != "cpu" or not index.dim():
        return index
    if index.dtype == torch.bool:  # on the GPU, counting the true ones would wait
        return tuple(to_device(each, device) for each in index.nonzero(as_tuple=True))
    return to_device(index, device)
