"""Axis scales: where a value is on an axis, and which values are labelled."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_TICK_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_LOG_DECADES = 1.5
"""Positive values that span more decades than this are drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The range of values along an axis.

    Attributes:
        low: the first value; positive if the axis is logarithmic.
        high: the last value.
        log: whether the axis is logarithmic.
        step: distance of the ticks on a linear axis; None chooses one that gives about five ticks.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @classmethod
    def over(
        cls,
        values: Iterable[float],
        *,
        log: bool = False,
        low: float | None = None,
        high: float | None = None,
    ) -> Scale:
        """Make a scale that covers all finite values; a logarithmic one covers the positive values.

        Args:
            values: the values to cover; may be empty.
            log: whether the axis is logarithmic.
            low: the first value; None rounds the lowest value down to a tick.
            high: the last value; None rounds the highest value up to a tick.
        """
        usable = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        first = low if low is not None else min(usable, default=1.0 if log else 0.0)
        last = high if high is not None else max(usable, default=1.0)
        if log:
            floor, ceiling = math.floor(math.log10(first) + 1e-9), math.ceil(math.log10(last) - 1e-9)
            return cls(10.0**floor, 10.0 ** max(ceiling, floor + 1), True)
        if last <= first:
            margin = abs(first) * 0.1 or 1.0
            # Put a single value in the middle unless the low end is fixed.
            first, last = (first if low is not None else first - margin), first + margin
        step = _tick_step(last - first)
        if low is None:
            first = math.floor(first / step + 1e-9) * step
        if high is None:
            last = math.ceil(last / step - 1e-9) * step
        return cls(first, last, False, step)

    @classmethod
    def of_epochs(cls, last: float, first: float = 1.0) -> Scale:
        """Make a scale from the first epoch, 0 if that is a probe, to the last; ticks are whole numbers."""
        high = max(last, first + 1.0)
        return cls(first, high, False, float(math.ceil(_tick_step(high - first))))

    def position(self, value: float) -> float:
        """Return a value's position: 0 at the low end, 1 at the high end; values outside are clipped."""
        if self.log:
            if value <= 0:
                return 0.0
            fraction = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            fraction = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, fraction))

    def value_at(self, position: float) -> float:
        """Return the value at a position in [0, 1]."""
        if self.log:
            return float(self.low * (self.high / self.low) ** position)
        return self.low + position * (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return round numbers along the axis."""
        if self.log:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            every = max(1, math.ceil((last - first) / 6))
            return [10.0**power for power in range(first, last + 1, every)]
        step = self.step or _tick_step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first
        return [round((first + number) * step, 12) for number in range(count + 1)]


def needs_log(values: Iterable[float]) -> bool:
    """Whether all finite values are positive and span more than one and a half orders of magnitude."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and math.log10(max(finite) / min(finite)) > _LOG_DECADES


def _tick_step(extent: float) -> float:
    """Return a round distance that gives about five ticks."""
    raw = extent / 5
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in _TICK_STEPS if step * power >= raw * 0.999)
