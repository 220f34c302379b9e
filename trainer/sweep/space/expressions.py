"""Reads one hyperparameter of a search space: in Azure's YAML form, its string form, or as a fixed value."""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from trainer.errors import JobError, Problem, did_you_mean
from trainer.sweep.space.distributions import TYPES, Choice, Distribution, LogUniform, Scalar, exponents_of

MAX_VALUES = 10_000
"""Most values of a choice."""

_CALL = re.compile(r"\s*[A-Za-z_]\w*\s*\(.*\)\s*", re.DOTALL)
_START = re.compile(rf"\s*({'|'.join(TYPES)})\s*\(", re.IGNORECASE)
_NO_NUMBER = re.compile(r"[^\d.eE+-]")
_NAMED = {"true": True, "false": False, "null": None, "none": None}
_SUMMARY = "the search space cannot be used:"
_EXAMPLE = "write it as choice('a', 'b') or uniform(0.001, 0.01)"


def read(value: Any, where: str, field: str, logbase: float = math.e) -> Distribution | Scalar:
    """Read a hyperparameter's distribution, or its value if it is fixed.

    Args:
        value: `{type: uniform, min_value: 0.1, max_value: 0.2}`, `"uniform(0.1, 0.2)"` or a scalar. Types
            may be spelled like the SDK's classes (`QUniform`).
        where: the file, for errors.
        field: the field in the file, such as `search_space[0].learning_rate`.
        logbase: base of the exponents that bound loguniform and qloguniform.

    Raises:
        JobError: everything that is wrong with the value.
    """
    try:
        if isinstance(value, Mapping):
            return _of_mapping(value, logbase)
        if isinstance(value, str) and (_CALL.fullmatch(value) or _START.match(value)):
            return _of_text(value, logbase)
        return _scalar(value)
    except JobError as error:
        problems = [replace(problem, where=where, field=field) for problem in error.problems]
        raise JobError(error.summary, problems) from error


def as_number(value: Any) -> int | float | None:
    """The value as a finite number, even if YAML read it as text (1e-4, for lack of a point); else None."""
    if isinstance(value, str) and not _NO_NUMBER.search(value):
        try:
            value = float(value)
        except ValueError:
            return None
        value = int(value) if value.is_integer() else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Whole numbers can exceed the range of floats, but no setting accepts those.
    return value if abs(value) < 1e300 else None


def _similar(name: str, known: Iterable[str]) -> str:
    return did_you_mean(name, known, otherwise=f"there are {', '.join(known)}", most=2)


def _unreadable(rule: str, got: Any = "", hint: str = "") -> JobError:
    """The error of a rule that is broken; `read` adds the location."""
    return JobError(_SUMMARY, [Problem("", "", rule, repr(got) if got != "" else "", hint)])


def _scalar(value: Any) -> Scalar:
    if isinstance(value, (list, tuple, set, range)):
        hint = "for a choice among them write {type: choice, values: [...]}"
        raise _unreadable("must be one value or an expression", value, hint)
    if value is not None and not isinstance(value, (str, int, float)):
        raise _unreadable("must be text, a number or a boolean", value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _unreadable("must be a finite number", value)
    return value


def _of_mapping(content: Mapping[Any, Any], logbase: float) -> Distribution:
    if "type" not in content:
        raise _unreadable("needs the key type", dict(content), f"there are {', '.join(TYPES)}")
    cls = _type(str(content["type"]))
    return _build(cls, {key: content[key] for key in content if key != "type"}, logbase)


def _of_text(text: str, logbase: float) -> Distribution:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns about code that would be suspicious in a program
            call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unreadable("cannot be read as an expression", text, _EXAMPLE) from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise _unreadable("cannot be read as an expression", text, _EXAMPLE)
    cls = _type(call.func.id)
    values = [_literal(argument) for argument in call.args]
    if cls is Choice and values:
        values = [values[0] if len(values) == 1 and isinstance(values[0], list) else values]
    if len(values) > len(cls.parameters()):
        raise _unreadable(f"{cls.type_name()} takes only {', '.join(cls.parameters())}", text)
    parameters = dict(zip(cls.parameters(), values, strict=False))
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in parameters:
            raise _unreadable("cannot be read as an expression", text, _EXAMPLE)
        parameters[keyword.arg] = _literal(keyword.value)
    if cls is Choice:
        parameters.setdefault("values", [])
    return _build(cls, parameters, logbase)


def _literal(node: ast.expr) -> Any:
    """The value of a part of an expression; a name without quotes is text."""
    match node:
        case ast.Constant(value=int() as value) if value > 1e300:  # may have too many digits to be shown
            raise _unreadable("must stay within the range of floating-point numbers")
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.UnaryOp(op=ast.UAdd(), operand=ast.Constant(value=int() | float() as value)):
            return +value
        case ast.Name(id=name):
            return _NAMED.get(name.lower(), name)
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_literal(part) for part in parts]
        case ast.Call(func=ast.Name(id="range"), args=parts, keywords=[]):
            try:
                return list(range(*map(_literal, parts))[: MAX_VALUES + 1])
            except (TypeError, ValueError) as error:
                raise _unreadable("cannot be read as a range", ast.unparse(node), str(error)) from error
    raise _unreadable("must be a value", ast.unparse(node), "put text in quotes")


