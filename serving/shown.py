"""How a request's values are shown in the errors about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LARGEST_INTEGER = 2**31 - 1


def shown(value: Any, limit: int = 60) -> str:
    """A value as an error may show it: short, and nothing that breaks a log or a JSON answer."""
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}" if len(value) > 3 else f"[{', '.join(map(_shown, value))}]"
    return _shown(value, limit)


def _shown(value: Any, limit: int = 20) -> str:
    if isinstance(value, (str, bytes)):
        return ascii(value[:limit]) + ("…" if len(value) > limit else "")
    if isinstance(value, Mapping):
        return "an object"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return "NaN, a missing value" if math.isnan(value) else repr(value)
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return "a very large number"
    return str(value) if isinstance(value, int) else f"a {type(value).__name__}"
