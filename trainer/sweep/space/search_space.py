"""A sweep's search space: what each hyperparameter may be, in one or several conditional sub-spaces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainer.errors import JobError, Problem
from trainer.sweep.space.compatibility import check
from trainer.sweep.space.distributions import Choice, Distribution, Scalar
from trainer.sweep.space.expressions import log_base, read

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

__all__ = ["SUB_SPACE", "SearchSpace", "SubSpace", "check", "parse"]

SUB_SPACE = "sub_space"
"""Optuna's name for the choice of the sub-space, by its index."""


@dataclass(frozen=True)
class SubSpace:
    """Hyperparameters that are searched together.

    Attributes:
        parameters: by the name in the job file: how to draw each, or its fixed value.
        field: its place in the job file, for errors.
    """

    parameters: Mapping[str, Distribution | Scalar]
    field: str = field(default="search_space", compare=False)

    @property
    def distributions(self) -> dict[str, Distribution]:
        """The parameters that are not fixed."""
        return {name: value for name, value in self.parameters.items() if isinstance(value, Distribution)}


@dataclass(frozen=True)
class SearchSpace:
    """Sub-spaces, of which each trial takes one.

    With several, Optuna's parameters are the sub-space's index and, by `INDEX/NAME`, those of all
    sub-spaces, so that equal names in two of them do not meet; with one they have the job file's names.
    """

    sub_spaces: tuple[SubSpace, ...]

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """The trial's settings by the job file's names, drawn by the study's sampler.

        Also tells the settings of a finished trial, or those that Optuna's parameters stand for
        (`optuna.trial.FixedTrial(params)`).
        """
        index = trial.suggest_categorical(SUB_SPACE, self._indices) if self._is_conditional else 0
        return {
            name: value.suggest(trial, self.prefix(index) + name)
            if isinstance(value, Distribution)
            else value
            for name, value in self.sub_spaces[index].parameters.items()
        }

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each of its parameters, those of all sub-spaces."""
        own = {SUB_SPACE: Choice(self._indices).to_optuna()} if self._is_conditional else {}
        for index, sub_space in enumerate(self.sub_spaces):
            for name, distribution in sub_space.distributions.items():
                own[self.prefix(index) + name] = distribution.to_optuna()
        return own

    def named(self) -> Iterator[tuple[str, Distribution]]:
        """Each distribution with its place in the job file."""
        for sub_space in self.sub_spaces:
            for name, distribution in sub_space.distributions.items():
                yield f"{sub_space.field}.{name}", distribution

    def prefix(self, index: int) -> str:
        """What Optuna's names of a sub-space's parameters begin with."""
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
    """A job file's `search_space`; whether the models take it, `check` tells.

    Args:
        content: a list of maps, each a sub-space of its own, or one map.
        where: the file it stands in, for errors.
        logbase: the sampling algorithm's: the base of the exponents in loguniform's string form, e if None.

    Raises:
        JobError: all that is wrong.
    """
    entries = content if isinstance(content, (list, tuple)) else [content]
    problems: list[Problem] = []
    base = math.e
    try:
        base = log_base(logbase, where)
    except JobError as error:
        problems += error.problems
    sub_spaces = []
    for index, entry in enumerate(entries):
        place = f"search_space[{index}]" if entries is content else "search_space"
        if not isinstance(entry, Mapping) or not entry:
            rule = "must map hyperparameters to expressions or values"
            problems.append(Problem(where, place, rule, repr(entry)))
            continue
        parameters: dict[str, Distribution | Scalar] = {}
        for name, value in entry.items():
            try:
                parameters[str(name)] = read(value, where, f"{place}.{name}", base)
            except JobError as error:
                problems += error.problems
        sub_spaces.append(SubSpace(parameters, place))
    if not entries:
        problems.append(Problem(where, "search_space", "must have at least one sub-space", repr(content)))
    if problems:
        raise JobError("the search space cannot be used:", problems)
    return SearchSpace(tuple(sub_spaces))
