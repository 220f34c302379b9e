"""Weights to start from: found locally or downloaded as published, checked, and fitted to a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.errors import WeightsError
from trainer.models.weights_choice import NONE, PRETRAINED


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
    """

    files: tuple[str, ...]
    hub: str = ""
    url: str = ""
    head: tuple[str, ...] = ()
    prefix: str = ""
    partial: bool = False


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
    state = _read(path, named=choice != PRETRAINED and Path(choice).is_file())
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
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(published.hub, "model.safetensors"))
        if not published.url:
            raise WeightsError(f"{model} has no published weights; use --weights none or --weights FILE")
        cached = Path(torch.hub.get_dir()) / "checkpoints" / published.files[0]
        if not cached.is_file():
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(published.url, str(cached), progress=False)
        return cached
    except (OSError, ValueError, RuntimeError) as error:
        # huggingface_hub and urllib both raise OSErrors where there is no network.
        where = f"https://huggingface.co/{published.hub}" if published.hub else published.url
        raise WeightsError(
            f"the pretrained weights of {model} are not on this machine and could not be fetched from "
            f"{where} ({type(error).__name__}). Either put {published.files[0]} into a directory and give "
            "--weights DIR (or TRAINER_WEIGHTS=DIR), or train from scratch with --weights none"
        ) from error


def _read(path: Path, *, named: bool) -> Mapping[str, Tensor]:
    """The file's tensors; pickles are read without running code, except files that the user names."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        import pickle

        if not isinstance(error, pickle.UnpicklingError):
            raise WeightsError(f"{path} cannot be read as weights: {error}") from error
        if not named:
            raise WeightsError(
                f"{path} holds Python objects, not tensors alone, and reading it can run code. "
                f"If you trust it, name the file itself: --weights {path}"
            ) from error
        content = torch.load(path, map_location="cpu", weights_only=False)
    return _tensors(content, path)


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
    # Checkpoints of a training hold the network under this name.
    return {key.removeprefix("network."): value for key, value in tensors.items()}


def _fit(
    network: nn.Module, model: str, published: Published, state: Mapping[str, Tensor], source: str
) -> Loaded:
    own = network.state_dict()
    if not any(key in own for key in state):
        state = {published.prefix + key: value for key, value in state.items()}
    taken = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    head = published.head
    counters = tuple(key for key in own if key.endswith("num_batches_tracked"))
    misfits = [
        f"{key} {tuple(own[key].shape)} against {tuple(state[key].shape)}"
        for key in own
        if key in state and key not in taken and not key.startswith(head)
    ]
    missing = [key for key in own if key not in state and not key.startswith(head) and key not in counters]
    complete = published.partial or not missing
    if misfits or not taken or not complete:
        reason = "; ".join([*misfits[:3], *([f"without {', '.join(missing[:3])}"] if not complete else [])])
        raise WeightsError(
            f"{source} does not fit {model}: {len(taken)} of its {len(state)} tensors fit the {len(own)} of "
            f"the network ({reason}). Give the weights of {model}, {published.files[0]}, or --weights none"
        )
    network.load_state_dict(taken, strict=False)
    fresh = tuple(key for key in own if key not in taken and key not in counters)
    return Loaded(source, len(taken), fresh)
