"""The scoring parameters that apply to a task, and those of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from serving.wording import MAX_INTEGER, range_in_words, shown
from trainer.errors import RequestError
from trainer.scoring import MASK_PARAMETERS, MAX_TILES, ScoringParameters
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

    Raises:
        RequestError: a parameter does not apply to the task, is of a wrong type or out of range.
    """
    if not parameters:
        return defaults
    known = parameters_of(task)
    for name in parameters:
        if name not in known:
            known_names = f"it has {', '.join(known)}" if known else f"a model for {task} has none"
            raise RequestError(f"this model has no parameter {shown(name)}; {known_names}")
    for name, value in parameters.items():
        if isinstance(value, int) and value > MAX_INTEGER:
            raise RequestError(f"parameter {name} must be {range_of(name)}, got a number over 2³¹")
    try:
        return ScoringParameters.model_validate({**defaults.model_dump(), **parameters}, strict=True)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise RequestError(
            f"parameter {name} must be {range_of(name)}, got {shown(parameters[name])}"
        ) from None


def range_of(name: str) -> str:
    """A scoring parameter's type and range, such as `a number in [0, 1]`."""
    schema = ScoringParameters.model_json_schema()["properties"][name]
    if "type" not in schema:  # the only one that may be null
        return f'columns and rows as text such as "3x2", 2 to {MAX_TILES} tiles, or null for none'
    return range_in_words(schema)
