"""Describes a model's published weights: where they are found, and which of their tensors a network takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


NONCOMMERCIAL = "-nc-"
"""A part of the names of licences that exclude commercial use, such as cc-by-nc-4.0."""


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """The weights that a model's library publishes.

    Attributes:
        files: names that the file may have in a directory of weights, the usual one first.
        hub: repository on the Hugging Face Hub, ORG/NAME or ORG/NAME@REVISION; "" if there is none.
        url: address of the first file; "" if there is none. It is downloaded if there is no repository, or if
            `md5` is given.
        md5: MD5 of the file at `url`; "" if its name or the hub has a better hash, or none is published.
        head: prefixes of the tensors whose shape depends on the classes; only these may differ.
        prefix: prefix of the file's tensors in the network, such as "backbone.body." for a backbone's
            weights.
        partial: the file covers only a part of the network (a backbone).
        covers: prefixes of the network's tensors that the file holds, once adapted; empty: all.
        convert: (tensors, network) → the tensors as the network names them, and the names of those that it
            does not use, for a library that renames as it reads.
        adapt: (tensors, network) → tensors that fit a network for another image size, as the library does it.
        licence: the publisher's licence of these very weights; "" if it states none.
    """

    files: tuple[str, ...]
    hub: str = ""
    url: str = ""
    md5: str = ""
    head: tuple[str, ...] = ()
    prefix: str = ""
    partial: bool = False
    covers: tuple[str, ...] = ()
    convert: Callable[[dict[str, Tensor], nn.Module], tuple[dict[str, Tensor], list[str]]] | None = None
    adapt: Callable[..., dict[str, Tensor]] | None = None
    licence: str = ""

    @property
    def comes_from_hub(self) -> bool:
        """Whether the weights are downloaded from the Hub, rather than from `url`."""
        return bool(self.hub) and not self.md5