def _type(name: str) -> type[Distribution]:
    cls = TYPES.get(name.lower())
    if cls is None:
        raise _unreadable("must be the type of an expression", name, _similar(name, TYPES))
    return cls


def _build(cls: type[Distribution], parameters: Mapping[Any, Any], logbase: float) -> Distribution:
    name = cls.type_name()
    problems = [
        Problem("", "", f"{name} has no key {key}", hint=_similar(str(key), cls.parameters()))
        for key in parameters
        if key not in cls.parameters()
    ]
    values: dict[str, Any] = {}
    for key in cls.parameters():
        try:
            if parameters.get(key) is None:
                raise _unreadable(f"{name} needs {key}")
            values[key] = _options(parameters[key]) if key == "values" else _parameter(key, parameters[key])
        except JobError as error:
            problems += error.problems
    if not problems and "min_value" in values and values["min_value"] > values["max_value"]:
        got = f"{parameters['min_value']} and {parameters['max_value']}"
        problems.append(Problem("", "", "min_value must not be over max_value", got))
    if problems:
        raise JobError(_SUMMARY, problems)
    if issubclass(cls, LogUniform):
        values["base"] = logbase
    made = cls(**values)
    try:
        reach = () if cls is Choice else made.bounds
        vanishes = isinstance(made, LogUniform) and made.interval[0] == 0  # no logarithm leads there
    except OverflowError:
        reach, vanishes = (None,), False
    if vanishes or not all(as_number(bound) is not None for bound in reach):
        rule = "must stay within the range of floating-point numbers"
        base = "e" if logbase == math.e else f"{logbase:g}"
        hint = ""
        if isinstance(made, LogUniform):
            hint = f"its bounds are exponents of {base}"
            low, high = made.min_value, made.max_value
            if low >= 0 and logbase > 1:
                meant = exponents_of({"min_value": low, "max_value": high}, logbase)
                hint += f": for {low:g} to {high:g} write {', '.join(meant)}"
        raise _unreadable(rule, dict(parameters), hint)
    return made


def _parameter(key: str, value: Any) -> int | float:
    """A bound, mean, deviation, step or limit."""
    number = as_number(value)
    if number is None:
        raise _unreadable(f"{key} must be a number", value)
    if key == "upper" and (number < 1 or number != int(number)):
        raise _unreadable("upper must be a whole number of at least 1", value)
    if key in ("q", "sigma") and number <= 0:
        raise _unreadable(f"{key} must be over 0", value)
    return int(number) if key == "upper" else number


def _options(values: Any) -> tuple[Scalar, ...]:
    if not isinstance(values, (list, tuple, range)):
        raise _unreadable("values must be a list", values)
    if not values:
        raise _unreadable("a choice needs at least one value")
    if len(values) > MAX_VALUES:
        raise _unreadable(f"a choice must have at most {MAX_VALUES} values", len(values))
    options = tuple(map(_scalar, values))
    seen: set[tuple[type, Scalar]] = set()
    for option in options:
        if (type(option), option) in seen:
            raise _unreadable("a choice must not repeat a value", option)
        seen.add((type(option), option))
    return options
