"""The explanation that a row of a request asks for, with the documented names and defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from serving.wording import range_in_words, shown
from trainer.errors import RequestError
from trainer.fields import snake_case
from trainer.tasks import Task

Algorithm = Literal["xrai", "integrated_gradients", "guided_gradcam", "guided_backprop", "drise"]
Approximation = Literal[
    "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid", "gausslegendre"
]

CLASSIFIER_ALGORITHMS = tuple(name for name in get_args(Algorithm) if name != "drise")


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


_SPELLINGS = {_letters(name): name for name in (*get_args(Algorithm), *get_args(Approximation))}


class ExplanationRequest(BaseModel):
    """The `xai_parameters` of a row with `model_explainability: true`.

    Clients send the parameters of all methods. Those of other methods than the requested one are checked and
    have no effect. Numbers and booleans may be texts, as some clients write them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    xai_algorithm: Algorithm = Field(
        default="xrai",
        description="The method. Boxes are explained by drise alone; with another one, which includes the "
        "default, a model of boxes returns only scores.",
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

    @field_validator("xai_algorithm", "approximation_method", mode="before")
    @classmethod
    def _any_spelling(cls, value: Any) -> Any:
        """Read guided_gradCAM and "Integrated gradients", as parts of Azure's documentation write them."""
        return _SPELLINGS.get(_letters(value), value) if isinstance(value, str) else value

    @field_validator("visualizations", "attributions", "xrai_fast", mode="before")
    @classmethod
    def _any_boolean(cls, value: Any) -> Any:
        return as_boolean(value)

    @field_validator("confidence_score_threshold_multilabel", mode="before")
    @classmethod
    def _any_number(cls, value: Any) -> Any:
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value

    @field_validator("n_steps", "n_masks", mode="before")
    @classmethod
    def _any_whole_number(cls, value: Any) -> Any:
        number = cls._any_number(value)
        return int(number) if isinstance(number, float) and number.is_integer() else value


_BOOLEANS = dict.fromkeys(("true", "t", "yes", "y", "on", "1", "1.0"), True) | dict.fromkeys(
    ("false", "f", "no", "n", "off", "0", "0.0"), False
)


def as_boolean(value: Any) -> Any:
    """Read a boolean that is written as a text or as 0 or 1; other values are returned unchanged."""
    if isinstance(value, str):
        return _BOOLEANS.get(value.strip().lower(), value)
    return bool(value) if isinstance(value, (int, float)) and value in (0, 1) else value


def algorithms_of(task: Task) -> tuple[str, ...]:
    """The methods that requests may name for a task. For boxes, all others than drise return only scores."""
    return CLASSIFIER_ALGORITHMS if task.is_classification else get_args(Algorithm)


def parse_explanation(
    parameters: Mapping[str, Any], task: Task, row: int | None = None
) -> ExplanationRequest | None:
    """Parse a row's `xai_parameters`; None if the answer to them is one of scores alone.

    That is so if they ask for neither visualizations nor attributions, and for boxes unless the method is
    drise: the documentation says that a model of boxes returns only scores.

    Args:
        parameters: values by name; None stands for a parameter's default.

    Raises:
        RequestError: a parameter is unknown, of a wrong type or out of range, or the method does not apply
            to the task.
    """
    values: dict[str, Any] = {}
    for spelling, value in parameters.items():
        key = snake_case(str(spelling))
        if key in values and values[key] != value:
            raise RequestError(f"xai_parameters has two values for {key}; send one of them", row=row)
        if value is not None:
            values[key] = value
    try:
        request = ExplanationRequest.model_validate(values)
    except ValidationError as error:
        # Report the first in the documented order, so that the same request always gets the same answer.
        names = [str(each["loc"][0]) for each in error.errors()]
        name = next((known for known in ExplanationRequest.model_fields if known in names), None)
        if name is None:
            known = ", ".join(ExplanationRequest.model_fields)
            reason = f"xai_parameters has the unknown key {shown(names[0])}; it may have {known}"
        else:
            allowed = range_in_words(ExplanationRequest.model_json_schema()["properties"][name])
            if name == "xai_algorithm":
                allowed = f"one of {', '.join(algorithms_of(task))}"
            reason = f"xai_parameters.{name} must be {allowed}, got {shown(values[name])}"
        raise RequestError(reason, row=row) from None
    if task.is_classification and request.xai_algorithm not in CLASSIFIER_ALGORITHMS:
        raise RequestError(
            f"{request.xai_algorithm} cannot explain a model for {task}; "
            f"use {' or '.join(CLASSIFIER_ALGORITHMS)}",
            row=row,
        )
    is_explained = task.is_classification or request.xai_algorithm == "drise"
    return request if is_explained and (request.visualizations or request.attributions) else None
