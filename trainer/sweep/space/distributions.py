"""The distributions of hyperparameters: one small class for each expression of Azure's search spaces.

The definitions are those of Azure's hyperdrive (learn.microsoft.com, parameter_expressions), which are
hyperopt's. Optuna is imported only when one of its own distributions is needed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

Scalar = str | int | float | bool | None
"""A value that a setting can have in a job file and that all of Optuna's storages preserve."""

TAIL = 1e-6
"""Probability of a normal distribution that is cut off at each end; the rest is mu ± 4.75 sigma."""


class Distribution(ABC):
    """The values that one hyperparameter can have, and their probabilities."""

    @classmethod
    def type_name(cls) -> str:
        """The `type` in the YAML form, such as quniform."""
        return cls.__name__.lower()

    @classmethod
    def parameters(cls) -> list[str]:
        """The keys of the YAML form besides `type`, in the order of the string form: positional fields."""
        return [field.name for field in fields(cls) if not field.kw_only]  # type: ignore[arg-type]

    @abstractmethod
    def suggest(self, trial: BaseTrial, name: str) -> Any:
        """Draw a trial's value from the study's sampler; a finished trial gives the value that it had."""

    @abstractmethod
    def to_optuna(self) -> BaseDistribution:
        """The distribution that Optuna draws from, from which `suggest` computes the value."""

    @property
    @abstractmethod
    def bounds(self) -> tuple[Scalar, ...]:
        """The least and the greatest value; for a choice all values."""

    def inside(self) -> Iterator[Scalar]:
        """Some values between the bounds."""
        yield from ()

    def to_content(self) -> dict[str, Any]:
        """The YAML form."""
        return {"type": self.type_name(), **{key: getattr(self, key) for key in self.parameters()}}


@dataclass(frozen=True)
class Choice(Distribution):
    """One of several values, all equally likely. `1`, `1.0`, `"1"` and `true` are four values.

    Attributes:
        values: at least one, without duplicates.
    """

    values: tuple[Scalar, ...]

    @property
    def options(self) -> tuple[Scalar, ...]:
        """The choices as Optuna gets them: as text if some are equal to Optuna, as 1, 1.0 and True are."""
        return self.values if len(set(self.values)) == len(self.values) else tuple(map(repr, self.values))

    def suggest(self, trial: BaseTrial, name: str) -> Scalar:
        return self.values[self.options.index(trial.suggest_categorical(name, self.options))]

    def to_optuna(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.options)

    @property
    def bounds(self) -> tuple[Scalar, ...]:
        return self.values

    def to_content(self) -> dict[str, Any]:
        return {"type": self.type_name(), "values": list(self.values)}


@dataclass(frozen=True)
class RandInt(Distribution):
    """A whole number in [0, upper), all equally likely.

    Attributes:
        upper: at least 1.
    """

    upper: int

    def suggest(self, trial: BaseTrial, name: str) -> int:
        return trial.suggest_int(name, 0, self.upper - 1)

    def to_optuna(self) -> BaseDistribution:
        from optuna.distributions import IntDistribution

        return IntDistribution(0, self.upper - 1)

    @property
    def bounds(self) -> tuple[Scalar, ...]:
        return 0, self.upper - 1


class Drawn(Distribution):
    """A number computed from another one, which Optuna draws from an interval.

    Attributes:
        log: whether it draws on a logarithmic scale.
    """

    log: ClassVar[bool] = False

    @property
    @abstractmethod
    def interval(self) -> tuple[float, float]:
        """The interval that Optuna draws from."""

    @abstractmethod
    def value(self, drawn: float) -> float:
        """The hyperparameter's value for a drawn number; a non-decreasing function."""

    def suggest(self, trial: BaseTrial, name: str) -> float:
        return self.value(trial.suggest_float(name, *self.interval, log=self.log))

    def to_optuna(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(*self.interval, log=self.log)

    @property
    def bounds(self) -> tuple[Scalar, ...]:
        return tuple(map(self.value, self.interval))

    def inside(self) -> Iterator[Scalar]:
        low, high = self.interval
        for part in range(1, 14):
            yield self.value(low + (high - low) * part / 14)


@dataclass(frozen=True)
class Quantized(Drawn):
    """round(x / q) · q for the numbers x of another distribution; whole numbers if q is whole."""

    q: float

    def value(self, drawn: float) -> float:
        steps = round(super().value(drawn) / self.q)  # type: ignore[safe-super]
        if float(self.q).is_integer():
            return steps * int(self.q)
        return float(Decimal(steps) * Decimal(str(self.q)))  # without binary rounding errors


@dataclass(frozen=True)
class Uniform(Drawn):
    """Any number from min_value to max_value, all equally likely."""

    min_value: float
    max_value: float

    @property
    def interval(self) -> tuple[float, float]:
        return self.min_value, self.max_value

    def value(self, drawn: float) -> float:
        return drawn


@dataclass(frozen=True)
class LogUniform(Uniform):
    """exp(uniform(min_value, max_value)): the bounds are exponents, in every form of a search space.

    Attributes:
        base: what the exponents raise; e unless the sampling algorithm names another.
    """

    log = True
    base: float = field(default=math.e, kw_only=True)

    @property
    def interval(self) -> tuple[float, float]:
        low, high = sorted(
            (self._power(self.min_value), self._power(self.max_value))
        )  # a base may be below 1
        return low, high

    def _power(self, exponent: float) -> float:
        return math.exp(exponent) if self.base == math.e else math.pow(self.base, exponent)


@dataclass(frozen=True)
class QUniform(Quantized, Uniform):
    """round(uniform(min_value, max_value) / q) · q: the extreme values may exceed the bounds by q/2."""


@dataclass(frozen=True)
class QLogUniform(Quantized, LogUniform):
    """round(exp(uniform(min_value, max_value)) / q) · q."""


@dataclass(frozen=True)
class Normal(Drawn):
    """Normally distributed numbers. Optuna has no such distribution and draws the quantile.

    Attributes:
        mu: the mean.
        sigma: the standard deviation, over 0.
        quantiles: the interval of quantiles to draw, within (0, 1); narrower for a setting with limits.
    """

    mu: float
    sigma: float
    quantiles: tuple[float, float] = field(default=(TAIL, 1 - TAIL), kw_only=True)

    @property
    def interval(self) -> tuple[float, float]:
        return self.quantiles

    def value(self, drawn: float) -> float:
        return NormalDist(self.mu, self.sigma).inv_cdf(drawn)


@dataclass(frozen=True)
class LogNormal(Normal):
    """exp(normal(mu, sigma)): mu and sigma describe the logarithm."""

    def value(self, drawn: float) -> float:
        return math.exp(Normal.value(self, drawn))


@dataclass(frozen=True)
class QNormal(Quantized, Normal):
    """round(normal(mu, sigma) / q) · q."""


@dataclass(frozen=True)
class QLogNormal(Quantized, LogNormal):
    """round(lognormal(mu, sigma) / q) · q."""


def exponents_of(plain: Mapping[str, float], base: float) -> list[str]:
    """Write plain numbers, at least 0, as the exponents that give them: `min_value: -9.21`."""
    return [
        f"{key}: {math.log(number or 1e-5) / math.log(base):.2f}"
        + ("" if number else " (1e-05, as 0 has none)")
        for key, number in plain.items()
    ]


TYPES: Mapping[str, type[Distribution]] = {
    cls.type_name(): cls
    for cls in (
        *(Choice, RandInt),
        *(Uniform, QUniform, LogUniform, QLogUniform),
        *(Normal, QNormal, LogNormal, QLogNormal),
    )
}
"""The classes by their type in the YAML form."""
