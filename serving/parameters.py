"""The scoring parameters that apply to a task, and those of a request under any of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from serving.wording import MAX_INTEGER, range_in_words, shown
from trainer.errors import RequestError
from trainer.fields import camel_case, snake_case
from trainer.scoring import (
    MASK_PARAMETERS,
    MAX_TILES,
    OLDER_NAMES,
    PRESENT_NAMES,
    ScoringParameters,
    requested,
)
from trainer.tasks import Task


def parameters_of(task: Task) -> tuple[str, ...]:
    """The names of the scoring parameters that apply to a task, in the order of ScoringParameters."""
    if task is Task.SEGMENTATION:
        return tuple(ScoringParameters.model_fields)
    if task is Task.DETECTION:
        return tuple(name for name in ScoringParameters.model_fields if name not in MASK_PARAMETERS)
    return ()


def parse_parameters(
    parameters: Mapping[str, Any], task: Task, defaults: ScoringParameters
) -> ScoringParameters:
    """A request's parameters, with the model's defaults for those that it does not set.

    Args:
        parameters: values by any name that job files take: the present one, an older one, or camel case.

    Raises:
        RequestError: a parameter does not apply to the task, has two values, is of a wrong type or out of
            range.
    """
    if not parameters:
        return defaults
    known = parameters_of(task)
    values: dict[str, Any] = {}
    spelling_of: dict[str, str] = {}
    for spelling, value in parameters.items():
        name = snake_case(str(spelling))
        name = PRESENT_NAMES.get(name, name)
        if name not in known:
            known_names = f"it has {', '.join(known)}" if known else f"a model for {task} has none"
            raise RequestError(f"this model has no parameter {shown(spelling)}; {known_names}")
        if name in values and values[name] != value:
            raise RequestError(
                f"parameter {spelling} contradicts {spelling_of[name]}, its other name; send one of them"
            )
        if isinstance(value, int) and value > MAX_INTEGER:
            raise RequestError(f"parameter {spelling} must be {range_of(name)}, got a number over 2³¹")
        values[name], spelling_of[name] = value, spelling
    try:
        return requested(defaults, values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise RequestError(
            f"parameter {spelling_of[name]} must be {range_of(name)}, got {shown(values[name])}"
        ) from None


def signature_names(task: Task) -> tuple[str, ...]:
    """The parameters in a model's MLflow signature, under all names: MLflow drops those that it lacks."""
    names = parameters_of(task)
    names += tuple(older for name in names for older in OLDER_NAMES.get(name, ()))
    return names + tuple(map(camel_case, names))


def set_by_request(
    parameters: Mapping[str, Any], defaults: ScoringParameters, *, are_filled_in: bool
) -> dict[str, Any]:
    """The parameters that a request sets, without the defaults of the signature that MLflow fills in.

    Args:
        defaults: the model's own values.
        are_filled_in: these are the defaults of the signature, as in models of older versions; today they
            are null.
    """
    filled = {"tile_grid_size": "none"} if defaults.tile_grid_size is None else {}
    filled = {**defaults.model_dump(), **filled} if are_filled_in else {}
    return {
        name: value for name, value in parameters.items() if value is not None and value != filled.get(name)
    }


def range_of(name: str) -> str:
    """A scoring parameter's type and range, such as `a number in [0, 1]`."""
    schema = ScoringParameters.model_json_schema()["properties"][name]
    if "type" not in schema:  # the only one that may be null
        return f'columns and rows as text such as "3x2", 2 to {MAX_TILES} tiles, or null for none'
    return range_in_words(schema)
