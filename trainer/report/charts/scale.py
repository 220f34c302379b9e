"""Axes of charts: which numbers stand at them, where a value lies on them, how a number is written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_DECADES_OF_A_LOG = 1.5
"""Positive values that span more decades than this read better on a logarithmic axis."""


def shown(value: object) -> str:
    """A value as a reader wants it: four significant digits, thousands apart, "–" for what is undefined."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "–"
    if value == 0 or (value.is_integer() and abs(value) < 1e6):
        return f"{value:,.0f}"
    if 1e-3 <= abs(value) < 1e6:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}"
    return f"{value:.3g}"


def seconds_shown(seconds: float) -> str:
    """A duration: `0.4 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True, slots=True)
class Scale:
    """The values from `low` to `high` along an axis; logarithmic ones must be positive.

    Attributes:
        step: between the numbers at a linear axis; None: what gives about five.
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
        """A scale that holds all finite values, and for a logarithmic one all positive ones.

        Args:
            low, high: ends that are given; the others are rounded outwards to a tick.
        """
        known = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        first = low if low is not None else min(known, default=1.0 if log else 0.0)
        last = high if high is not None else max(known, default=1.0)
        if log:
            floor, ceiling = math.floor(math.log10(first) + 1e-9), math.ceil(math.log10(last) - 1e-9)
            return cls(10.0**floor, 10.0 ** max(ceiling, floor + 1), True)
        if last <= first:
            room = abs(first) * 0.1 or 1.0
            # One value alone lies in the middle, unless an end is given.
            first, last = (first if low is not None else first - room), first + room
        step = _step(last - first)
        if low is None:
            first = math.floor(first / step + 1e-9) * step
        if high is None:
            last = math.ceil(last / step - 1e-9) * step
        return cls(first, last, False, step)

    @classmethod
    def of_epochs(cls, last: float) -> Scale:
        """From the first epoch to the last, with whole numbers at it."""
        high = max(last, 2.0)
        return cls(1.0, high, False, float(math.ceil(_step(high - 1.0))))

    def position(self, value: float) -> float:
        """0 at the low end, 1 at the high one; values beyond are held at the ends."""
        if self.log:
            if value <= 0:
                return 0.0
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))

    def ticks(self) -> list[float]:
        """Round numbers along the axis."""
        if self.log:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            every = max(1, math.ceil((last - first) / 6))
            return [10.0**power for power in range(first, last + 1, every)]
        step = self.step or _step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first
        return [round((first + number) * step, 12) for number in range(count + 1)]


def wants_log(values: Iterable[float]) -> bool:
    """Whether values are all positive and spread over several orders of magnitude."""
    known = [value for value in values if math.isfinite(value)]
    return bool(known) and min(known) > 0 and math.log10(max(known) / min(known)) > _DECADES_OF_A_LOG


def tick_shown(value: float) -> str:
    """A number at an axis, as short as can be."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else (f"{value:.3g}", "")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:,.6g}" if abs(value) < 1000 else f"{value:,.0f}"


def _step(extent: float) -> float:
    """The distance of ticks, so that there are about five."""
    raw = extent / 5
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in _STEPS if step * power >= raw * 0.999)
