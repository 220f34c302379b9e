"""Early termination: the policies of Azure ML, and successive halving, as pruners of Optuna."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from optuna.pruners import BasePruner, NopPruner
from pydantic import TypeAdapter, ValidationError

from trainer.errors import JobError, Problem, did_you_mean, problem_of
from trainer.sweep.early_termination import policies

_POLICIES: Mapping[str, type[policies.Policy]] = {
    "bandit": policies.BanditPolicy,
    "median_stopping": policies.MedianStoppingPolicy,
    "truncation_selection": policies.TruncationSelectionPolicy,
    "successive_halving": policies.SuccessiveHalvingPolicy,
}
_FIELD = "sweep.early_termination"


def create_pruner(content: Any, where: str = "") -> BasePruner:
    """Create the pruner of a job file's `sweep.early_termination`.

    Args:
        content: `{type: bandit, slack_factor: 0.2, evaluation_interval: 2}`, only a type, or None for no
            policy. Types and keys may be spelled as in the SDK and the REST form (`BanditPolicy`,
            `slackFactor`).
        where: the file, for errors.

    Raises:
        JobError: everything that is wrong with the policy.
    """
    if content is None:
        return NopPruner()
    if isinstance(content, str):
        content = {"type": content}
    if not isinstance(content, Mapping):
        problem = Problem(where, _FIELD, "must be a policy with the key type", repr(content))
        raise JobError("the sweep cannot be run:", [problem])
    values = {_snake_case(str(key)): value for key, value in content.items() if value is not None}
    name = values.pop("type", values.pop("policy_type", None))
    kind = _snake_case(str(name)).removesuffix("_policy")
    if kind not in _POLICIES:
        hint = did_you_mean(kind, _POLICIES, otherwise=f"choose one of {', '.join(_POLICIES)}")
        problem = Problem(where, f"{_FIELD}.type", "must be the type of a policy", repr(name), hint)
        raise JobError("the sweep cannot be run:", [problem])
    try:
        return TypeAdapter(_POLICIES[kind]).validate_python(values)
    except ValidationError as error:
        problems = [_problem(item, kind, where) for item in error.errors()]
        raise JobError("the sweep cannot be run:", problems) from error


def _problem(item: Mapping[str, Any], kind: str, where: str) -> Problem:
    key = ".".join(map(str, item["loc"]))
    if item["type"] == "unexpected_keyword_argument":
        keys = [field.name for field in fields(_POLICIES[kind])]
        hint = did_you_mean(key, keys, otherwise=f"it has {', '.join(keys)}")
        return Problem(where, f"{_FIELD}.{key}", f"is not a key of {kind}", hint=hint)
    return problem_of(item, where, f"{_FIELD}.{key}")


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
