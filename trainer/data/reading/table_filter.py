"""The expressions of an MLTable's `filter`, such as `col("split") == "train" and size > 3`.

Checked against the package mltable 1.7: a comparison with null, with a missing column or between values of
different types is neither true nor false, and such a row is left out.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from trainer.strict_yaml import MAX_DEPTH

Row: TypeAlias = Mapping[str, Any]
"""A row's values by column."""

_Value: TypeAlias = Callable[[Row], Any]

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_STARTS_WITH = ("startswith", "starts_with")
_MAX_LENGTH = 10_000
_TOO_DEEP = f"conditions nested more than {MAX_DEPTH} levels deep"


class Expression:
    """A parsed filter.

    Attributes:
        columns: the columns that it names.
    """

    def __init__(self, text: str) -> None:
        """Parse a filter.

        Raises:
            ValueError: the text is not an expression of the supported kind; says which part.
        """
        self.columns: set[str] = set()
        if len(text) > _MAX_LENGTH:
            raise ValueError(f"more than {_MAX_LENGTH:,} characters")
        try:
            self._evaluate = self._condition(ast.parse(text.strip(), mode="eval").body)
        except SyntaxError as error:
            raise ValueError(f"{error.msg} in {text[:80]!r}") from error
        except (RecursionError, MemoryError) as error:  # of Python's parser
            raise ValueError(_TOO_DEEP) from error

    def matches(self, row: Row) -> bool:
        """Whether the expression is true for a row."""
        return self._evaluate(row) is True

    def _condition(self, node: ast.expr, depth: int = 1) -> _Value:
        """Compile a condition to True, False or, if it is neither, None; evaluation recurses as deep."""
        if depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if isinstance(node, ast.BoolOp):
            parts = [self._condition(part, depth + 1) for part in node.values]
            decisive = isinstance(node.op, ast.Or)
            return lambda row: _combined([part(row) for part in parts], decisive)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            part = self._condition(node.operand, depth + 1)
            return lambda row: None if (value := part(row)) is None else not value
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
            compare = _COMPARISONS[type(node.ops[0])]
            left, right = self._operand(node.left), self._operand(node.comparators[0])
            return lambda row: _compared(compare, left(row), right(row))
        if isinstance(node, ast.Call) and not node.keywords and _name_of(node.func) in _STARTS_WITH:
            arguments = [node.func.value] if isinstance(node.func, ast.Attribute) else []
            arguments += node.args
            if len(arguments) == 2:
                text, start = (self._operand(argument) for argument in arguments)
                return lambda row: _starts_with(text(row), start(row))
        if isinstance(node, ast.Name | ast.Constant | ast.Call):
            value = self._operand(node)
            return lambda row: result if isinstance(result := value(row), bool) else None
        raise ValueError(ast.unparse(node))

    def _operand(self, node: ast.expr) -> _Value:
        """A column or a constant."""
        if isinstance(node, ast.Name):
            return self._column(node.id)
        if isinstance(node, ast.Call) and _name_of(node.func) == "col" and len(node.args) == 1:
            (name,) = node.args
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                return self._column(name.value)
        sign = 1
        constant = node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, constant = -1, node.operand
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str | int | float | None):
            value = constant.value
            if constant is not node:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(ast.unparse(node))
                value = sign * value
            return lambda _: value
        raise ValueError(ast.unparse(node))

    def _column(self, name: str) -> _Value:
        self.columns.add(name)
        return lambda row: row.get(name)


def _name_of(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _combined(values: list[bool | None], decisive: bool) -> bool | None:
    """The values combined by `or` (True is decisive) or `and` (False is)."""
    if decisive in values:
        return decisive
    return None if None in values else not decisive


def _compared(compare: Callable[[Any, Any], bool], left: object, right: object) -> bool | None:
    return compare(left, right) if _kind(left) == _kind(right) != "" else None


def _starts_with(text: object, start: object) -> bool | None:
    return text.startswith(start) if isinstance(text, str) and isinstance(start, str) else None


def _kind(value: object) -> str:
    """The kind of values that a value can be compared with; "" for none."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else ""
