"""`settings.json` of a packaged model: values that a user may edit before the model is deployed.

It has the names of Azure's documentation. Every other name that job files have for these values is read, too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from serving.parameters import parameters_of, range_of
from serving.payload import parse_json
from serving.wording import MAX_INTEGER, shown
from trainer.errors import RequestError, RunError
from trainer.fields import snake_case
from trainer.models import Family, Spec, create
from trainer.models.card import SIZE_LETTERS
from trainer.models.catalog import MODELS
from trainer.scoring import OLDER_NAMES, PRESENT_NAMES, ScoringParameters

log = logging.getLogger("trainer")

SETTINGS_FILE = "settings.json"
_SIZES = {
    "resize_size": ("valid_resize_size", "validation_resize_size"),
    "crop_size": ("valid_crop_size", "validation_crop_size"),
    "min_size": ("min_size",),
    "max_size": ("max_size",),
    "image_size": ("img_size", "image_size"),
}
"""By option of the spec, in pixels: the documented name, and others."""
_MAX_SIZE = 2**16


def settings_of(spec: Spec) -> dict[str, Any]:
    """The settings that apply to a model, with its own values."""
    settings = {names[0]: spec.options[option] for option, names in _SIZES.items() if option in spec.options}
    if model_size := _model_size(spec):
        settings["model_size"] = model_size
    for name in parameters_of(spec.task):
        settings[OLDER_NAMES.get(name, (name,))[0]] = getattr(spec.parameters, name)
    return settings


def _model_size(spec: Spec) -> str | None:
    """The model_size of a model that comes in several; None for others."""
    entry = MODELS.get(spec.model)
    if entry is None or "model_size" not in entry.settings:
        return None
    letter = str(spec.options["architecture"]).removeprefix(entry.library_name)
    return next((size for size, own in SIZE_LETTERS.items() if own == letter), None)


def apply_settings(family: Family, path: Path) -> Family:
    """The family of a packaged model with the values that its `settings.json` changes.

    A changed score threshold applies to all classes, even if classes have thresholds of their own.

    Args:
        path: the file; models of older versions have none.

    Raises:
        RunError: the file cannot be read, or a value is of a wrong type, out of range or not supported by the
            network.
    """
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        return family
    except (OSError, RequestError) as error:
        raise RunError(
            f"{path}: cannot be read as JSON: {error}; fix it, or delete it for the defaults"
        ) from None
    if not isinstance(content, dict):
        raise RunError(f"{path}: must be a JSON object, got {shown(content)}")
    changes = _changes(family.spec, content, path)
    if not changes:
        return family
    listed = ", ".join(f"{name} {value}" for name, value in changes.items())
    log.info("%s changes the model's settings: %s", path, listed)
    spec = family.spec
    try:
        options = family.options_at({name: value for name, value in changes.items() if name in _SIZES})
    except RunError as error:
        raise RunError(f"{path}: {error}") from None
    update: dict[str, Any] = {
        "options": options,
        "parameters": spec.parameters.model_copy(
            update={name: value for name, value in changes.items() if name not in _SIZES}
        ),
    }
    if "box_score_threshold" in changes:
        update["class_score_thresholds"] = {}
    return create(spec.model_copy(update=update))


def _changes(spec: Spec, content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Values of options and of scoring parameters that differ from the spec's, by their present names."""
    sizes = {name: option for option, names in _SIZES.items() if option in spec.options for name in names}
    parameters = parameters_of(spec.task)
    changes: dict[str, Any] = {}
    spelling_of: dict[str, str] = {}
    ignored = []
    for spelling, value in content.items():
        key = snake_case(spelling)
        name = sizes.get(key) or PRESENT_NAMES.get(key, key)
        if name in sizes.values():
            own, given = spec.options[name], _pixels(value, spelling, path)
        elif name in parameters:
            own, given = getattr(spec.parameters, name), _parameter(value, spelling, name, path)
        elif name == "model_size" and (size := _model_size(spec)):
            if value not in (None, size) and str(value).lower().replace("xlarge", "extra_large") != size:
                raise RunError(f"{path}: model_size cannot be changed: the model was trained as {size}")
            continue
        else:
            ignored.append(spelling)
            continue
        if given == own or (value is None and name != "tile_grid_size"):
            continue
        if changes.get(name, given) != given:
            raise RunError(
                f"{path}: {spelling} contradicts {spelling_of[name]}, its other name; give one of them"
            )
        changes[name], spelling_of[name] = given, spelling
    if ignored:
        log.warning("%s: settings without effect on this model: %s", path, ", ".join(ignored))
    return changes


def _pixels(value: Any, spelling: str, path: Path) -> int | None:
    """A size in pixels; None stands for the model's own."""
    if value is None:
        return None
    text = str(value).removesuffix(".0")
    is_number = text.isdecimal() and len(text) < 6 and not isinstance(value, bool)
    if not is_number or not 0 < int(text) <= _MAX_SIZE:
        raise RunError(
            f"{path}: {spelling} must be a whole number of pixels up to {_MAX_SIZE}, got {shown(value)}"
        )
    return int(text)


def _parameter(value: Any, spelling: str, name: str, path: Path) -> Any:
    """The value of a scoring parameter; None stands for the model's own, or for no tiles."""
    if value is None:
        return None
    try:
        if isinstance(value, bool) or (isinstance(value, int) and value > MAX_INTEGER):
            raise ValueError
        return getattr(ScoringParameters.model_validate({name: value}), name)
    except (ValidationError, ValueError):
        raise RunError(f"{path}: {spelling} must be {range_of(name)}, got {shown(value)}") from None
