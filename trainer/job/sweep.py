"""What a job says of its trials: how many, how they are sampled, and from which search space."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainer.errors import JobError, Problem
from trainer.settings import canonical

MODEL_NAME = "model_name"
"""The model's key among training parameters and in search spaces."""


class Limits(BaseModel):
    """How many trainings a job may run, and for how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    timeout_minutes: Annotated[int, Field(gt=0)] | None = None
    max_trials: Annotated[int, Field(ge=1, le=1000)] = 1
    max_concurrent_trials: Annotated[int, Field(ge=1, le=100)] = 1

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"must be a whole number, got {value}")
        return value

    @model_validator(mode="after")
    def _concurrent_of_all(self) -> Limits:
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
        rule: of random sampling: independent draws, or Sobol's sequence, which covers the space evenly.
        logbase: of random sampling: the base of the exponents in loguniform, a number or "e".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["random", "grid", "bayesian"] = "random"
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None
    rule: Literal["random", "sobol"] | None = None
    logbase: float | str | None = None

    @field_validator("type", "rule", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("logbase")
    @classmethod
    def _base(cls, value: float | str | None) -> float | str | None:
        if value is None or value == "e" or (isinstance(value, float) and value > 0 and value != 1):
            return value
        raise ValueError(f"must be e or a positive number other than 1, got {value!r}")

    @model_validator(mode="after")
    def _random_alone_has_rules(self) -> SamplingAlgorithm:
        for name in ("rule", "logbase"):
            if self.type != "random" and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is an option of random sampling; with {self.type} it has no meaning"
                )
        return self


class Sweep(BaseModel):
    """How a search space is searched.

    Attributes:
        early_termination: a policy as job files write it; trainer.sweep checks it. None: every trial runs to
            its end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sampling_algorithm: SamplingAlgorithm = SamplingAlgorithm()
    early_termination: dict[str, Any] | None = None

    @field_validator("sampling_algorithm", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value


def override_space(spaces: Any, flags: Mapping[str, Any], model: str | None) -> Any:
    """A job file's search space with what flags fix in the place of the expressions for it.

    Args:
        model: of `--model`; sub-spaces for other models are left out.

    Raises:
        JobError: no sub-space is for that model.
    """
    known = [spaces] if isinstance(spaces, Mapping) else spaces
    if not known or not isinstance(known, Sequence) or not all(isinstance(s, Mapping) for s in known):
        return spaces  # the check of the job says what is wrong with it
    kept = []
    for space in known:
        if model is None or MODEL_NAME not in space or model in _names_in(space[MODEL_NAME]):
            fixed = {name: flags.get(canonical(name), expression) for name, expression in space.items()}
            kept.append(fixed | ({MODEL_NAME: model} if model is not None else {}))
    if not kept:
        names = sorted({name for space in known for name in _names_in(space[MODEL_NAME])})
        hint = f"there are sub-spaces for {', '.join(names)}"
        rule = "must be a model of the search space"
        raise JobError("the job cannot be run:", [Problem("--model", "", rule, repr(model), hint)])
    return kept


def _names_in(expression: Any) -> list[str]:
    """The models that an expression for model_name can give."""
    if isinstance(expression, Mapping):
        values = expression.get("values")
        return [str(value) for value in values] if isinstance(values, Sequence) else []
    chosen = re.fullmatch(r"\s*choice\s*\((.*)\)\s*", str(expression), re.IGNORECASE | re.DOTALL)
    return [name.strip("\"' \t\n[]") for name in (chosen[1] if chosen else str(expression)).split(",")]
