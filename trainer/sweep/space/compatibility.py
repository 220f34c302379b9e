"""Whether the models of a search space take what it may propose; asked before the first trial."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trainer.errors import JobError, Problem
from trainer.models import catalog
from trainer.models.card import ModelEntry
from trainer.models.defaults import models_taking, resolve, takes
from trainer.settings import Settings, aliases_of
from trainer.sweep.space.distributions import TAIL, Choice, Distribution, Normal, Scalar
from trainer.sweep.space.expressions import near
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.sweep.space.search_space import SearchSpace, SubSpace

MODEL = "model_name"


def check(
    space: SearchSpace,
    task: Task,
    default_model: str,
    fixed: Mapping[str, Any] | None = None,
    where: str = "",
) -> SearchSpace:
    """The space to search: the same, but normal distributions only as far as their settings take the values.

    Args:
        default_model: the model of sub-spaces that name none.
        fixed: the job's values for settings that the sub-space says nothing of, by any of their names.
        where: the file it stands in, for errors.

    Raises:
        JobError: names that no setting has or that mean nothing to a model, values out of range, values
            that do not go together; all at once.
    """
    problems: list[Problem] = []
    checked = [_check(part, task, default_model, fixed or {}, where, problems) for part in space.sub_spaces]
    if problems:
        raise JobError("the search space cannot be used:", list(dict.fromkeys(problems)))
    return replace(space, sub_spaces=tuple(checked))


def _check(
    part: SubSpace,
    task: Task,
    default_model: str,
    fixed: Mapping[str, Any],
    where: str,
    problems: list[Problem],
) -> SubSpace:
    """The sub-space to search; what is wrong is added to `problems`."""
    before = len(problems)
    models = list(_models(part, task, default_model, where, problems))
    known = {alias: name for name in Settings.model_fields for alias in (name, *aliases_of(name))}
    parameters: dict[str, Distribution | Scalar] = {}
    given: dict[str, str] = {}
    for name, value in part.parameters.items():
        parameters[name] = value
        if name == MODEL:
            continue
        place, setting = f"{part.field}.{name}", known.get(name)
        if setting is None:
            problems.append(Problem(where, place, "no setting has this name", hint=_similar(name, known)))
            continue
        if setting in given:
            problems.append(Problem(where, place, f"is given twice, as {given[setting]} too"))
        given[setting] = name
        strangers = [entry.name for entry in models if not takes(entry, setting)]
        if strangers:
            rule = f"means nothing to {', '.join(strangers)}; it is a setting of {models_taking(setting)}"
            hint = "give these models a sub-space of their own" if len(models) > len(strangers) else ""
            problems.append(Problem(where, place, rule, hint=hint))
        if isinstance(value, Normal) and not _refusals(setting, value.value(0.5)):
            value = parameters[name] = _within_range(value, setting)
        problems += [replace(problem, where=where, field=place) for problem in _faults(value, setting)]
    part = replace(part, parameters=parameters)
    if len(problems) == before:
        others = {name: value for name, value in fixed.items() if known.get(name, name) not in given}
        for entry in models:
            problems += _joint_faults(part, task, entry.name, others, where)
    return part


def _models(
    part: SubSpace, task: Task, default: str, where: str, problems: list[Problem]
) -> Iterator[ModelEntry]:
    """Every model that the sub-space can propose."""
    value = part.parameters.get(MODEL, default)
    place = f"{part.field}.{MODEL}" if MODEL in part.parameters else MODEL
    if isinstance(value, Distribution) and not isinstance(value, Choice):
        problems.append(Problem(where, place, "must be a name or a choice of names", value.type_name()))
        return
    for name in value.values if isinstance(value, Choice) else (value,):
        try:
            yield catalog.find(str(name), task)
        except JobError as error:
            problems += [replace(problem, where=where, field=place) for problem in error.problems]


def _similar(name: str, known: Mapping[str, str]) -> str:
    hint = near(name, [MODEL, *known])
    return hint if hint.startswith("did") else "`trainer fit --help-all` lists all"


def _faults(value: Distribution | Scalar, setting: str) -> list[Problem]:
    """What the setting refuses of the values that may be proposed."""
    if not isinstance(value, Distribution):
        return _refusals(setting, value)
    # The ends of a normal distribution are cut off where they are too far, so only its mean must be right.
    bounds = (value.value(0.5),) if isinstance(value, Normal) else value.bounds
    faults = [problem for bound in bounds for problem in _refusals(setting, bound)]
    if not faults and any(_refusals(setting, inner) for inner in value.inside()):
        rule = f"takes whole numbers, which {value.type_name()} does not give"
        faults = [Problem("", "", rule, hint="use choice, randint, or quniform with q: 1")]
    return faults


def _refusals(setting: str, value: Any) -> list[Problem]:
    """Why the setting does not take a value, whatever the others are."""
    try:
        Settings.model_validate({setting: value})
    except ValidationError as error:
        return [
            Problem("", "", _uncapitalized(item["msg"].removeprefix("Value error, ")), repr(item["input"]))
            for item in error.errors()
            if item["loc"][:1] == (setting,)
        ]
    return []


def _uncapitalized(text: str) -> str:
    return text[:1].lower() + text[1:]


def _within_range(normal: Normal, setting: str) -> Normal:
    """The part of a normal distribution around its mean, which the setting takes, that it takes as well."""

    def takes_quantile(quantile: float) -> bool:
        return not _refusals(setting, normal.value(quantile))

    low, high = (_last(takes_quantile, 0.5, end) for end in normal.quantiles)
    # Where next to nothing is left, the setting takes whole numbers: _faults says so of the whole.
    return replace(normal, quantiles=(low, high)) if high - low > TAIL else normal


def _last(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """The point on the way from inside, where a condition holds, to outside up to which it does."""
    if holds(outside):
        return outside
    for _ in range(40):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside


def _joint_faults(
    part: SubSpace, task: Task, model: str, fixed: Mapping[str, Any], where: str
) -> Iterator[Problem]:
    """What is wrong with values of several settings together, each of which is right by itself.

    Rules for several settings concern two, and those on order are broken by outermost values first: trying
    the outermost values of each two settings together, with the others as they may be, finds all.
    """
    probes = {
        name: _outermost(value) if isinstance(value, Distribution) else (value,)
        for name, value in part.parameters.items()
        if name != MODEL
    }
    base = dict(fixed) | {name: values[0] for name, values in probes.items()}
    several = [name for name, values in probes.items() if len(values) > 1]
    groups: list[tuple[str, ...]] = [*combinations(several, 2)] or [tuple(several)]
    said = set()
    for group in groups:
        for values in product(*(probes[name] for name in group)):
            for problem in _problems_of(task, model, base | dict(zip(group, values, strict=True))):
                if problem.field in fixed:
                    place, rule = f"training_parameters.{problem.field}", problem.rule
                else:
                    place = part.field
                    rule = "has values that do not go together: " + f"{problem.field} {problem.rule}".strip()
                kind = (place, re.sub(r"[\d.]+", "", rule))
                if kind not in said:  # the same rule with other numbers says nothing new
                    said.add(kind)
                    yield Problem(where, place, rule, problem.got, problem.hint)


def _problems_of(task: Task, model: str, values: Mapping[str, Any]) -> tuple[Problem, ...]:
    try:
        resolve(task, model, values)
    except JobError as error:
        return error.problems
    return ()


def _outermost(value: Distribution) -> tuple[Scalar, ...]:
    """Of many values the least and the greatest number, else some."""
    values = value.bounds
    if len(values) <= 4:
        return values
    numbers = [number for number in values if isinstance(number, (int, float))]
    return (min(numbers), max(numbers)) if len(numbers) == len(values) else values[:4]
