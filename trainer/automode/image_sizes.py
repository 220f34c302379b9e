"""Chooses the size at which a model sees the images, so that small objects are large enough to be found."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from trainer.automode.data_statistics import DataStatistics
from trainer.models.card import ModelEntry
from trainer.models.defaults import takes
from trainer.sweep.space.distributions import Choice, Distribution, Scalar

USUAL = {"gpu": {"image_size": 640, "min_size": 600}, "cpu": {"image_size": 320, "min_size": 320}}
LARGEST = {"gpu": {"image_size": 1280, "min_size": 1000}, "cpu": {"image_size": 640, "min_size": 600}}

MIN_OBJECT_PIXELS = 24
"""Least side, in pixels, that three quarters of the objects should have."""
TILED_BELOW_PIXELS = 16
"""If a quarter of the objects is smaller even at the largest size, images are tiled."""
MAX_ENLARGEMENT = 1.5
"""Enlarging an image beyond this factor reveals no more detail."""
_MAX_TILES = 4  # along the long side
_LONG_BY_SHORT = 5 / 3  # torchvision's 1333 by 800
_CROPS = {"gpu": 224, "cpu": 160}
_SMALL_CROP, SMALL_IMAGES = 128, 112
_CROP_SETTINGS = ("training_crop_size", "validation_crop_size", "validation_resize_size")


@dataclass(frozen=True)
class ImageSize:
    """How a model sees an image.

    Attributes:
        settings: fixed values and choices; the first value of a choice is the usual one.
        reason: why it is not the usual size, for the log; "" if it is.
    """

    settings: dict[str, Distribution | Scalar] = field(default_factory=dict)
    reason: str = ""


def choose_size(
    entry: ModelEntry, data: DataStatistics, fixed: Collection[str], *, on_gpu: bool
) -> ImageSize:
    """Choose the image size for a model.

    Args:
        fixed: the names of the settings that the job fixes.
    """
    if takes(entry, "training_crop_size"):
        keeps = {*fixed} & {*_CROP_SETTINGS} or _has_own_crop(entry)
        return ImageSize() if keeps else _choose_crop(entry, data, on_gpu)
    name = entry.card.size_setting
    if not entry.card.searched_sides or {*fixed} & {name, name.replace("min", "max")}:
        return ImageSize()
    # Pixels of the long side for each pixel of the setting.
    scale = data.long_side / data.short_side if name == "min_size" else 1.0
    device = "gpu" if on_gpu else "cpu"
    usual, largest = USUAL[device][name], LARGEST[device][name]
    sides = [side for side in entry.card.searched_sides if side <= largest]
    limit = MAX_ENLARGEMENT * data.long_side / scale
    needed = 0.0  # the size at which three quarters of the objects have MIN_OBJECT_PIXELS
    if data.small_object_side:
        needed = MIN_OBJECT_PIXELS / data.small_object_side / scale
    least = min(limit, max(usual, needed))
    side = next((side for side in sides if side >= least), sides[-1])
    reasons = []
    if side > usual:
        pixels = round(data.small_object_side * usual * scale)
        reasons = [
            f"{name} {side}: at {usual} a quarter of the objects would be smaller than {pixels} pixels"
        ]
    settings: dict[str, Distribution | Scalar] = {name: side}
    larger = [other for other in sides if side < other <= limit]
    if name == "min_size":
        settings["max_size"] = max(1333 if on_gpu else 0, round(side * _LONG_BY_SHORT))
    elif on_gpu and larger:
        settings[name] = Choice((side, larger[0]))
    may_tile = on_gpu and "tile_grid_size" not in fixed
    if may_tile and (grid := _tile_grid(data, side * scale)) is not None:
        settings["tile_grid_size"] = Choice((grid, None))
        pixels = max(1, round(data.small_object_side * side * scale))
        reasons.append(
            f"tile_grid_size {grid}: even at {name} {side} a quarter of the objects would be smaller than "
            f"{pixels} pixels"
        )
    return ImageSize(settings, "; ".join(reasons))


def _tile_grid(data: DataStatistics, long_side: float) -> str | None:
    """The tiles that enlarge small objects enough; None if that is not needed or shows no more detail."""
    pixels = data.small_object_side * long_side
    if not 0 < pixels < TILED_BELOW_PIXELS or data.long_side < MAX_ENLARGEMENT * long_side:
        return None
    along = min(_MAX_TILES, math.ceil(MIN_OBJECT_PIXELS / pixels), math.ceil(data.long_side / long_side))
    across = max(1, round(along * data.short_side / data.long_side))
    return f"{along}x{across}" if data.width >= data.height else f"{across}x{along}"


def _has_own_crop(entry: ModelEntry) -> bool:
    """Whether a classifier keeps its published size, as many networks of the Hub accept no other."""
    is_described = entry.card.described_by_files is not None
    return is_described or "training_crop_size" in entry.defaults_for(entry.tasks[0])


def _choose_crop(entry: ModelEntry, data: DataStatistics, on_gpu: bool) -> ImageSize:
    """Small images get small crops; of large images, CNNs are validated on larger crops than trained on.

    Random crops enlarge objects, so a CNN is better on larger crops (Touvron et al. 2019, FixRes).
    """
    usual = _CROPS["gpu"]
    if "layer_decay" in entry.modern_for(entry.tasks[0]):
        # Transformers are built for one size, so training and validation must use the same.
        return ImageSize({"training_crop_size": usual, "validation_crop_size": usual})
    is_small = data.short_side <= SMALL_IMAGES
    crop = _SMALL_CROP if is_small else usual if on_gpu else _CROPS["cpu"]
    settings: dict[str, Distribution | Scalar] = {"training_crop_size": crop, "validation_crop_size": crop}
    larger = crop * 9 // 7
    if on_gpu and data.short_side >= larger:
        settings["validation_crop_size"] = Choice((crop, larger))
    reason = f"crops of {crop} pixels, as the images are small" if is_small else ""
    return ImageSize(settings, reason)
