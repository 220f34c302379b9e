"""Reads the tensors in a weights file without running the code that a pickle may contain."""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import WeightsError
from trainer.models.spec import Spec
from trainer.models.weights.hub import INDEX_SUFFIX

_HOLDERS = (argparse.Namespace, types.SimpleNamespace)
"""Classes in which files store the settings of their run; they only hold values."""

SPEC_KEY = "spec"
"""The key of a checkpoint for its network's Spec, as JSON."""


def read(path: Path, network: nn.Module, *, named: bool) -> tuple[Mapping[str, Tensor], Spec | None]:
    """Read a file's tensors by name, and the spec of their network if the file is a checkpoint of ours.

    A file with a whole network, as ultralytics publishes them, may consist of objects of `network`'s classes.

    Args:
        named: the user named this very file, and thereby trusts the objects in it.

    Raises:
        WeightsError: the file is damaged, holds no named tensors, or holds objects of other classes without
            having been named by the user.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: dict[str, Tensor] = load_file(path)
            return tensors, None
        if path.name.endswith(INDEX_SUFFIX):
            parts = [read(shard, network, named=named)[0] for shard in shards(path)]
            return {key: value for part in parts for key, value in part.items()}, None
        with torch.serialization.safe_globals([*_classes(network), *_HOLDERS]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:  # of a shard
        raise
    except Exception as error:
        # torch raises the same error for objects that it rejects and for files that are not pickles.
        holds_objects = isinstance(error, pickle.UnpicklingError) and _starts_as_pickle(path)
        if not holds_objects:
            raise WeightsError(f"{path} cannot be read as weights: {brief(error)}") from error
        if not named:
            raise WeightsError(
                f"{path} holds Python objects besides tensors, and reading it can run code. "
                f"If you trust it, name the file itself: --weights {path}"
            ) from error
        content = _read_objects(path)
    spec = content.get(SPEC_KEY) if isinstance(content, Mapping) else None
    return _tensors(content, path), read_spec(spec, path) if isinstance(spec, str) else None


def shards(path: Path) -> list[Path]:
    """The files that an index of published weights lists, next to it; none for a file that is no index.

    Raises:
        WeightsError: the index is damaged, or names files elsewhere.
    """
    if not path.name.endswith(INDEX_SUFFIX):
        return []
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} cannot be read as an index of weights: {brief(error)}") from error
    if bad := [name for name in names if Path(str(name)).name != name]:
        raise WeightsError(f"{path} must list files next to it, got {bad[0]!r}; download the weights again")
    return [path.with_name(name) for name in names]


def spec_in_checkpoint(path: Path) -> Spec | None:
    """The spec of the network in a run's checkpoint; None if it has none.

    Raises:
        WeightsError: the checkpoint cannot be read, or its spec is damaged.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path} cannot be read as weights: {brief(error)}") from error
    spec = content.get(SPEC_KEY) if isinstance(content, Mapping) else None
    return read_spec(spec, path) if isinstance(spec, str) else None


def read_spec(text: str | bytes, where: Path) -> Spec:
    """A Spec from its JSON.

    Raises:
        WeightsError: it is damaged, or another version wrote it.
    """
    try:
        return Spec.from_json(text)
    except ValueError as error:
        raise WeightsError(
            f"{where} describes no model: {brief(error)}; it is damaged, or another version wrote it"
        ) from error


def brief(error: Exception) -> str:
    """The first line of an error, shortened."""
    return str(error).split("\n", 1)[0][:300]


def _classes(network: nn.Module) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """The classes of the network's modules, also under the package's name that older files use."""
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    # With base classes: published files hold the library's classes, from which ours may derive.
    kinds = {kind for module in network.modules() for kind in type(module).__mro__}
    for kind in kinds - {object}:
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
    """Read everything in a pickle, running the code that it contains."""
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # the file's own code may raise anything
        reason = f"{type(error).__name__}: {brief(error)}"
        raise WeightsError(f"{path} cannot be read as weights: {reason}") from error


def _tensors(content: object, path: Path) -> Mapping[str, Tensor]:
    """Find the state dict inside the structures in which libraries save it."""
    if isinstance(content, nn.Module):
        return content.float().state_dict()
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__} instead of named tensors")
    for key in ("ema", "model", "state_dict"):
        if isinstance(content.get(key), (Mapping, nn.Module)):
            return _tensors(content[key], path)
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    return scored(tensors)


def scored(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Select a checkpoint's evaluated network: the average, if there is one. Other tensors stay unchanged."""
    for prefix in ("average.network.", "network."):
        found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if found:
            return found
    return tensors
