"""Formats numbers, durations and sizes for readers."""

from __future__ import annotations

import math
from typing import TypeGuard

UNDEFINED = "–"


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def format_value(value: object) -> str:
    """Format a number with four significant digits and thousands separators; other values with `str`.

    None and numbers that are not finite become "–".
    """
    if value is None:
        return UNDEFINED
    if not is_number(value):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return UNDEFINED
    if value == 0 or (value.is_integer() and abs(value) < 1e6):
        return f"{value:,.0f}"
    if 1e-3 <= abs(value) < 1e6:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}"
    return f"{value:.3g}"


def format_tick(value: float) -> str:
    """Format a number on an axis as briefly as possible: `0.25`, `1,000`, `1e-5`."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:,.6g}" if abs(value) < 1000 else f"{value:,.0f}"


def format_duration(seconds: float) -> str:
    """Format a duration: `0.4 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_bytes(size: float) -> str:
    """Format a number of bytes in GiB, or in MiB if it is less than one GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
