"""When to give a trial up: the early termination policies of Azure ML, and one more, as pruners of Optuna."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from optuna.pruners import BasePruner, NopPruner

from trainer.errors import JobError, Problem
from trainer.sweep.early_termination.bandit import BanditPolicy
from trainer.sweep.early_termination.median_stopping import MedianStoppingPolicy
from trainer.sweep.early_termination.successive_halving import SuccessiveHalvingPolicy
from trainer.sweep.early_termination.truncation_selection import TruncationSelectionPolicy
from trainer.sweep.space.expressions import as_number, near

__all__ = [
    "BanditPolicy",
    "MedianStoppingPolicy",
    "SuccessiveHalvingPolicy",
    "TruncationSelectionPolicy",
    "create_pruner",
]

_COMMON = ("evaluation_interval", "delay_evaluation")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "bandit": ("slack_factor", "slack_amount", *_COMMON),
    "median_stopping": _COMMON,
    "truncation_selection": ("truncation_percentage", "exclude_finished_jobs", *_COMMON),
    "successive_halving": ("min_resource", "reduction_factor"),
}
"""Each policy's keys beside `type`."""


def create_pruner(policy: Any, where: str = "", *, maximise: bool = True) -> BasePruner:
    """The pruner of a job file's `sweep.early_termination`.

    Args:
        policy: `{type: bandit, slack_factor: 0.2, evaluation_interval: 2}`, a type alone, or None for no
            policy. Types and keys may be spelled as in the SDK and the REST form (`BanditPolicy`,
            `slackFactor`).
        where: the file it stands in, for errors.
        maximise: whether more of the primary metric is better.

    Raises:
        JobError: all that is wrong.
    """
    if policy is None:
        return NopPruner()
    place = "sweep.early_termination"
    if isinstance(policy, str):
        policy = {"type": policy}
    if not isinstance(policy, Mapping):
        problem = Problem(where, place, "must be a policy with the key type", repr(policy))
        raise JobError("the sweep cannot be run:", [problem])
    given = {_snake(str(key)): value for key, value in policy.items()}
    named = given.pop("type", None) or given.pop("policy_type", None)
    given.pop("policy_type", None)
    kind = _snake(str(named)).removesuffix("_policy")
    if kind not in _KEYS:
        hint = near(kind, _KEYS) if named is not None else f"there are {', '.join(_KEYS)}"
        problem = Problem(where, f"{place}.type", "no policy has this type", repr(named), hint)
        raise JobError("the sweep cannot be run:", [problem])
    problems = [
        Problem(where, f"{place}.{key}", f"{kind} has no such key", hint=near(key, _KEYS[kind]))
        for key in given
        if key not in _KEYS[kind]
    ]
    values: dict[str, Any] = {"maximise": maximise}
    for key in _KEYS[kind]:
        if given.get(key) is not None:
            read, rule = _READING[key]
            values[key] = read(given[key])
            if values[key] is None:
                problems.append(Problem(where, f"{place}.{key}", rule, repr(given[key])))
    if kind == "bandit":
        # The SDK writes both, the one that is not meant as 0.
        slack = {key: values[key] for key in ("slack_factor", "slack_amount") if values.get(key, 0) != 0}
        if len(slack) != 1:
            got = "both" if slack else "neither"
            rule = "needs either slack_factor or slack_amount, over 0"
            problems.append(Problem(where, place, rule, got))
        values = {key: value for key, value in values.items() if "slack" not in key} | slack
    if kind == "truncation_selection" and "truncation_percentage" not in values:
        problems.append(Problem(where, place, "needs truncation_percentage, a whole number from 1 to 99"))
    if problems:
        raise JobError("the sweep cannot be run:", problems)
    return _POLICIES[kind](**values)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _count(value: Any) -> int | None:
    number = as_number(value)
    return None if number is None or number < 0 or number != int(number) else int(number)


def _positive(value: Any) -> int | None:
    return _count(value) or None


def _factor(value: Any) -> int | None:
    number = _count(value)
    return number if number and number > 1 else None


def _amount(value: Any) -> float | None:
    number = as_number(value)
    return None if number is None or number < 0 else number


def _percentage(value: Any) -> int | None:
    number = _count(value)
    return number if number and number < 100 else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else {"true": True, "false": False}.get(str(value).lower())


_READING: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    **dict.fromkeys(_COMMON, (_count, "must be a whole number of at least 0")),
    **dict.fromkeys(("slack_factor", "slack_amount"), (_amount, "must be a number over 0")),
    "truncation_percentage": (_percentage, "must be a whole number from 1 to 99"),
    "exclude_finished_jobs": (_flag, "must be true or false"),
    "min_resource": (_positive, "must be a whole number of at least 1"),
    "reduction_factor": (_factor, "must be a whole number of at least 2"),
}
"""How each key's value is read, None if it breaks the rule beside it."""

_POLICIES: Mapping[str, Callable[..., BasePruner]] = {
    "bandit": BanditPolicy,
    "median_stopping": MedianStoppingPolicy,
    "truncation_selection": TruncationSelectionPolicy,
    "successive_halving": SuccessiveHalvingPolicy,
}
