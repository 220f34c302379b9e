"""A simulated CUDA device: PyTorch runs as on a GPU, and reports where tensors of two devices meet.

Tensors "on cuda:0" are wrappers around tensors on the CPU. PyTorch's dispatcher, CUDA's autocast rules, the
autograd engine, Lightning and our own code see a GPU; each operation computes on the wrapped tensors. An
operation that gets tensors of both devices raises as CUDA does, and whatever would make the host wait for the
device is counted with the line that asked for it. Memory, streams, NCCL, the kernels' own arithmetic and
torch.compile are not rehearsed.

`install()` comes before anything that looks for a GPU. The autograd engine asks CUDA's runtime for the number
of devices, so a process needs the library that `runtime_library` compiles in LD_PRELOAD.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

RUNTIME = r"""
/* As much of CUDA's runtime as the autograd engine asks for. Nothing is computed here. */
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaGetDevice(int *d) { *d = 0; return 0; }
int cudaSetDevice(int d) { (void)d; return 0; }
int cudaDeviceGetStreamPriorityRange(int *l, int *g) { *l = 0; *g = 0; return 0; }
int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }
int cudaDriverGetVersion(int *v) { *v = 13000; return 0; }
int cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }
int cudaStreamIsCapturing(void *s, int *c) { (void)s; *c = 0; return 0; }
struct attributes { int type, device; void *on_device, *on_host; long more[8]; };
int cudaPointerGetAttributes(struct attributes *a, const void *p)
{ a->type = 0; a->device = 0; a->on_device = 0; a->on_host = (void *)p; return 0; }
int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) { (void)d; *f = 0; *a = 0; return 0; }
"""

NAME = "Pretended GPU"

WAITS: Counter[str] = Counter()
"""What made the host wait while `counting`: "operation at our line, called by a library's" → times."""
OPERATIONS: Counter[str] = Counter()
"""Operations that would launch a kernel while `counting`."""
PRODUCTS: Counter[tuple[str, str]] = Counter()
"""(matrix products and convolutions by name, type of numbers) → times, while `counting`."""

_WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive",
    "equal", "is_nonzero", "bincount", "histc", "_linalg_check_errors", "nms",
}  # fmt: skip
_INDEXING = {
    "index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put",
}  # fmt: skip
_TAKES_NO_SCALARS = {"cat", "stack", "mm", "addmm", "bmm"}
"""Operations in which even a tensor of no dimensions must be on the device."""
_MULTIPLYING = {"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "linear"}
_FREE = {
    "view", "expand", "select", "slice", "permute", "transpose", "t", "unsqueeze", "squeeze",
    "as_strided", "detach", "alias", "split", "unbind", "split_with_sizes", "_unsafe_view", "diagonal",
    "unfold", "_reshape_alias", "empty", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided", "is_pinned", "lift_fresh",
}  # fmt: skip
"""Operations that launch no kernel."""
_FROM_NUMBERS = (
    "arange", "arange.start", "arange.start_step", "linspace", "logspace", "range", "range.step",
    "randperm", "randperm.generator", "eye", "eye.m", "tril_indices", "triu_indices",
)  # fmt: skip
_LIBRARIES = ("ultralytics", "torchvision", "timm", "transformers", "torch", "lightning")

_DO_NOTHING = (
    "_lazy_init", "set_device", "empty_cache", "manual_seed", "manual_seed_all",
    "reset_peak_memory_stats", "set_rng_state", "set_rng_state_all",
)  # fmt: skip
_MEMORY_TAKEN = ["memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"]

_library = torch.library.Library("aten", "IMPL")
_is_counting = False
_is_composite: dict[Any, bool] = {}


class MixedDevicesError(RuntimeError):
    """An operation got tensors of the CPU and of the device."""


class OnDevice(torch.Tensor):
    """A tensor that says it is on cuda:0.

    Attributes:
        data_on_cpu: its numbers.
    """

    data_on_cpu: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, data: torch.Tensor, requires_grad: bool = False) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls, data.size(), strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype,
            layout=data.layout, device=torch.device("cuda", 0), requires_grad=requires_grad,
        )  # fmt: skip
        made.data_on_cpu = data
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.data_on_cpu!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.data_on_cpu.detach().clone().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied: Any = OnDevice(self.data_on_cpu.detach().clone(memory_format=torch.preserve_format))
            if isinstance(self, torch.nn.Parameter):
                copied = torch.nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(function, args, kwargs or {})


def _dispatch(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the wrapped tensors; wrap its results unless they go to the CPU."""
    name = function._schema.name.split("::")[1]
    if torch.is_inference_mode_enabled() and name not in ("_to_copy", "copy_") and _composite(function):
        # Operations arrive here whole; outside inference mode, autograd has taken them apart.
        parts = function.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
    leaves = tree_leaves((args, kwargs))
    ours = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
    target = kwargs.get("device")
    to_cpu = target is not None and torch.device(target).type == "cpu"
    _check_devices(name, args, [leaf for leaf in leaves if _on_cpu(leaf)], ours)
    if _is_counting and ours:
        _count(name, args, kwargs, ours, to_cpu=to_cpu)
    if target is not None and not to_cpu:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    result = function(*tree_map(_data, args), **tree_map(_data, kwargs))
    if torch.Tag.inplace_view in function.tags:  # the wrapper's own sizes change, too
        with torch._C._DisableTorchDispatch():
            function(*args, **kwargs)
    if to_cpu or (name == "copy_" and _on_cpu(args[0])) or (not ours and target is None):
        return args[0] if name == "copy_" and _on_cpu(args[0]) else result
    owners = {id(tensor.data_on_cpu): tensor for tensor in ours}
    # A view of a tensor made outside inference mode is not an inference tensor.
    infos = [returned.alias_info for returned in function._schema.returns]
    views = any(info is not None and not info.is_write for info in infos)
    is_normal = views and any(not tensor.is_inference() for tensor in ours)

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return owners[id(value)] if id(value) in owners else OnDevice(value)

    with torch.inference_mode(torch.is_inference_mode_enabled() and not is_normal):
        return tree_map(wrapped, result)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _on_cpu(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, OnDevice)


