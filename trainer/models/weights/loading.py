"""Loads weights into a network: which tensors fit, which start from random values, which are rejected."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from trainer.errors import JobError, WeightsError
from trainer.models.catalog import CARDS, find, network_name
from trainer.models.spec import Spec
from trainer.models.weights import sources as weights_sources
from trainer.models.weights.choice import NONE
from trainer.models.weights.published import NONCOMMERCIAL, PublishedWeights
from trainer.models.weights.reading import read

_COUNTER = "num_batches_tracked"
"""The buffer in which batch norms count batches. Frozen ones have none, and nothing needs the number."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Which tensors were loaded and which were not; `str` describes it for the log.

    Attributes:
        source: the file, or the address that it came from.
        taken: number of the file's tensors that were loaded.
        fresh: the network's tensors that keep their random values.
        left: the file's tensors that were not loaded.
        resampled: tensors that were resized, such as position embeddings for another image size.
        notes: sentences for the user.
        has_trained_head: the head comes with them, from a run of the same task with the same classes.
    """

    source: str
    taken: int
    fresh: tuple[str, ...]
    left: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    has_trained_head: bool = False

    def __str__(self) -> str:
        fresh, left = set(self.fresh), set(self.left)
        parts = {
            "resized": self.resampled,
            "unused": [key for key in self.left if key not in fresh],
            "not in the file, so randomly initialized": [key for key in self.fresh if key not in left],
            "made for other classes, so randomly initialized": [key for key in self.fresh if key in left],
        }
        text = f"{self.taken} tensors from {self.source}"
        text += "".join(f" ({note})" for note in self.notes)
        return text + "".join(f"; {what}: {_named(keys)}" for what, keys in parts.items() if keys)


def load(
    network: nn.Module, model: str, published: PublishedWeights, choice: str, spec: Spec | None = None
) -> Loaded | None:
    """Load the chosen weights into the network.

    Args:
        model: as `fit --model` takes it, for messages.
        choice: "none", "pretrained", a file, a directory of published files, a run's directory, or a packaged
            model or its MLflow address.
        spec: the network's spec. With it, weights of an earlier run must be of the same model, and their head
            is taken only if the classes are the same in the same order.

    Returns:
        A report; None for "none".

    Raises:
        WeightsError: the weights are missing, damaged, not the published ones, or made for another network.
    """
    if choice == NONE:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        source = weights_sources.find(choice, model, published, Path(scratch))
        state, described = read(source.path, network, named=source.named)
    notes = [source.note] if source.note else []
    before = source.spec or described
    if before is None and NONCOMMERCIAL in published.licence:
        notes.append(f"their licence, {published.licence.upper()}, excludes commercial use")
    other_classes = False
    if before is not None and spec is not None:
        if before.family not in CARDS:
            raise WeightsError(
                f"{source.name} holds weights of {before.model} as a version with the family "
                f"{before.family!r} built it, which this one lacks; train them further with that version, or "
                f"start from the weights published for {model} (--weights pretrained)"
            )
        if _architecture(before) != _architecture(spec):
            raise WeightsError(
                f"{source.name} holds weights of {_model_in_words(before)}, but this run trains "
                f"{_model_in_words(spec)}; incremental training needs the same model. "
                f"Use --model {_flags(before)} --task {before.task}, or weights of {spec.model}"
            )
        other_classes = before.classes != spec.classes
        if other_classes:
            notes.append(f"trained on {_in_words(before.classes)}, now {_in_words(spec.classes)}")
    loaded = _fit(network, model, published, state, source.name, notes, other_classes)
    # The same classifier may be of one label or of several, whose heads differ.
    same_task = before is not None and spec is not None and before.task == spec.task
    return replace(loaded, has_trained_head=same_task and not other_classes)


def _architecture(spec: Spec) -> tuple[str, ...]:
    """What must be equal in two networks for one to take the weights of the other."""
    try:
        name = network_name(find(spec.model, spec.task))
    except JobError:  # an earlier run's model that this version does not know
        name = spec.model
    return spec.family, name, _size(spec)


def _size(spec: Spec) -> str:
    """The size of a model whose name has several, or the backbone that replaces its own; "" for others."""
    return str(spec.options.get("architecture") or spec.options.get("backbone") or "")


def _model_in_words(spec: Spec) -> str:
    size = _size(spec)
    return f"{spec.model} for {spec.task}" if size in ("", spec.model) else f"{spec.model} ({size})"


def _flags(spec: Spec) -> str:
    """The model as `fit --model` takes it."""
    backbone = spec.options.get("backbone")
    return f"{spec.model} --backbone {backbone}" if backbone else spec.model


def _in_words(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
    return f"{len(classes)} classes: {shown}"


def _named(keys: Iterable[str]) -> str:
    """The tensors' names; if they are many, those of their layers, with the number of tensors in each."""
    keys = list(keys)
    if len(keys) <= 6:
        return ", ".join(keys)
    for depth in (3, 2):
        layers = Counter(".".join(key.split(".")[:depth]) for key in keys)
        if len(layers) <= 12:
            break
    return ", ".join(f"{layer} ({count})" if count > 1 else layer for layer, count in layers.items())


