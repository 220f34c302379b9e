"""A callback of the user's, named by the path it is imported from: `my_package.callbacks:Freeze(epochs=3)`.

Reading a name runs no code: arguments are literals.
"""

from __future__ import annotations

import ast
import os
import sys
from dataclasses import dataclass, field
from typing import Any

_FORM = "must be MODULE:CLASS or MODULE:CLASS(argument=value, …) with literal values"


@dataclass(frozen=True)
class CallbackPath:
    """What a name says.

    Attributes:
        module: dotted name.
        name: of the class in the module, dotted if it is in another class.
        arguments, options: what the class is called with, by position and by name.
    """

    module: str
    name: str
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def parse(text: str) -> CallbackPath:
    """Read a name.

    Raises:
        ValueError: it has another form.
    """
    module, _, rest = text.strip().partition(":")
    try:
        called = ast.parse(rest.strip(), mode="eval").body
        arguments: list[Any] = []
        options: dict[str, Any] = {}
        if isinstance(called, ast.Call):
            arguments = [ast.literal_eval(value) for value in called.args]
            options = {str(word.arg): ast.literal_eval(word.value) for word in called.keywords}
            has_stars = any(word.arg is None for word in called.keywords)
            called = called.func
        else:
            has_stars = False
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{_FORM}, got {text!r}") from error
    name = ast.unparse(called)
    if has_stars or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise ValueError(f"{_FORM}, got {text!r}")
    return CallbackPath(module, name, tuple(arguments), options)


def search_path() -> dict[str, str]:
    """The environment variable by which another process finds the modules next to this one's script."""
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    of_script = sys.path[0] if sys.path else ""
    # An installed command is next to the interpreter.
    if of_script not in ("", os.path.dirname(sys.executable), *places):
        places.append(of_script)
    return {"PYTHONPATH": os.pathsep.join(places)} if places else {}
