"""Checks, before the first trial, that the models of a search space accept all that it can propose."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from typing import Any

from pydantic import ValidationError

from trainer.errors import JobError, Problem, did_you_mean, problem_of
from trainer.job.sweep import MODEL_NAME
from trainer.models import catalog
from trainer.models.card import ModelEntry
from trainer.models.defaults import models_taking, resolve, takes
from trainer.models.libraries import is_installed, missing_library
from trainer.settings import NAMES, Settings, canonical
from trainer.sweep.space.distributions import (
    TAIL,
    TYPES,
    Choice,
    Distribution,
    LogNormal,
    LogUniform,
    Normal,
    Scalar,
    exponents_of,
)
from trainer.sweep.space.search_space import SearchSpace, SubSpace
from trainer.tasks import Task

LARGEST = 1_000_000
"""Greatest number to draw on a logarithmic scale; no setting without an upper limit needs more."""


def check_space(
    space: SearchSpace,
    task: Task,
    default_model: str,
    fixed: Mapping[str, Any] | None = None,
    where: str = "",
    *,
    augments_itself: bool = True,
) -> SearchSpace:
    """Check a search space against the settings of its models.

    Args:
        default_model: the model of sub-spaces that name none.
        fixed: values of the job's settings, by any of their names; a sub-space's own values come first.
        where: the file, for errors.
        augments_itself: see `trainer.models.defaults.resolve`.

    Returns:
        The same space, with normal distributions cut off where their setting stops accepting values.

    Raises:
        JobError: models that cannot be trained here, unknown settings, settings that do not apply to a model,
            values out of range, values that conflict; all at once.
    """
    problems: list[Problem] = []
    checked = []
    models = [_models(sub_space, task, default_model, where) for sub_space in space.sub_spaces]
    all_entries = [entry for entries, _ in models for entry in entries]
    for sub_space, (entries, unknown) in zip(space.sub_spaces, models, strict=True):
        searched = {canonical(name) for name in sub_space.parameters if name != MODEL_NAME}
        # A setting of the job may apply to the models of one sub-space and not to those of another.
        applied = {
            name: value
            for name, value in (fixed or {}).items()
            if (setting := canonical(name)) not in searched
            and (all(takes(e, setting) for e in entries) or not any(takes(e, setting) for e in all_entries))
        }
        cut, found = _check_parameters(sub_space, entries, where)
        problems += unknown + found
        if not unknown and not found:
            for entry in entries:
                accept = partial(resolve, task, entry.name, augments_itself=augments_itself)
                problems += _conflicts(cut, accept, applied, where)
        checked.append(cut)
    if problems:
        raise JobError("the search space cannot be used:", list(dict.fromkeys(problems)))
    return replace(space, sub_spaces=tuple(checked))


def _check_parameters(
    sub_space: SubSpace, models: Sequence[ModelEntry], where: str
) -> tuple[SubSpace, list[Problem]]:
    """Check each parameter by itself; normal distributions of the returned sub-space are cut off."""
    problems: list[Problem] = []
    parameters: dict[str, Distribution | Scalar] = {}
    origins: dict[str, str] = {}
    for name, value in sub_space.parameters.items():
        parameters[name] = value
        if name == MODEL_NAME:
            continue
        field, setting = f"{sub_space.field}.{name}", NAMES.get(name)
        if setting is None:
            hint = did_you_mean(
                name, [MODEL_NAME, *NAMES], otherwise="`trainer fit --help-all` lists all", most=2
            )
            problems.append(Problem(where, field, "is not a setting", hint=hint))
            continue
        if setting in origins:
            rule = f"is the same setting as {origins[setting]}"
            problems.append(Problem(where, field, rule, hint="keep one of the two"))
        origins[setting] = name
        others = [entry.name for entry in models if not takes(entry, setting)]
        if others:
            rule = f"applies only to {models_taking(setting)}, not to {', '.join(others)}"
            hint = "give these models a sub-space of their own" if len(models) > len(others) else ""
            problems.append(Problem(where, field, rule, hint=hint))
        if isinstance(value, Normal) and not _rejections(setting, value.value(0.5)):
            value = parameters[name] = _cut(value, setting)
        found = _value_problems(value, setting)
        problems += [replace(problem, where=where, field=field) for problem in found]
    return replace(sub_space, parameters=parameters), problems


def _models(
    sub_space: SubSpace, task: Task, default: str, where: str
) -> tuple[list[ModelEntry], list[Problem]]:
    """Every model that the sub-space can propose, and problems of those that cannot be trained here."""
    value = sub_space.parameters.get(MODEL_NAME, default)
    field = f"{sub_space.field}.{MODEL_NAME}" if MODEL_NAME in sub_space.parameters else MODEL_NAME
    if isinstance(value, Distribution) and not isinstance(value, Choice):
        rule = "must be a name or a choice of names"
        return [], [Problem(where, field, rule, value.type_name())]
    models: list[ModelEntry] = []
    problems: list[Problem] = []
    missing: dict[str, list[ModelEntry]] = {}
    for name in value.values if isinstance(value, Choice) else (value,):
        try:
            models.append(entry := catalog.find(str(name), task))
        except JobError as error:
            problems += [replace(problem, where=where, field=field) for problem in error.problems]
            continue
        if not is_installed(entry.card):
            missing.setdefault(entry.card.library, []).append(entry)
    for entries in missing.values():
        names = [entry.name for entry in entries]
        problems.append(missing_library(entries[0].card, names, task, where, field))
    return models, problems


def _value_problems(value: Distribution | Scalar, setting: str) -> list[Problem]:
    """Why the setting rejects some of the values that may be proposed."""
    if not isinstance(value, Distribution):
        return _rejections(setting, value)
    # The tails of a normal distribution are cut off where the setting rejects them, so check its median.
    bounds = (value.value(0.5),) if isinstance(value, Normal) else value.bounds
    rejections = _rejections if isinstance(value, Choice) else _draw_rejections
    problems = [problem for bound in bounds for problem in rejections(setting, bound)]
    rounded = _rounded(value) if _takes_only_whole_numbers(setting) else None
    if isinstance(value, LogUniform | LogNormal):
        if rounded is not None and _value_problems(rounded, setting):
            return [_plain_for_exponents(value, setting, "takes whole numbers", rounded.type_name())]
        if rounded is None and problems:
            return [_plain_for_exponents(value, setting, problems[0].rule)]
        if isinstance(value, LogUniform) and value.interval[1] > LARGEST:
            return [_plain_for_exponents(value, setting, f"input should be at most {LARGEST:,}")]
    if rounded is not None or (not problems and any(_rejections(setting, x) for x in value.inside())):
        rule = f"takes whole numbers, which {value.type_name()} does not give"
        quantized = (rounded or value).type_name()
        problems = [Problem("", "", rule, hint=f"use choice, randint, or {quantized} with q: 1")]
    return problems


def _takes_only_whole_numbers(setting: str) -> bool:
    return not _rejections(setting, 256) and bool(_rejections(setting, 256.5))


def _rounded(value: Distribution) -> Distribution | None:
    """The distribution of the same numbers, rounded to whole ones; None if it rounds already."""
    quantized = TYPES.get(f"q{value.type_name()}")
    return None if quantized is None else quantized(**{**vars(value), "q": 1})


def _plain_for_exponents(
    value: LogUniform | LogNormal, setting: str, rule: str, needed_type: str = ""
) -> Problem:
    """Say what an expression with exponents gives, and which exponents were probably meant.

    Args:
        needed_type: the type to write them with, if it is another one.
    """
    name = value.type_name()
    if isinstance(value, LogNormal):
        base, given = math.e, {"mu": value.mu}
        gives = f"{name} has the median exp({value.mu:g}) = {value.value(0.5):.6g}"
    else:
        base, given = value.base, {"min_value": value.min_value, "max_value": value.max_value}
        power = "exp(x)" if base == math.e else f"{base:g}^x"
        low, high = value.interval
        gives = (
            f"{name} draws {power} for x from {value.min_value:g} to {value.max_value:g}, "
            f"which is {low:.6g} to {high:.6g}"
        )
    hint = f"{' and '.join(given)} are exponents" if len(given) > 1 else "mu is an exponent"
    if any(given.values()) and all(
        plain >= 0 and not _rejections(setting, plain) for plain in given.values()
    ):
        meant = exponents_of(given, base)
        if needed_type:
            meant = [f"{needed_type} with {meant[0]}", *meant[1:], "q: 1"]
        hint += f": for {' to '.join(f'{plain:g}' for plain in given.values())} write {', '.join(meant)}"
    return Problem("", "", f"{rule}, but {gives}", hint=hint)


def _rejections(setting: str, value: Any) -> list[Problem]:
    """Why the setting rejects a value, whatever the other settings are."""
    try:
        Settings.model_validate({setting: value})
    except ValidationError as error:
        return [
            replace(problem_of(item, field=""), got=repr(item["input"]))
            for item in error.errors()
            if item["loc"][:1] == (setting,)
        ]
    return []


def _draw_rejections(setting: str, value: Any) -> list[Problem]:
    """Why the setting rejects a drawn value: a probe without epochs is a choice, not one of many numbers."""
    if setting == "number_of_epochs" and value == 0:
        return [Problem("", "", "input should be greater than 0", repr(value))]
    return _rejections(setting, value)


def _cut(normal: Normal, setting: str) -> Normal:
    """The part around the median of a normal distribution that the setting accepts."""

    def accepts(quantile: float) -> bool:
        return not _draw_rejections(setting, normal.value(quantile))

    low, high = (_last_accepted(accepts, 0.5, end) for end in normal.quantiles)
    # If almost nothing is left, the setting takes whole numbers only, which _value_problems reports.
    return replace(normal, quantiles=(low, high)) if high - low > TAIL else normal


def _last_accepted(accepts: Callable[[float], bool], inside: float, outside: float) -> float:
    """The last accepted point on the way from `inside`, which is accepted, to `outside`; by bisection."""
    if accepts(outside):
        return outside
    for _ in range(40):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if accepts(middle) else (inside, middle)
    return inside


def _conflicts(
    sub_space: SubSpace, accept: Callable[[dict[str, Any]], object], fixed: Mapping[str, Any], where: str
) -> Iterator[Problem]:
    """Find values that conflict although each of them is accepted by itself.

    Each rule concerns two settings, and the rules about order are broken by extreme values first. So it is
    enough to try the extreme values of each pair of settings, with any value for the others.

    Args:
        accept: raises JobError for settings that the model rejects.
    """
    probes = {
        name: _extremes(value) if isinstance(value, Distribution) else (value,)
        for name, value in sub_space.parameters.items()
        if name != MODEL_NAME
    }
    base = dict(fixed) | {name: values[0] for name, values in probes.items()}
    searched = [name for name, values in probes.items() if len(values) > 1]
    groups: list[tuple[str, ...]] = [*combinations(searched, 2)] or [tuple(searched)]
    reported = set()
    for group in groups:
        for values in product(*(probes[name] for name in group)):
            for problem in _problems_of(accept, base | dict(zip(group, values, strict=True))):
                if problem.field in fixed:
                    field, rule = f"training_parameters.{problem.field}", problem.rule
                else:
                    field = sub_space.field
                    rule = "has conflicting values: " + f"{problem.field} {problem.rule}".strip()
                kind = (field, re.sub(r"[\d.]+", "", rule))
                if kind not in reported:  # the same rule with other numbers adds nothing
                    reported.add(kind)
                    yield Problem(where, field, rule, problem.got, problem.hint)


def _problems_of(accept: Callable[[dict[str, Any]], object], values: dict[str, Any]) -> tuple[Problem, ...]:
    try:
        accept(values)
    except JobError as error:
        return error.problems
    return ()


def _extremes(value: Distribution) -> tuple[Scalar, ...]:
    """All values if there are at most four, else the least and the greatest number, or the first four."""
    values = value.bounds
    if len(values) <= 4:
        return values
    numbers = [number for number in values if isinstance(number, (int, float))]
    return (min(numbers), max(numbers)) if len(numbers) == len(values) else values[:4]
