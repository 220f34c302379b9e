"""Words for values and for the ranges of parameters, in error messages about requests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_INTEGER = 2**31 - 1


def shown(value: Any, limit: int = 60) -> str:
    """A value for an error message: short, and safe in logs and JSON."""
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
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return "a very large number"
    return str(value) if isinstance(value, int) else f"a {type(value).__name__}"


def range_in_words(schema: Mapping[str, Any]) -> str:
    """A parameter's type and range from its JSON schema, such as `a number in [0, 1]`."""
    if schema["type"] == "boolean":
        return "true or false"
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    kind = "a whole number" if schema["type"] == "integer" else "a number"
    if "exclusiveMinimum" in schema:
        return f"{kind} over {schema['exclusiveMinimum']}"
    if "exclusiveMaximum" in schema:
        return f"{kind} in [{schema['minimum']}, {schema['exclusiveMaximum']})"
    if "maximum" in schema:
        return f"{kind} in [{schema['minimum']}, {schema['maximum']}]"
    return f"{kind} of at least {schema['minimum']}"
