"""timm's models by name: what it says about each, and which weights it publishes."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import timm
from torch import Tensor

from trainer.errors import JobError, Problem, did_you_mean
from trainer.models.catalog import TIMM
from trainer.models.weights.published import PublishedWeights


def config_of(name: str, field: str = "model_name") -> Any:
    """timm's description of a model and of the weights published for it.

    Args:
        name: timm's own, with or without a tag of the weights.
        field: the setting that named the model, for the error.

    Raises:
        JobError: timm has no such model.
    """
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        known = [TIMM + name for name in timm.list_models() + timm.list_pretrained()]
        # The common prefix alone makes any two names half alike.
        hint = did_you_mean(TIMM + name, known, otherwise="upgrade timm", cutoff=0.75)
        rule = f"timm {timm.__version__} has no model {name!r}"
        raise JobError("the model cannot be used", [Problem(field, "", rule, hint=hint)])
    return config


def published_weights(name: str) -> PublishedWeights:
    """The weights that timm publishes for a classifier."""
    config = config_of(name)
    file = f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)
    # A name without a tag means the default weights, whose file may do without it, too.
    untagged = [] if "." in name else [f"{name}.safetensors"]
    names = [f"{file}.safetensors", f"{file}/model.safetensors", f"{file}.pth", *untagged]
    classifier = config.classifier or ()
    return PublishedWeights(
        files=tuple(dict.fromkeys(names)),
        hub=config.hf_hub_id or "",
        url=config.url or "",
        head=(classifier,) if isinstance(classifier, str) else tuple(classifier),
        # Resamples a ViT's position embedding to the crop's grid.
        adapt=_resampling(name) if config.fixed_input_size else None,
        licence=config.license or "",
    )


def _resampling(name: str) -> Callable[..., dict[str, Tensor]] | None:
    """The function by which timm fits a file's tensors to the network, such as by resampling embeddings."""
    module = import_module(timm.model_entrypoint(name).__module__)
    adapt: Callable[..., dict[str, Tensor]] | None = getattr(module, "checkpoint_filter_fn", None)
    return adapt