def _data(value: Any) -> Any:
    return value.data_on_cpu if isinstance(value, OnDevice) else value


def _composite(function: Any) -> bool:
    if function not in _is_composite:
        _is_composite[function] = torch._C._dispatch_has_kernel_for_dispatch_key(
            function.name(), "CompositeImplicitAutograd"
        )
    return _is_composite[function]


def _check_devices(name: str, args: Any, on_cpu: list[torch.Tensor], ours: list[OnDevice]) -> None:
    """Raise where an operation on the device gets a tensor of the CPU that CUDA would not take."""
    if not on_cpu or not ours or name in ("copy_", "_to_copy", "_copy_from"):
        return
    wrong = [tensor for tensor in on_cpu if tensor.dim() or name in _TAKES_NO_SCALARS]
    if name in _INDEXING:  # indices may be on the CPU, but not the tensor that they index
        values = [*args[:1], *args[2:3]]
        indices = [tensor for tensor in wrong if not any(tensor is value for value in values)]
        wrong = [tensor for tensor in wrong if any(tensor is value for value in values)]
        for _ in indices:
            _wait(f"{name} with indices on the CPU")
    if wrong:
        shapes = [tuple(tensor.shape) for tensor in wrong[:3]]
        raise MixedDevicesError(
            f"Expected all tensors to be on the same device: {name} got cuda:0 and cpu {shapes} at {_line()}"
        )


def _count(name: str, args: Any, kwargs: dict[str, Any], ours: list[OnDevice], *, to_cpu: bool) -> None:
    if name not in _FREE:
        OPERATIONS["foreach" if name.startswith(("_foreach", "_fused")) else name] += 1
    if name in _MULTIPLYING:
        PRODUCTS[name, str(ours[0].dtype).removeprefix("torch.")] += 1
    if name == "copy_":
        waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        target, source = args[0], args[1]
        if isinstance(target, OnDevice) and _on_cpu(source) and source.numel():
            if waits or not getattr(source, "is_simulated_pinned", False):
                _wait(f"copy of {tuple(source.shape)} to the device, {'waiting' if waits else 'not pinned'}")
        elif _on_cpu(target) and waits:
            _wait("copy to the CPU")
    elif name == "_to_copy" and to_cpu and not kwargs.get("non_blocking"):
        _wait("copy to the CPU")
    elif name in _WAITING or (
        name == "repeat_interleave" and kwargs.get("output_size") is None and len(ours) == 1
    ):
        _wait(name)
    elif name in _INDEXING:
        masks = [index for index in args[1] if _is_tensor(index) and index.dtype in (torch.bool, torch.uint8)]
        # One number written where one mask is true is a masked_fill, which does not wait.
        fills = "put" in name and _is_tensor(args[2]) and args[2].numel() == 1 and len(masks) == 1
        for _ in masks if not fills else ():
            _wait(f"{name} by a mask")


def _wait(what: str) -> None:
    if _is_counting:
        WAITS[f"{what} at {_line()}"] += 1


def _line() -> str:
    """The innermost line of the project on the stack, and the library's line that it called."""
    frame, library = sys._getframe(1), ""
    while frame is not None:
        name, line = frame.f_code.co_filename, frame.f_lineno
        short = "/".join(Path(name).parts[-2:])
        is_ours = ("/trainer/" in name or "/serving/" in name) and "site-packages" not in name
        if is_ours and not name.endswith("/transfers.py"):
            return f"{short}:{line}" + (f", in {library}" if library else "")
        if not library and any(f"/{part}/" in name for part in _LIBRARIES) and "/torch/_" not in name:
            library = f"{short}:{line}"
        frame = frame.f_back  # type: ignore[assignment]
    return library or "?"


