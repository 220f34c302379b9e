"""Distinguishes a training run that has diverged from one whose loss is merely large."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor

from trainer.errors import TrainingError
from trainer.settings import Settings

FAR = 10.0
"""A loss over this many times the start's is far above it. A network that learns nothing stays near it."""
_START_BATCHES = 10
"""The start is the loss of the first batch, which no step precedes, or the median of this many if less:
images without objects can make a batch much heavier than most."""
_LEAST_START = 1.0
"""The start counts as at least this, about the loss of guessing: trained weights may start near 0."""
_LONG_EPOCHS, _LEAST_BATCHES, _MOST_BATCHES = 3, 10, 300
"""The loss must stay far above the start in every batch of this many epochs, within these numbers of batches.
By then a run has recovered from a bad step, and has had its lightest batches."""


class DivergenceWatch:
    """Ends a run that has diverged, by the losses of its batches.

    How large a sound loss is depends on the family and the data: with many classes, or few objects to divide
    by, it starts above 100. So a run is compared with its own start. It has diverged if a loss is not finite,
    or if every batch's loss has been far above the start for long; the constants say how far and how long.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._unread: list[tuple[int, Mapping[str, Tensor]]] = []
        self._first: list[float] = []  # losses of the first batches
        self._since: list[int] = []  # epoch and batch since which every loss has been far above the start
        self._far_batches = 0

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "since": self._since, "far_batches": self._far_batches}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._first, self._since = list(state_dict["first"]), list(state_dict["since"])
        self._far_batches = state_dict["far_batches"]

    def add(self, batch: int, losses: Mapping[str, Tensor]) -> None:
        """Note a batch's losses without reading them, which would wait for the device.

        Args:
            batch: counted from 1.
            losses: by name; "loss" is their sum.
        """
        self._unread.append((batch, losses))

    def check(self, epoch: int, batches: int) -> None:
        """Read the losses noted since the last call, at least one.

        Args:
            epoch: of these batches, counted from 1.
            batches: number of batches in an epoch.

        Raises:
            TrainingError: training has diverged.
        """
        unread, self._unread = self._unread, []
        sums = torch.stack([losses["loss"].float() for _, losses in unread]).tolist()
        for (batch, losses), loss in zip(unread, sums, strict=True):
            where = f"epoch {epoch}, batch {batch} of {batches}"
            if not math.isfinite(loss):
                raise TrainingError(self._not_finite(where, losses, is_first=epoch == batch == 1))
            if len(self._first) < _START_BATCHES:
                self._first.append(loss)
            elif loss <= FAR * self._start():
                self._since, self._far_batches = [], 0
            else:
                self._since = self._since or [epoch, batch]
                self._far_batches += 1
                if self._far_batches >= max(_LEAST_BATCHES, min(_LONG_EPOCHS * batches, _MOST_BATCHES)):
                    raise TrainingError(self._far(where, loss))

    def _start(self) -> float:
        return max(_LEAST_START, min(self._first[0], median(self._first)))

    def _not_finite(self, where: str, losses: Mapping[str, Tensor], *, is_first: bool) -> str:
        parts = {name: value.item() for name, value in losses.items() if name != "loss"}
        wrong = [f"{name} {value}" for name, value in parts.items() if not math.isfinite(value)]
        text = f"training diverged in {where}: its loss is not finite"
        text += f" ({', '.join(wrong)})" if wrong else ""
        if not is_first:
            return f"{text}. {self._advice()}"
        return (
            f"{text}, before any step was taken: the weights to start from are damaged, or a setting makes "
            "the loss overflow. Name other weights by --weights"
        )

    def _far(self, where: str, loss: float) -> str:
        epoch, batch = self._since
        return (
            f"training diverged in {where}: since batch {batch} of epoch {epoch}, every batch has had a loss "
            f"over {FAR:g} times that of the start ({self._start():.4g}), the last of {loss:.4g}. "
            f"{self._advice()}"
        )

    def _advice(self) -> str:
        settings = self.settings
        advice = [f"Lower learning_rate ({settings.learning_rate:g})"]
        if settings.learning_rate_scheduler == "warmup_cosine":
            advice.append(
                f"lengthen warmup_cosine_lr_warmup_epochs ({settings.warmup_cosine_lr_warmup_epochs})"
            )
        if not settings.gradient_clip_norm and not settings.gradient_clip_value:
            advice.append("set gradient_clip_norm")
        return ", or ".join(advice)
