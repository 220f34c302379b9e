"""The grid: every combination of the choices of a search space, each in one trial."""

from __future__ import annotations

import math
from contextlib import suppress
from random import Random
from typing import Any

from optuna import Study, TrialPruned
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from trainer.sweep.execution.attempts import SURPLUS
from trainer.sweep.space.distributions import Choice, Scalar
from trainer.sweep.space.search_space import SUB_SPACE, SearchSpace


class Grid:
    """The combinations of a search space: of their numbers, the last parameter changes fastest.

    Args:
        space: its distributions are choices, all of them.

    Attributes:
        size: how many combinations there are.
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
                point = {}
                for name, options in reversed(axes.items()):
                    number, position = divmod(number, len(options))
                    point[name] = options[position]
                return point
            number -= _size(axes)
        raise IndexError("the grid has fewer combinations")


class GridSampler(BaseSampler):
    """Every combination once; then the study stops.

    The nth trial that was not queued takes the nth combination. It is the storage that numbers trials, so no
    two processes take the same one, without having to agree. (Optuna's GridSampler knows no conditional
    spaces, and two of its processes may take one combination.) A trial that was queued with its parameters,
    or is Optuna's retry of another, keeps its own.

    A trial for which no combination is left is pruned when it asks for its first parameter. That happens only
    where several processes ask at once; in between, `is_exhausted` tells beforehand.

    Args:
        seed: mixes the order, so that a sweep that ends early has tried something of everything.
    """

    def __init__(self, space: SearchSpace, seed: int | None = None) -> None:
        self._grid = Grid(space)
        self._distributions = space.distributions()
        self._start, self._step = (0, 1) if seed is None else _stride(self._grid.size, Random(seed))

    def is_exhausted(self, study: Study) -> bool:
        """Whether every combination has its trial, be it running or finished."""
        return sum(map(_takes_one, study.get_trials(deepcopy=False))) >= self._grid.size

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        if self.is_exhausted(study):  # this trial has the last one
            with suppress(RuntimeError):  # where the study is not in `optimize`, which is what stops
                study.stop()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {} if "fixed_params" in trial.system_attrs else self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        number = first_number(trial)
        earlier = sum(
            _takes_one(other) for other in study.get_trials(deepcopy=False) if other.number < number
        )
        size = self._grid.size
        return self._grid[(self._start + earlier * self._step) % size] if earlier < size else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if "fixed_params" in trial.system_attrs:
            raise ValueError(f"a trial queued for a grid must fix all its parameters, {param_name} too")
        raise TrialPruned("every combination of the grid has its trial")


def first_number(trial: FrozenTrial) -> int:
    """The number of a trial, or of the one that Optuna retries in it."""
    return int(trial.system_attrs.get("failed_trial", trial.number))


def _takes_one(trial: FrozenTrial) -> bool:
    """Whether a trial takes a combination: it was neither queued with one nor struck out."""
    return not trial.system_attrs.keys() & {"fixed_params", "failed_trial"} and not trial.user_attrs.get(
        SURPLUS
    )


def _size(axes: dict[str, tuple[Scalar, ...]]) -> int:
    return math.prod(map(len, axes.values()))


def _stride(size: int, generator: Random) -> tuple[int, int]:
    """Where to start and how far to step on, to come through all of a ring of some size."""
    while math.gcd(step := generator.randrange(max(size, 1)), size) > 1:
        pass  # a step that has a factor in common with the size comes back too early
    return generator.randrange(max(size, 1)), step
