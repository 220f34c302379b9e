"""Grid sampling: every combination of the choices of a search space, each in one trial."""

from __future__ import annotations

import math
from contextlib import suppress
from random import Random
from typing import Any

from optuna import Study, TrialPruned
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from trainer.sweep.attempts import first_attempt_number, is_first_attempt
from trainer.sweep.space.distributions import Choice, Scalar
from trainer.sweep.space.search_space import SUB_SPACE, SearchSpace

_QUEUED = "fixed_params"
"""Optuna's system attribute of a trial that was queued with parameters."""


class Grid:
    """The combinations of a search space, numbered so that the last parameter changes fastest.

    Args:
        space: a space whose distributions are all choices.

    Attributes:
        size: number of combinations.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._axes: list[dict[str, tuple[Scalar, ...]]] = []
        for index, sub_space in enumerate(space.sub_spaces):
            axes: dict[str, tuple[Scalar, ...]] = {SUB_SPACE: (index,)} if len(space.sub_spaces) > 1 else {}
            for name, choice in sub_space.distributions.items():
                if not isinstance(choice, Choice):
                    raise TypeError(f"{name} is a {choice.type_name()}, a grid needs choices")
                axes[space.prefix(index) + name] = choice.options
            self._axes.append(axes)
        self.size = sum(map(_size, self._axes))

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Optuna's parameters of a combination."""
        for axes in self._axes:
            if 0 <= number < _size(axes):
                combination = {}
                for name, options in reversed(axes.items()):
                    number, position = divmod(number, len(options))
                    combination[name] = options[position]
                return combination
            number -= _size(axes)
        raise IndexError("the grid has fewer combinations")


class GridSampler(BaseSampler):
    """Proposes every combination once, then stops the study.

    The nth trial that was not queued gets the nth combination. The storage numbers the trials, so no two
    processes get the same combination, without having to agree. (Optuna's GridSampler knows no conditional
    spaces, and may give one combination to two processes.) A trial that was queued with its parameters, or
    retries another, keeps its own.

    A trial for which no combination is left is pruned when it asks for its first parameter. This happens only
    if several processes ask at once; otherwise `is_exhausted` is true before.

    Args:
        seed: shuffles the order, so that a sweep that ends early has tried some of everything.
    """

    def __init__(self, space: SearchSpace, seed: int | None = None) -> None:
        self._grid = Grid(space)
        self._distributions = space.distributions()
        self._start, self._step = (0, 1) if seed is None else _stride(self._grid.size, Random(seed))

    def is_exhausted(self, study: Study) -> bool:
        """Whether every combination has its trial, running or finished."""
        return sum(map(_has_combination, study.get_trials(deepcopy=False))) >= self._grid.size

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        if self.is_exhausted(study):  # this trial gets the last combination
            with suppress(RuntimeError):  # only a study in `optimize` can be stopped
                study.stop()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {} if _QUEUED in trial.system_attrs else self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        number = first_attempt_number(trial)
        trials = study.get_trials(deepcopy=False)
        earlier = sum(_has_combination(other) for other in trials if other.number < number)
        size = self._grid.size
        return self._grid[(self._start + earlier * self._step) % size] if earlier < size else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if _QUEUED in trial.system_attrs:
            raise ValueError(f"a trial queued for a grid must fix all parameters, {param_name} is missing")
        raise TrialPruned("every combination of the grid has its trial")


def _has_combination(trial: FrozenTrial) -> bool:
    """Whether the sampler gave the trial a combination: it is no retry, was not queued, nor struck out."""
    return _QUEUED not in trial.system_attrs and is_first_attempt(trial)


def _size(axes: dict[str, tuple[Scalar, ...]]) -> int:
    return math.prod(map(len, axes.values()))


def _stride(size: int, generator: Random) -> tuple[int, int]:
    """A start and a step with which steps around a ring of `size` positions reach each of them once."""
    while math.gcd(step := generator.randrange(max(size, 1)), size) > 1:
        pass  # a common factor with the size would skip positions
    return generator.randrange(max(size, 1)), step
