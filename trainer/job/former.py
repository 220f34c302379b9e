"""Training parameters that earlier versions of Azure's interfaces had: honoured, or set aside by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os.path import exists
from pathlib import Path
from typing import Any

from trainer.files import without_prefix
from trainer.job.places import is_remote, places_of
from trainer.models.weights.choice import is_address

CHECKPOINT = "checkpoint_model"
"""A model to start from, at a path or in Azure."""
_SPLIT = "split_ratio"
_DATASET, _FILE = "checkpoint_dataset_id", "checkpoint_filename"
FORMER = (_SPLIT, CHECKPOINT, _DATASET, _FILE, "export_as_image", "image_type", "augmentations")


def replace_former(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace former parameters among a job's settings by the fields that do the same.

    A job's own validation_data_size and weights come first. What has no effect here goes to `ignored_keys`.

    Args:
        values: the fields of a Job, with unchecked values.
    """
    settings, spaces = values.get("settings"), values.get("search_space")
    spaces = [spaces] if isinstance(spaces, Mapping) else spaces
    searched: list[str] = []
    changed = dict(values)
    if isinstance(spaces, list | tuple) and all(isinstance(space, Mapping) for space in spaces):
        searched = [name for name in FORMER if any(name in space for space in spaces)]
        if searched:
            kept = [{name: space[name] for name in space if name not in FORMER} for space in spaces]
            changed["search_space"] = tuple(space for space in kept if space)
    former = (
        {name: settings[name] for name in FORMER if name in settings} if isinstance(settings, Mapping) else {}
    )
    if not former and not searched:
        return changed
    if isinstance(settings, Mapping):
        changed["settings"] = {name: settings[name] for name in settings if name not in FORMER}
    unused = {name for name, value in former.items() if value not in (None, "", {})}
    if _SPLIT in unused and changed.get("validation_data_size") is None:
        changed["validation_data_size"] = former[_SPLIT]
        unused.discard(_SPLIT)
    weights = _weights(former, values.get("data_assets"))
    if weights and changed.get("weights") is None:
        changed["weights"] = weights
        unused -= {CHECKPOINT, _DATASET, _FILE}
    unused |= {f"search_space.{name}" for name in searched}
    changed["ignored_keys"] = tuple(sorted({*(values.get("ignored_keys") or ()), *unused}))
    return changed


def _weights(former: Mapping[str, Any], assets: Any) -> str | None:
    """The weights that a checkpoint names, if they are at a place known here."""
    place = _place(former.get(CHECKPOINT), assets)
    if place is not None:
        return place
    directory = _place(former.get(_DATASET), assets)
    return None if directory is None else str(Path(directory, str(former.get(_FILE) or "")))


def _place(reference: Any, assets: Any) -> str | None:
    """The path of a checkpoint; None for an address in Azure that no data asset maps to a path.

    What has a slash is a path, whether it exists or not; the check of the weights reports one that does not.
    """
    if not isinstance(reference, str | int | Path) or not reference:
        return None
    known = assets if isinstance(assets, Mapping) else {}
    text = without_prefix(str(reference), Path.cwd())
    if text in known:
        return str(known[text])
    try:
        (place,) = places_of((text,), known)
    except ValueError:
        return None
    is_path = not is_remote(place) and (re.search(r"[/\\]", place) or exists(place))
    return place if is_address(place) or is_path else None
