"""What a training step costs with each model, in memory and time, roughly: for AutoMode's choices alone.

Times are right within a factor of two or three. A job's time limit holds whatever was estimated, and a batch
that does not fit the memory is trained in parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.automode.data_statistics import Facts, Machine
from trainer.models.card import ModelEntry
from trainer.models.published import FACTS


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one image in a training step.

    Attributes:
        side: to which the image is brought; of R-CNNs the short one. Pixels.
        multiplications: of the way forward, in billions.
        kept: what is kept for the way back, in bfloat16. MiB.
    """

    side: int
    multiplications: float
    kept: int


# Counted by `python -m tools.measure_costs MODEL …`.
COSTS = {
    "mobilenetv2": Cost(224, 0.3, 40),
    "resnet18": Cost(224, 1.81, 22),
    "resnet34": Cost(224, 3.66, 37),
    "resnet50": Cost(224, 4.09, 64),
    "seresnext": Cost(224, 4.23, 89),
    "vits16r224": Cost(224, 4.6, 52),
    "vitb16r224": Cost(224, 17.56, 145),
    "timm/convnext_tiny.in12k_ft_in1k": Cost(224, 4.45, 80),
    "timm/convnext_small.in12k_ft_in1k": Cost(224, 8.68, 131),
    "yolo11n": Cost(640, 3.22, 112),
    "yolo11s": Cost(640, 10.71, 212),
    "yolo11m": Cost(640, 33.88, 447),
    "yolo26n": Cost(640, 2.94, 130),
    "yolo26s": Cost(640, 11.22, 252),
    "yolo26m": Cost(640, 37.17, 508),
    "yolo11n-seg": Cost(640, 4.94, 158),
    "yolo11s-seg": Cost(640, 16.54, 273),
    "yolo11m-seg": Cost(640, 56.6, 542),
    "yolo26n-seg": Cost(640, 6.69, 193),
    "yolo26s-seg": Cost(640, 21.47, 339),
    "yolo26m-seg": Cost(640, 74.34, 651),
    "rtdetr-l": Cost(640, 56.43, 1048),
    "rfdetr-small": Cost(512, 49.98, 490),
    "rfdetr-medium": Cost(576, 65.73, 623),
    "rfdetr-seg-small": Cost(384, 48.57, 515),
    "rfdetr-seg-medium": Cost(432, 82.03, 840),
    "fasterrcnn_resnet18_fpn": Cost(600, 73.5, 211),
    "fasterrcnn_resnet50_fpn_v2": Cost(600, 180.88, 676),
    "maskrcnn_resnet18_fpn": Cost(600, 78.38, 222),
    "maskrcnn_resnet50_fpn_v2": Cost(600, 188.08, 696),
}

_GIB = 2**30
_HEADROOM, _OVERHEAD_GIB = 0.85, 1.5
_ALLOCATED = 1.5
"""What a step takes of memory for each byte that it keeps: PyTorch's own allocator, and the way back."""
_BYTES_A_PARAMETER = 20
"""Weight, gradient, two averages of adamw's, the moving average; 4 bytes each."""
_TRANSFERS = 12
"""How often a byte that is kept goes to or from the GPU's memory: training is bound by that, mostly."""
_SECONDS_A_STEP = 0.03
_CORE_SECONDS = (0.053, 0.0014)
"""On the CPU: of one core for a billion multiplications, there and back, and for a MiB that is kept."""
_LOADING_SECONDS = (0.005, 0.02)
"""Of one core, to load an image and for each megapixel of it."""
_EVALUATION = 1.2
_TRIAL_SECONDS = 30.0
"""Until a trial's process begins to train, and after it has ended."""


def side_of(entry: ModelEntry, values: Mapping[str, Any]) -> int:
    """The side in pixels, as in `Cost`, among a model's settings."""
    return int(values[entry.card.size_setting])


def cost(entry: ModelEntry, side: int | None = None) -> Cost:
    """Of an image of some side; None: as it was counted."""
    known, factor = COSTS.get(entry.name), 1.0
    if known is None:
        like = entry.card.cost_model
        known = COSTS[like]
        factor = _parameters(entry) / FACTS[like].parameters
    factor *= 1.0 if side is None else (side / known.side) ** 2
    return Cost(side or known.side, known.multiplications * factor, round(known.kept * factor))


def fits(entry: ModelEntry, side: int, batch: int, machine: Machine) -> bool:
    """Whether a GPU's memory is likely to hold a step of so many images; the CPU's always does."""
    if not machine.gpus:
        return True
    images = batch * cost(entry, side).kept * 2**20 * _ALLOCATED
    needed = (images + _parameters(entry) * _BYTES_A_PARAMETER) / _GIB + _OVERHEAD_GIB
    return needed <= _HEADROOM * machine.memory


def epoch_seconds(
    entry: ModelEntry, side: int, batch: int, facts: Facts, machine: Machine, views: float
) -> float:
    """An epoch with its evaluation; `views`: the image and its tiles."""
    each = cost(entry, side)
    loading = _LOADING_SECONDS[0] + _LOADING_SECONDS[1] * facts.width * facts.height / 1e6
    loading += entry.card.mixing_seconds
    if machine.gpus:
        moved = each.kept * _TRANSFERS * entry.card.slowness / 1024
        training = (moved / (machine.bandwidth or 300) + _SECONDS_A_STEP / batch) / machine.gpus
        seconds = max(training, loading / min(8, machine.cores))
    else:
        busy = _CORE_SECONDS[0] * each.multiplications + _CORE_SECONDS[1] * each.kept
        seconds = (busy + loading) / machine.cores
    return facts.images * views * seconds * _EVALUATION


def trial_seconds(epochs: int, epoch: float) -> float:
    """A whole trial that is not given up."""
    return _TRIAL_SECONDS + epochs * epoch


def affordable_epochs(seconds: float, epoch: float) -> int:
    """So many fit into a trial of some length, at least 1."""
    return max(1, int((seconds - _TRIAL_SECONDS) / epoch))


def _parameters(entry: ModelEntry) -> int:
    """How many the model has, as it was published; of one that only timm knows, those of resnet50."""
    names = (entry.name, f"{entry.name} medium", entry.card.cost_model)
    return next(FACTS[name].parameters for name in names if name in FACTS)