@contextmanager
def counting() -> Iterator[None]:
    """Count waits, operations and products from here to the end of the block."""
    global _is_counting
    for counter in (WAITS, OPERATIONS, PRODUCTS):
        counter.clear()
    _is_counting = True
    try:
        yield
    finally:
        _is_counting = False


def pinned(value: Any) -> Any:
    """A batch whose tensors say that they are pinned, as those of a loader with pin_memory are."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {key: pinned(item) for key, item in value.items()}
    return type(value)(pinned(item) for item in value) if type(value) in (list, tuple) else value


def _pin_memory(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    tensor = tensor.detach()
    tensor.is_simulated_pinned = True  # type: ignore[attr-defined]
    return tensor


class _Stream:
    """A stream or an event on which everything has happened already."""

    device, cuda_stream = torch.device("cuda", 0), 0

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: Any) -> None: ...
    def wait_stream(self, *_: Any) -> None: ...
    def wait_event(self, *_: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def record_event(self, *_: Any) -> _Stream:
        return self

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _wait("synchronize")


def install(*, bf16: bool = True, memory: int = 80 * 2**30) -> None:
    """Make this process see one GPU.

    Args:
        bf16: it computes in bfloat16.
        memory: in bytes.
    """
    properties = SimpleNamespace(name=NAME, total_memory=memory, major=9, minor=0, multi_processor_count=132)
    values: dict[str, Any] = {
        **dict.fromkeys(_DO_NOTHING),
        **dict.fromkeys(_MEMORY_TAKEN, 2**30),
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "is_bf16_supported": bf16,
        "get_device_name": NAME,
        "get_device_capability": (9, 0) if bf16 else (7, 5),
        "get_device_properties": properties,
        "_is_in_bad_fork": False,
        "mem_get_info": (memory - 2**30, memory),
        "memory_stats": {},
        "current_stream": _Stream(),
        "default_stream": _Stream(),
        "device": _Stream(),
    }
    for name, value in values.items():
        setattr(torch.cuda, name, lambda *_, _value=value, **__: _value)
    torch.cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
    torch.cuda.get_rng_state_all = lambda *_: [torch.zeros(16, dtype=torch.uint8)]
    torch.cuda.synchronize = lambda *_: _wait("synchronize")
    torch.cuda.Stream = _Stream
    torch.cuda.Event = _Stream
    torch.cuda.stream = lambda stream: stream
    torch.Tensor.record_stream = lambda *_: None
    torch.Tensor.pin_memory = _pin_memory
    torch.Tensor.is_pinned = lambda tensor, *_: getattr(tensor, "is_simulated_pinned", False)
    for name in ("tensor", "as_tensor"):  # they copy a NumPy array where no dispatcher sees it
        setattr(torch, name, _by_way_of_the_cpu(getattr(torch, name)))
    torch.accelerator.set_device_index = lambda *_: None  # type: ignore[assignment]
    torch.accelerator.current_device_index = lambda *_: 0  # type: ignore[assignment]
    torch.accelerator.synchronize = torch.cuda.synchronize
    torch.nn.functional.scaled_dot_product_attention = _attention  # type: ignore[assignment]
    torch._C._jit_set_texpr_fuser_enabled(False)  # TorchScript would compile kernels for the device
    torch._C._jit_override_can_fuse_on_gpu(False)
    torch.backends.cudnn.enabled = False  # its batch norms are operations of their own
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay the same objects
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda") copies where it is seen
    _install_factories()
    import lightning.fabric.accelerators.cuda as accelerator

    accelerator.num_cuda_devices = lambda: 1
    accelerator.is_cuda_available = lambda: True


def _by_way_of_the_cpu(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return made


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Attention by plain operations: choosing one of CUDA's kernels asks the driver."""
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (x.to(dtype) if x.dtype == torch.float32 else x for x in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    attended: torch.Tensor = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]
    return attended


def _install_factories() -> None:
    """Register the operations that make memory on the device; all other factories use these."""

    def empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> OnDevice:
        return OnDevice(
            torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format)
        )

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> OnDevice:
        return OnDevice(torch.empty_strided(size, stride, dtype=dtype))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they replace CUDA's own
        _library.impl("empty.memory_format", empty, "CUDA")
        _library.impl("empty_strided", empty_strided, "CUDA")
        for name in _FROM_NUMBERS:
            base, _, overload = name.partition(".")
            operation = getattr(getattr(torch.ops.aten, base), overload or "default")

            def make(*args: Any, _operation: Any = operation, **kwargs: Any) -> OnDevice:
                return OnDevice(
                    _operation(*args, **{**kwargs, "device": torch.device("cpu"), "pin_memory": False})
                )

            _library.impl(name, make, "CUDA")


def runtime_library(directory: Path) -> Path:
    """Compile the stand-in for CUDA's runtime; needs gcc."""
    library = directory / "libcuda.so.1"
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), "-x", "c", "-"]
    subprocess.run(command, input=RUNTIME.encode(), check=True)
    return library
