"""What a row of a request asks to be explained, with the documented names and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.shown import shown
from trainer.errors import RequestError
from trainer.tasks import Task

Algorithm = Literal["xrai", "integrated_gradients", "guided_gradcam", "guided_backprop", "drise"]
Approximation = Literal[
    "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid", "gausslegendre"
]

ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)


class ExplanationRequest(BaseModel):
    """`xai_parameters` of one row that says `model_explainability: true`.

    Parameters of another method than the one asked for are checked, too, and have no effect: clients send
    them all.

    Attributes:
        xai_algorithm: the method. A model of boxes is always explained by `drise`, also where the documented
            default, `xrai`, is sent.
        visualizations: answer with a picture of each explanation.
        attributions: answer with the relevance of each pixel.
        confidence_score_threshold_multilabel: classes of a multi-label model with at least this probability
            are explained.
        n_steps: points on each path that xrai and integrated_gradients follow.
        xrai_fast: rank regions by their own relevance alone; else by what they add to those ranked before.
        approximation_method: of the integral along the path.
        n_masks: random masks that drise hides parts of the image with; our own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    xai_algorithm: Algorithm = "xrai"
    visualizations: bool = True
    attributions: bool = False
    confidence_score_threshold_multilabel: float = Field(0.5, ge=0, le=1)
    n_steps: int = Field(50, ge=2, le=1000)
    xrai_fast: bool = True
    approximation_method: Approximation = "riemann_middle"
    n_masks: int = Field(300, ge=10, le=5000)


def algorithms_of(task: Task) -> tuple[str, ...]:
    """The methods that a task's requests may name. For boxes the documented default stands for `drise`."""
    gradients = tuple(name for name in ALGORITHMS if name != "drise")
    return gradients if task.is_classification else ("drise", "xrai")


def parse_explanation(
    given: Mapping[str, Any], task: Task, row: int | None = None
) -> ExplanationRequest | None:
    """A row's `xai_parameters`; None if they ask neither for pictures nor for figures.

    Raises:
        RequestError: one is unknown, of a wrong type or out of its range, or the method is not for the task.
    """
    try:
        asked = ExplanationRequest.model_validate(dict(given))
        if asked.xai_algorithm not in algorithms_of(task):
            raise RequestError(
                f"{asked.xai_algorithm} cannot explain a model for {task}; use "
                f"{' or '.join(algorithms_of(task))}",
                row=row,
            )
        return asked if asked.visualizations or asked.attributions else None
    except ValidationError as error:
        # Of several the first in the order in which they are documented, so that answers repeat.
        names = [str(each["loc"][0]) for each in error.errors()]
        name = next((known for known in ExplanationRequest.model_fields if known in names), None)
    if name is None:
        known = ", ".join(ExplanationRequest.model_fields)
        raise RequestError(
            f"xai_parameters has the unknown key {shown(names[0])}; it may have {known}", row=row
        )
    raise RequestError(f"xai_parameters.{name} must be {range_of(name)}, got {shown(given[name])}", row=row)


def json_schema(task: Task) -> dict[str, Any]:
    """The JSON schema of `xai_parameters`, as OpenAPI 3.0 has it."""
    schema = ExplanationRequest.model_json_schema()
    kept = ("type", "enum", "minimum", "maximum", "default")
    properties = {
        name: {key: each[key] for key in kept if key in each} for name, each in schema["properties"].items()
    }
    properties["xai_algorithm"]["enum"] = list(algorithms_of(task))
    return {"type": "object", "properties": properties, "additionalProperties": False}


def range_of(name: str) -> str:
    """A parameter's type and range in words, from its definition: `a whole number in [1, 1000]`."""
    field = ExplanationRequest.model_fields[name]
    if field.annotation is bool:
        return "true or false"
    choices = get_args(field.annotation)
    if choices:
        return f"one of {', '.join(choices)}"
    bounds = {
        kind: getattr(bound, kind)
        for bound in field.metadata
        for kind in ("ge", "le")
        if hasattr(bound, kind)
    }
    kind = "a whole number" if field.annotation is int else "a number"
    return f"{kind} in [{bounds['ge']}, {bounds['le']}]"
