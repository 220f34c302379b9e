"""Rough estimates of a training step's memory and time for each model, used only by AutoMode's choices.

Times are right within a factor of two or three. The job's time limit holds whatever was estimated, and a
batch that does not fit in memory is split into micro-batches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.automode.data_statistics import DataStatistics
from trainer.automode.hardware import Hardware
from trainer.models.card import ModelEntry
from trainer.models.published import published_models


@dataclass(frozen=True, slots=True)
class StepCost:
    """Compute and memory that one image costs in a training step.

    Attributes:
        side: side of the image that the network sees, in pixels; for R-CNNs the short side.
        forward_gmacs: multiply-adds of the forward pass, in billions.
        activations_mib: memory of the activations kept for the backward pass, in bfloat16.
    """

    side: int
    forward_gmacs: float
    activations_mib: int


FILE = Path(__file__).with_name("costs.json")
"""The measured costs; `python -m tools.measure_costs` writes it."""
MEASURED: Mapping[str, StepCost] = {
    model: StepCost(**cost) for model, cost in json.loads(FILE.read_text("utf-8")).items()
}
"""Costs by model, at the model's default size."""

_GIB = 2**30
_USABLE_MEMORY, _OVERHEAD_GIB = 0.85, 1.5
_ALLOCATED_PER_ACTIVATION = 1.5
"""Bytes that a step allocates for each byte of activations: allocator overhead and the backward pass."""
_BYTES_PER_PARAMETER = 20
"""4 bytes each for weight, gradient, adamw's two averages and the moving average."""
_TRANSFERS = 12
"""How often a byte of activations moves to or from the GPU's memory, which mostly limits training."""
_SECONDS_PER_STEP = 0.03
_CORE_SECONDS_PER_GMAC, _CORE_SECONDS_PER_MIB = 0.053, 0.0014
"""Time of one CPU core for a billion multiply-adds, forward and backward, and for a MiB of activations."""
_LOADING_SECONDS, _LOADING_SECONDS_PER_MEGAPIXEL = 0.005, 0.02
"""Time of one core to load an image."""
_EVALUATION_FACTOR = 1.2
_TRIAL_SECONDS = 30.0
"""Time before a trial's process starts to train and after it has ended."""


def side_of(entry: ModelEntry, values: Mapping[str, Any]) -> int:
    """The side in pixels, as in `StepCost`, from a model's settings."""
    return int(values[entry.card.size_setting])


def step_cost(entry: ModelEntry, side: int | None = None) -> StepCost:
    """The cost of one image with a given side; None: the side at which the model was measured.

    The cost of a model that was not measured is scaled from another of its family by the parameters.
    """
    measured, factor = MEASURED.get(entry.name), 1.0
    if measured is None:
        other = entry.card.cost_model
        measured = MEASURED[other]
        factor = _parameters(entry) / published_models()[other].parameters
    if side is not None:
        factor *= (side / measured.side) ** 2
    return StepCost(
        side or measured.side, measured.forward_gmacs * factor, round(measured.activations_mib * factor)
    )


def fits(entry: ModelEntry, side: int, batch: int, hardware: Hardware) -> bool:
    """Whether the GPU's memory is likely to hold a step of `batch` images; always true on the CPU."""
    if not hardware.gpus:
        return True
    images = batch * step_cost(entry, side).activations_mib * 2**20 * _ALLOCATED_PER_ACTIVATION
    needed = (images + _parameters(entry) * _BYTES_PER_PARAMETER) / _GIB + _OVERHEAD_GIB
    return needed <= _USABLE_MEMORY * hardware.memory


def epoch_seconds(
    entry: ModelEntry, side: int, batch: int, data: DataStatistics, hardware: Hardware, views: float
) -> float:
    """The time of an epoch with its evaluation.

    Args:
        views: how many images the network sees for each image: the image itself and its tiles.
    """
    cost = step_cost(entry, side)
    megapixels = data.width * data.height / 1e6
    loading = _LOADING_SECONDS + _LOADING_SECONDS_PER_MEGAPIXEL * megapixels + entry.card.mixing_seconds
    if hardware.gpus:
        moved_gib = cost.activations_mib * _TRANSFERS * entry.card.slowness / 1024
        training = (moved_gib / (hardware.bandwidth or 300) + _SECONDS_PER_STEP / batch) / hardware.gpus
        seconds = max(training, loading / min(8, hardware.cores))
    else:
        training = _CORE_SECONDS_PER_GMAC * cost.forward_gmacs + _CORE_SECONDS_PER_MIB * cost.activations_mib
        seconds = (training + loading) / hardware.cores
    return data.images * views * seconds * _EVALUATION_FACTOR


def trial_seconds(epochs: int, seconds_per_epoch: float) -> float:
    """The time of a trial that is not pruned."""
    return _TRIAL_SECONDS + epochs * seconds_per_epoch


def affordable_epochs(seconds: float, seconds_per_epoch: float) -> int:
    """How many epochs fit into a trial of a given length, at least 1."""
    return max(1, int((seconds - _TRIAL_SECONDS) / seconds_per_epoch))


def _parameters(entry: ModelEntry) -> int:
    """The number of parameters of the published model; for models that only timm knows, its cost model's."""
    names = (entry.name, f"{entry.name} medium", entry.card.cost_model)
    known = published_models()
    return next(known[name].parameters for name in names if name in known)