def _fit(
    network: nn.Module,
    model: str,
    published: PublishedWeights,
    state: Mapping[str, Tensor],
    source: str,
    notes: list[str],
    other_classes: bool,
) -> Loaded:
    own = network.state_dict()
    in_file = dict(state)
    left: list[str] = []
    if published.convert is not None and not own.keys() >= state.keys():  # not a run's
        state, left = published.convert(dict(state), network)
        in_file = dict(state)
    if published.adapt is not None:
        state = published.adapt(dict(state), network)
    head = published.head
    needed = [key for key in own if not key.startswith(head)] if head else list(own)
    of_backbone = False
    if published.partial and not any(key in own for key in state):
        # The file is of a backbone, whose classifier is not used.
        left = [key for key in state if key.startswith("fc.")]
        state = {published.prefix + key: value for key, value in state.items() if key not in left}
        needed = [key for key in needed if key.startswith(published.prefix)]
        of_backbone = True
    elif len(state) < len(in_file):  # tensors that adapting dropped, not renamed
        kept = {id(value) for value in state.values()}
        left = [key for key, value in in_file.items() if key not in state and id(value) not in kept]
    if published.covers and all(key.startswith(published.covers) for key in state):
        needed = [key for key in needed if key.startswith(published.covers)]
        of_backbone = True
    fitting: dict[str, Tensor] = {}
    for key, value in state.items():
        of_head = bool(head) and key.startswith(head)
        if of_head and (other_classes or key not in own or own[key].shape != value.shape):
            left.append(key)
        else:
            fitting[key] = value
    try:
        # Compare names only after loading: torchvision's layers rename those of older files as they load.
        outcome = network.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:4]]
    else:
        absent = set(outcome.missing_keys)
        missing = [key for key in needed if key in absent and not key.endswith(_COUNTER)]
        # A deeper network's file has all tensors of a shallower one.
        surplus = [key for key in outcome.unexpected_keys if not key.endswith(_COUNTER)]
        reasons = [f"it lacks {', '.join(missing[:3])}"] if missing else []
        reasons += [f"it also holds {', '.join(surplus[:3])}"] if surplus else []
    if reasons:
        raise WeightsError(
            f"{source} does not fit {model}; it was made for another network: {'; '.join(reasons)}. "
            f"Use the weights published for {model} ({published.files[0]}), or train from scratch with "
            "--weights none"
        )
    resized = [key for key in fitting if key in in_file and in_file[key].shape != fitting[key].shape]
    return Loaded(
        source,
        taken=len(fitting) - len(outcome.unexpected_keys),
        fresh=tuple(key for key in own if key in absent and not key.endswith(_COUNTER)),
        left=tuple(key for key in left if not key.endswith(_COUNTER)),
        resampled=tuple(resized),
        notes=(*notes, *(["of the backbone alone"] if of_backbone else [])),
    )
