"""The parts of a job that concern its trials: limits, sampling and search space."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainer.errors import JobError, Problem
from trainer.fields import enum_member, option
from trainer.settings import canonical

MODEL_NAME = "model_name"
"""The model's key among training parameters and in search spaces."""


_DURATION = re.compile(
    r"P(?:(?P<weeks>[\d.]+)W)?(?:(?P<days>[\d.]+)D)?"
    r"(?:T(?:(?P<hours>[\d.]+)H)?(?:(?P<minutes>[\d.]+)M)?(?:(?P<seconds>[\d.]+)S)?)?"
)
_MINUTES = {"weeks": 10080, "days": 1440, "hours": 60, "minutes": 1, "seconds": 1 / 60}


DURATION_RULE = "must be a duration longer than zero: minutes, or ISO 8601 such as PT60M or PT1H30M"


def minutes_of(value: Any) -> int | None:
    """Read a duration: a number of minutes, or ISO 8601's PT1H30M; parts of a minute count as one.

    Returns:
        None if it is neither, or not over zero.
    """
    match = _DURATION.fullmatch(str(value).strip().upper())
    try:
        if match is not None:
            minutes = sum(float(part) * _MINUTES[unit] for unit, part in match.groupdict("0").items())
        else:
            minutes = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return math.ceil(round(minutes, 6)) if 0 < minutes < 1e9 else None


class Limits(BaseModel):
    """Limits of a job's trials and time."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    timeout_minutes: int | None = option(None, "Sweep", gt=0, takes_words=True)
    """Stop after this many minutes, or a duration such as PT1H, counted from the moment the data are loaded.
    If time is short, a run by the modern recipe, or of a model that has only one recipe, gets fewer epochs,
    over which its learning rate decays. Any run ends at its next evaluation and is then packaged and
    reported; --resume trains the remaining epochs by the schedule of all epochs. In a sweep, no new trial
    starts. [default: none]"""
    max_trials: int = option(1, "Sweep", ge=1, le=1000)
    """Number of trials of a sweep, up to 1000; more than 1 without a search space starts AutoMode."""
    max_concurrent_trials: int = option(1, "Sweep", ge=1, le=100)
    """Number of trials to run at once, up to 100; they share this machine's GPUs."""

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, values: Any) -> Any:
        """Read `timeout`, the REST form's name, and durations of ISO 8601."""
        if not isinstance(values, Mapping):
            return values
        named = dict(values)
        for key in named.keys() & {"timeout", "timeout_minutes"}:
            minutes = minutes_of(named[key])
            if minutes is not None:
                named[key] = minutes
            elif isinstance(named[key], str) or (key == "timeout" and named[key] is not None):
                raise ValueError(f"{key} {DURATION_RULE}, got {named[key]!r}")
        if "timeout" in named:
            minutes = named.pop("timeout")
            if named.get("timeout_minutes") not in (None, minutes):
                raise ValueError("timeout contradicts timeout_minutes, its other name; keep one")
            named["timeout_minutes"] = minutes
        return named

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_as_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"must be a whole number, got {value}")
        return value

    @model_validator(mode="after")
    def _concurrent_trials_fit(self) -> Limits:
        if self.max_concurrent_trials > self.max_trials:
            raise ValueError(
                f"max_concurrent_trials ({self.max_concurrent_trials}) must be at most max_trials "
                f"({self.max_trials})"
            )
        return self


class SamplingAlgorithm(BaseModel):
    """How a sweep proposes the settings of its trials.

    Attributes:
        seed: makes the proposals repeatable.
        rule: random sampling only: independent draws, or Sobol's sequence, which covers the space evenly.
        logbase: random sampling only: base of the exponents in loguniform, a number or "e".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["random", "grid", "bayesian"] = "random"
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None
    rule: Literal["random", "sobol"] | None = None
    logbase: float | str | None = None

    @field_validator("type", "rule", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return enum_member(value).lower() if isinstance(value, str) else value

    @field_validator("logbase", mode="before")
    @classmethod
    def _number_in_quotes(cls, value: Any) -> Any:
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value

    @field_validator("logbase")
    @classmethod
    def _valid_base(cls, value: float | str | None) -> float | str | None:
        is_base = isinstance(value, float) and 0 < value < math.inf and value != 1
        if value not in (None, "e") and not is_base:
            raise ValueError(f"must be e or a positive number other than 1, got {value!r}")
        return value

    @model_validator(mode="after")
    def _only_random_has_rules(self) -> SamplingAlgorithm:
        for name in ("rule", "logbase"):
            if self.type != "random" and getattr(self, name) is not None:
                raise ValueError(f"{name} is an option of random sampling and does not apply to {self.type}")
        return self


class Sweep(BaseModel):
    """How a search space is searched.

    Attributes:
        early_termination: a policy as job files write it, checked by trainer.sweep; None: none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sampling_algorithm: SamplingAlgorithm = SamplingAlgorithm()
    early_termination: dict[str, Any] | None = None

    @field_validator("sampling_algorithm", mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value


def override_space(spaces: Any, settings: Mapping[str, Any], model: str | None) -> Any:
    """Fix parameters of a search space.

    Args:
        spaces: a sub-space or a list of them; anything else is returned for the check of the job to report.
        settings: values that replace the expressions of the parameters of these names.
        model: the only model to search; sub-spaces for other models are dropped. None: all models.

    Raises:
        JobError: no sub-space is for the model.
    """
    known = [spaces] if isinstance(spaces, Mapping) else spaces
    if not known or not isinstance(known, Sequence) or not all(isinstance(s, Mapping) for s in known):
        return spaces
    fixed_spaces = []
    for space in known:
        if model is None or MODEL_NAME not in space or model in _names_in(space[MODEL_NAME]):
            fixed = {name: settings.get(canonical(name), expression) for name, expression in space.items()}
            fixed_spaces.append(fixed | ({MODEL_NAME: model} if model is not None else {}))
    if not fixed_spaces:
        names = sorted({name for space in known for name in _names_in(space[MODEL_NAME])})
        hint = f"there are sub-spaces for {', '.join(names)}"
        rule = "must be a model of the search space"
        raise JobError("the job cannot be run:", [Problem("--model", "", rule, repr(model), hint)])
    return fixed_spaces


def _names_in(expression: Any) -> list[str]:
    """The names of models among the values of an expression for model_name."""
    if isinstance(expression, Mapping):
        values = expression.get("values")
        return [str(value) for value in values] if isinstance(values, Sequence) else []
    chosen = re.fullmatch(r"\s*choice\s*\((.*)\)\s*", str(expression), re.IGNORECASE | re.DOTALL)
    return [name.strip("\"' \t\n[]") for name in (chosen[1] if chosen else str(expression)).split(",")]
