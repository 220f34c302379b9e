"""Weights to start from: found locally or downloaded as published, checked, and fitted to a network."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import WeightsError
from trainer.models.weights_choice import NONE, PRETRAINED

_COUNTER = "num_batches_tracked"
"""Batch norms count batches under this name; frozen ones do not, and nothing needs the number."""


@dataclass(frozen=True, slots=True)
class Published:
    """The weights that a model's library publishes.

    Attributes:
        files: names under which a directory may hold them, the usual one first.
        hub: repository on the Hugging Face hub, "" if there is none.
        url: address of the first file, "" if there is none.
        head: prefixes of the tensors that depend on the classes; these alone may differ.
        prefix: where the file's tensors go in the network, e.g. "backbone.body." for a backbone's weights.
        partial: the file covers only a part of the network (a backbone).
        adapt: (tensors, network) → tensors that fit a network of another image size, as the library does it.
    """

    files: tuple[str, ...]
    hub: str = ""
    url: str = ""
    head: tuple[str, ...] = ()
    prefix: str = ""
    partial: bool = False
    adapt: Callable[..., dict[str, Tensor]] | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was taken from where; `fresh` names the network's tensors that keep their random values."""

    source: str
    taken: int
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.taken} tensors from {self.source}"
        if not self.fresh:
            return text
        shown = ", ".join(self.fresh[:4]) + (
            f" and {len(self.fresh) - 4} more" if len(self.fresh) > 4 else ""
        )
        return f"{text}; starting anew: {shown}"


def load(network: nn.Module, model: str, published: Published, choice: str) -> Loaded | None:
    """Fill the network from `choice`: "none", "pretrained", a directory of published files, or a file.

    Returns:
        What was loaded; None for "none".

    Raises:
        WeightsError: nothing there, unreadable, or made for another network.
    """
    if choice == NONE:
        return None
    path = _download(model, published) if choice == PRETRAINED else _find(Path(choice), model, published)
    named = choice != PRETRAINED and Path(choice).is_file()
    state = _read(path, network, named=named)
    return _fit(network, model, published, state, str(path))


def _find(path: Path, model: str, published: Published) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"--weights {path}: no such file or directory; give a file, a directory or none")
    for name in published.files:
        if (path / name).is_file():
            return path / name
    names = " or ".join(published.files)
    raise WeightsError(
        f"--weights {path}: holds no weights for {model}; looked for {names}. "
        "Put the file there, name it with --weights FILE, or train from scratch with --weights none"
    )


def _download(model: str, published: Published) -> Path:
    """The published file from the library's own cache or, failing that, the network."""
    try:
        if published.hub:
            from huggingface_hub import hf_hub_download, try_to_load_from_cache

            # Without a network, asking the hub whether there is a newer one takes long.
            cached = try_to_load_from_cache(published.hub, "model.safetensors")
            if isinstance(cached, str):
                return Path(cached)
            return Path(hf_hub_download(published.hub, "model.safetensors"))
        if not published.url:
            raise WeightsError(f"{model} has no published weights; use --weights none or --weights FILE")
        file = Path(torch.hub.get_dir()) / "checkpoints" / published.files[0]
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(published.url, str(file), progress=False)
        return file
    except (OSError, ValueError, RuntimeError) as error:
        # huggingface_hub and urllib both raise OSErrors where there is no network.
        where = f"https://huggingface.co/{published.hub}" if published.hub else published.url
        raise WeightsError(
            f"the pretrained weights of {model} are not on this machine and could not be fetched from "
            f"{where} ({type(error).__name__}). Either put {published.files[0]} into a directory and give "
            "--weights DIR (or TRAINER_WEIGHTS=DIR), or train from scratch with --weights none"
        ) from error


def _read(path: Path, network: nn.Module, *, named: bool) -> Mapping[str, Tensor]:
    """The file's tensors; pickles are read without running code, except files that the user names.

    A file that holds a whole network, as ultralytics publishes them, may be made of `network`'s own classes.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        with torch.serialization.safe_globals(_classes(network)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises the same for forbidden objects and for files that are no pickle at all.
        holds_objects = isinstance(error, pickle.UnpicklingError) and _starts_as_pickle(path)
        if not holds_objects:
            raise WeightsError(f"{path} cannot be read as weights: {_brief(error)}") from error
        if not named:
            raise WeightsError(
                f"{path} holds Python objects, not tensors alone, and reading it can run code. "
                f"If you trust it, name the file itself: --weights {path}"
            ) from error
        content = _read_objects(path)
    return _tensors(content, path)


def _classes(network: nn.Module) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """The classes of the network's modules, also under the package's name, where older files have them."""
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    for kind in {type(module) for module in network.modules()}:
        allowed.append(kind)
        package = kind.__module__.rpartition(".")[0]
        if getattr(sys.modules.get(package), kind.__name__, None) is kind:
            allowed.append((kind, f"{package}.{kind.__name__}"))
    return allowed


def _starts_as_pickle(path: Path) -> bool:
    """Whether torch.save may have written the file: a zip archive, or a pickle of protocol 2 or later."""
    with path.open("rb") as file:
        start = file.read(2)
    return start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _read_objects(path: Path) -> object:
    """Everything in a pickle, running the code that it asks for."""
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # the file's own code may raise anything
        reason = f"{type(error).__name__}: {_brief(error)}"
        raise WeightsError(f"{path} cannot be read as weights: {reason}") from error


def _brief(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:300]


def _tensors(content: object, path: Path) -> Mapping[str, Tensor]:
    """The state dict inside what libraries save around it."""
    if isinstance(content, nn.Module):
        return content.float().state_dict()
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds no tensors by name but a {type(content).__name__}")
    for key in ("ema", "model", "state_dict"):
        if isinstance(content.get(key), (Mapping, nn.Module)):
            return _tensors(content[key], path)
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    # A run's own checkpoints hold the network under these names, the one that is scored first.
    for prefix in ("average.network.", "network."):
        scored = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if scored:
            return scored
    return tensors


def _fit(
    network: nn.Module, model: str, published: Published, state: Mapping[str, Tensor], source: str
) -> Loaded:
    if published.adapt is not None:
        state = published.adapt(dict(state), network)
    own = network.state_dict()
    head = published.head
    needed = [key for key in own if not key.startswith(head)]
    if published.partial and not any(key in own for key in state):
        # A backbone's file: its own classifier has no place here.
        state = {published.prefix + key: value for key, value in state.items() if not key.startswith("fc.")}
        needed = [key for key in needed if key.startswith(published.prefix)]
    fitting = {
        key: value
        for key, value in state.items()
        if not key.startswith(head) or (key in own and own[key].shape == value.shape)
    }
    try:
        # Not before this are names compared: torchvision's layers rename those of older files as they load.
        outcome = network.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:4]]
    else:
        absent = set(outcome.missing_keys)
        missing = [key for key in needed if key in absent and not key.endswith(_COUNTER)]
        # A deeper network's file holds all that a shallower one asks for.
        surplus = [key for key in outcome.unexpected_keys if not key.endswith(_COUNTER)]
        reasons = [f"it lacks {', '.join(missing[:3])}"] if missing else []
        reasons += [f"it also holds {', '.join(surplus[:3])}"] if surplus else []
    if reasons:
        raise WeightsError(
            f"{source} does not fit {model}, it was made for another network: {'; '.join(reasons)}. "
            f"Give the weights of {model}, {published.files[0]}, or --weights none"
        )
    fresh = tuple(key for key in own if key in absent and not key.endswith(_COUNTER))
    return Loaded(source, len(fitting) - len(outcome.unexpected_keys), fresh)
