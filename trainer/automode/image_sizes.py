"""At which size AutoMode has models see the images: so that small objects are large enough to be found."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from trainer.automode.costs import side_of
from trainer.automode.data_statistics import Facts
from trainer.models.card import ModelEntry
from trainer.models.defaults import takes
from trainer.settings import Settings
from trainer.sweep.space.distributions import Choice, Distribution, Scalar

USUAL = {"gpu": {"image_size": 640, "min_size": 600}, "cpu": {"image_size": 320, "min_size": 320}}
LARGEST = {"gpu": {"image_size": 1280, "min_size": 1000}, "cpu": {"image_size": 640, "min_size": 600}}

SEEN = 24
"""Pixels that the side of all but a quarter of the objects should have."""
TINY = 16
"""Pixels under which the largest size is not enough, and images are tiled."""
MODESTY = (0, 1, 2)
"""With ever less time: all that helps; a single size, without tiles; the usual size, or a smaller one."""
MOST_ENLARGED = 1.5
"""Enlarging an image further shows nothing more of it."""
_MOST_TILES = 4  # along the long side
_LONG_BY_SHORT = 5 / 3  # torchvision's 1333 by 800
_CROPS = {"gpu": 224, "cpu": 160}
_SMALL_CROP, SMALL_IMAGES = 128, 112
_CROPS_OF_CLASSIFIERS = ("training_crop_size", "validation_crop_size", "validation_resize_size")


@dataclass(frozen=True)
class Size:
    """How a model sees an image.

    Attributes:
        settings: that make it so; of a choice the first value is the usual one.
        side: of the largest that may be proposed; see `costs.Cost`.
        views: the image and its tiles.
        reason: in words, "" if it is the usual size.
    """

    settings: dict[str, Distribution | Scalar] = field(default_factory=dict)
    side: int = 0
    views: int = 1
    reason: str = ""


def size(
    entry: ModelEntry,
    facts: Facts,
    resolved: Settings,
    fixed: Collection[str],
    *,
    on_gpu: bool,
    modesty: int = 0,
) -> Size:
    """The size for a model.

    Args:
        resolved: all of the model's settings, the job's own among them.
        fixed: the names of the job's own.
        modesty: of MODESTY.
    """
    own = Size(side=side_of(entry, resolved.model_dump()), views=_views(resolved.tile_grid_size))
    if takes(entry, "training_crop_size"):
        return own if {*fixed} & {*_CROPS_OF_CLASSIFIERS} else _crop(entry, facts, on_gpu)
    name = entry.card.size_setting
    if not entry.card.searched_sides or {*fixed} & {name, name.replace("min", "max")}:
        return own
    # Pixels of the long side for one of the size that is set.
    scale = facts.long_side / facts.short_side if name == "min_size" else 1.0
    kind = "gpu" if on_gpu else "cpu"
    usual, largest = USUAL[kind][name], LARGEST[kind][name]
    sides = [side for side in entry.card.searched_sides if side <= largest]
    limit = MOST_ENLARGED * facts.long_side / scale
    needed = 0.0 if modesty == 2 else _needed(facts) / scale
    side = _at_least(sides, max(min(usual, limit), min(needed, limit)))
    reason = f"{name} {side}, for want of time" if modesty == 2 else ""
    if side > usual:
        pixels = round(facts.small_object_side * usual * scale)
        reason = f"{name} {side}: at {usual} a quarter of the objects would be smaller than {pixels} pixels"
    settings: dict[str, Distribution | Scalar] = {name: side}
    most = side
    if name == "min_size":
        settings["max_size"] = max(1333 if on_gpu else 0, round(side * _LONG_BY_SHORT))
    elif on_gpu and not modesty and (more := [other for other in sides if side < other <= limit]):
        most = more[0]
        settings[name] = Choice((side, most))
    views = own.views
    tiles = on_gpu and not modesty and "tile_grid_size" not in fixed
    if tiles and (grid := _grid(facts, side * scale)) is not None:
        settings["tile_grid_size"] = Choice((grid, None))
        views = _views(grid)
        reason += ("; " if reason else "") + (
            f"tile_grid_size {grid}: even at {name} {side} a quarter of the objects would be smaller than "
            f"{max(1, round(facts.small_object_side * side * scale))} pixels"
        )
    return Size(settings, most, views, reason)


def _needed(facts: Facts) -> float:
    """The long side in pixels at which the smaller objects are seen."""
    return SEEN / facts.small_object_side if facts.small_object_side else 0.0


def _at_least(sides: Sequence[int], least: float) -> int:
    return next((side for side in sides if side >= least), sides[-1])


def _grid(facts: Facts, long_side: float) -> str | None:
    """Tiles in which the smaller objects are seen; None if the image, so large, shows them, or all it has."""
    pixels = facts.small_object_side * long_side
    if not 0 < pixels < TINY or facts.long_side < MOST_ENLARGED * long_side:
        return None
    along = min(_MOST_TILES, math.ceil(SEEN / pixels), math.ceil(facts.long_side / long_side))
    across = max(1, round(along * facts.short_side / facts.long_side))
    return f"{along}x{across}" if facts.width >= facts.height else f"{across}x{along}"


def _views(grid: str | None) -> int:
    return 1 + math.prod(map(int, grid.split("x"))) if grid else 1


def _crop(entry: ModelEntry, facts: Facts, on_gpu: bool) -> Size:
    """Small images need no large crop; of large ones a CNN sees more in a larger crop than it learnt from.

    The latter is due to random crops, which enlarge what is in them (Touvron et al. 2019, FixRes).
    """
    usual = _CROPS["gpu"]
    if "layer_decay" in entry.modern_for(entry.tasks[0]):
        # Transformers are made for the size; that of the validation must be the same.
        return Size({"training_crop_size": usual, "validation_crop_size": usual}, usual)
    is_small = facts.short_side <= SMALL_IMAGES
    crop = _SMALL_CROP if is_small else usual if on_gpu else _CROPS["cpu"]
    settings: dict[str, Distribution | Scalar] = {"training_crop_size": crop, "validation_crop_size": crop}
    larger = crop * 9 // 7
    if on_gpu and facts.short_side >= larger:
        settings["validation_crop_size"] = Choice((crop, larger))
    reason = f"crops of {crop} pixels, as the images are small" if is_small else ""
    return Size(settings, crop, 1, reason)
