from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator

from trainer.errors import did_you_mean, problems_of


class _Inner(BaseModel):
    count: Annotated[int, Field(gt=0)] = 1


class _Form(BaseModel):
    inner: _Inner
    name: str = "a"

    @field_validator("name")
    @classmethod
    def _short(cls, name: str) -> str:
        if len(name) > 3:
            raise ValueError(f"Must be short, got {name!r}")
        return name


def test_problems_of_names_each_field_with_rule_and_value() -> None:
    with pytest.raises(ValidationError) as raised:
        _Form.model_validate({"inner": {"count": -2}, "name": "longer"})
    assert [str(problem) for problem in problems_of(raised.value, "job.yml")] == [
        "job.yml: inner.count: input should be greater than 0, got -2",
        "job.yml: name: must be short, got 'longer'",
    ]


def test_problems_of_shows_no_value_for_a_missing_field() -> None:
    with pytest.raises(ValidationError) as raised:
        _Form.model_validate({})
    assert str(problems_of(raised.value)[0]) == "inner: field required"


def test_problems_of_does_not_repeat_text_that_is_not_json() -> None:
    with pytest.raises(ValidationError) as raised:
        _Form.model_validate_json("{" + 1000 * " ")
    assert str(problems_of(raised.value)[0]).startswith("invalid JSON: EOF")
    assert len(str(problems_of(raised.value)[0])) < 100


def test_did_you_mean_names_close_names_or_gives_the_alternative() -> None:
    known = ("learning_rate", "weight_decay")
    assert did_you_mean("Learning_rat", known) == "did you mean learning_rate?"
    assert did_you_mean("zzz", known, otherwise="see --help") == "see --help"
