"""The explanation that a row of a request asks for, with the documented names and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.wording import range_in_words, shown
from trainer.errors import RequestError
from trainer.tasks import Task

Algorithm = Literal["xrai", "integrated_gradients", "guided_gradcam", "guided_backprop", "drise"]
Approximation = Literal[
    "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid", "gausslegendre"
]

CLASSIFIER_ALGORITHMS = tuple(name for name in get_args(Algorithm) if name != "drise")


class ExplanationRequest(BaseModel):
    """The `xai_parameters` of a row with `model_explainability: true`.

    Clients send the parameters of all methods. Those of other methods than the requested one are checked and
    have no effect.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    xai_algorithm: Algorithm = Field(
        default="xrai",
        description="The method. Boxes are always explained by drise, even if the default is sent.",
    )
    visualizations: bool = Field(default=True, description="Return an image of each explanation.")
    attributions: bool = Field(default=False, description="Return the relevance of each pixel.")
    confidence_score_threshold_multilabel: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Multilabel: explain the classes with at least this probability.",
    )
    n_steps: int = Field(
        default=50, ge=2, le=1000, description="xrai and integrated_gradients: number of points on each path."
    )
    xrai_fast: bool = Field(
        default=True,
        description="xrai: rank regions by their own relevance; if false, by what each adds to those before.",
    )
    approximation_method: Approximation = Field(
        default="riemann_middle",
        description="xrai and integrated_gradients: how the integral along a path is approximated.",
    )
    n_masks: int = Field(
        default=300, ge=10, le=5000, description="drise: number of random masks. Not part of the reference."
    )


def algorithms_of(task: Task) -> tuple[str, ...]:
    """The methods that requests may name for a task. For boxes, the documented default also selects drise."""
    return CLASSIFIER_ALGORITHMS if task.is_classification else ("drise", "xrai")


def parse_explanation(
    parameters: Mapping[str, Any], task: Task, row: int | None = None
) -> ExplanationRequest | None:
    """Parse a row's `xai_parameters`; None if they ask for neither visualizations nor attributions.

    Raises:
        RequestError: a parameter is unknown, of a wrong type or out of range, or the method does not apply
            to the task.
    """
    try:
        request = ExplanationRequest.model_validate(dict(parameters))
    except ValidationError as error:
        # Report the first in the documented order, so that the same request always gets the same answer.
        names = [str(each["loc"][0]) for each in error.errors()]
        name = next((known for known in ExplanationRequest.model_fields if known in names), None)
        if name is None:
            known = ", ".join(ExplanationRequest.model_fields)
            reason = f"xai_parameters has the unknown key {shown(names[0])}; it may have {known}"
        else:
            allowed = range_in_words(ExplanationRequest.model_json_schema()["properties"][name])
            reason = f"xai_parameters.{name} must be {allowed}, got {shown(parameters[name])}"
        raise RequestError(reason, row=row) from None
    algorithms = algorithms_of(task)
    if request.xai_algorithm not in algorithms:
        raise RequestError(
            f"{request.xai_algorithm} cannot explain a model for {task}; use {' or '.join(algorithms)}",
            row=row,
        )
    return request if request.visualizations or request.attributions else None
