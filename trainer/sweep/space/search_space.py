"""A sweep's search space: the values of each hyperparameter, in one or several conditional sub-spaces."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainer.errors import JobError, Problem
from trainer.sweep.space.distributions import Choice, Distribution, Scalar
from trainer.sweep.space.expressions import read

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

SUB_SPACE = "sub_space"
"""Optuna's name for the choice of the sub-space, whose value is the index."""
REPLACED = "replaced_values"
"""The user attribute of a queued trial that holds values in place of those that its sub-space fixes."""


@dataclass(frozen=True)
class SubSpace:
    """Hyperparameters that are searched together.

    Attributes:
        parameters: by the name in the job file, a distribution or a fixed value.
        field: the field of the job file, for errors.
    """

    parameters: Mapping[str, Distribution | Scalar]
    field: str = field(default="search_space", compare=False)

    @property
    def distributions(self) -> dict[str, Distribution]:
        """The parameters that are not fixed."""
        return {name: value for name, value in self.parameters.items() if isinstance(value, Distribution)}


@dataclass(frozen=True)
class SearchSpace:
    """Sub-spaces, of which each trial uses one.

    A single sub-space's parameters have the job file's names in Optuna. With several sub-spaces, Optuna's
    parameters are the index of the sub-space and, as `INDEX/NAME`, the parameters of all sub-spaces, so that
    equal names in two sub-spaces stay apart.
    """

    sub_spaces: tuple[SubSpace, ...]

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """The trial's settings by the job file's names, drawn by the study's sampler.

        For a finished trial, and for `optuna.trial.FixedTrial(parameters)`, they are those that it has.
        """
        index = trial.suggest_categorical(SUB_SPACE, self._indices) if self._is_conditional else 0
        settings = {
            name: value.suggest(trial, self.prefix(index) + name)
            if isinstance(value, Distribution)
            else value
            for name, value in self.sub_spaces[index].parameters.items()
        }
        return {**settings, **trial.user_attrs.get(REPLACED, {})}

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distributions of the parameters of all sub-spaces, by Optuna's names."""
        named = {SUB_SPACE: Choice(self._indices).to_optuna()} if self._is_conditional else {}
        for index, sub_space in enumerate(self.sub_spaces):
            for name, distribution in sub_space.distributions.items():
                named[self.prefix(index) + name] = distribution.to_optuna()
        return named

    def prefix(self, index: int) -> str:
        """The start of Optuna's names for the parameters of a sub-space."""
        return f"{index}/" if self._is_conditional else ""

    def to_content(self) -> list[dict[str, Any]]:
        """The YAML form, which `parse` reads as the same space."""
        return [
            {
                name: value.to_content() if isinstance(value, Distribution) else value
                for name, value in sub_space.parameters.items()
            }
            for sub_space in self.sub_spaces
        ]

    @property
    def _is_conditional(self) -> bool:
        return len(self.sub_spaces) > 1

    @property
    def _indices(self) -> tuple[int, ...]:
        return tuple(range(len(self.sub_spaces)))


def parse(content: Any, where: str = "", *, logbase: Any = None) -> SearchSpace:
    """Read the `search_space` of a job file. Whether the models accept the values is checked elsewhere.

    Args:
        content: a list of maps, each a sub-space, or a single map.
        where: the file, for errors.
        logbase: base of the exponents that bound loguniform: "e", a number, or None for e.

    Raises:
        JobError: everything that is wrong.
    """
    entries = content if isinstance(content, (list, tuple)) else [content]
    problems: list[Problem] = []
    base = math.e if logbase in (None, "e") else float(logbase)
    sub_spaces = []
    for index, entry in enumerate(entries):
        location = f"search_space[{index}]" if entries is content else "search_space"
        if not isinstance(entry, Mapping) or not entry:
            rule = "must map hyperparameters to expressions or values"
            problems.append(Problem(where, location, rule, repr(entry)))
            continue
        parameters: dict[str, Distribution | Scalar] = {}
        for name, value in entry.items():
            try:
                parameters[str(name)] = read(value, where, f"{location}.{name}", base)
            except JobError as error:
                problems += error.problems
        sub_spaces.append(SubSpace(parameters, location))
    if not entries:
        problems.append(Problem(where, "search_space", "must have at least one sub-space", repr(content)))
    if problems:
        raise JobError("the search space cannot be used:", problems)
    return SearchSpace(tuple(sub_spaces))
