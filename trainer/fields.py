"""How models declare fields that become flags, help texts and documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import Field

Value = TypeVar("Value")
Accepted = TypeVar("Accepted")

if TYPE_CHECKING:

    class Parsed(Generic[Value, Accepted]):
        """A field that holds a Value, and whose constructor also takes what can be parsed into one."""

        def __get__(self, instance: object, owner: object = None, /) -> Value: ...

        def __set__(self, instance: object, value: Accepted, /) -> None: ...

else:

    class Parsed:
        """`Parsed[Value, Accepted]` is `Value` for pydantic; type checkers read the class above."""

        def __class_getitem__(cls, types):
            return types[0]


def option(default: Any, description: str, group: str, *, flag: str = "", **constraints: Any) -> Any:
    """An optional field with its help text.

    Args:
        group: the heading under which help and docs list the field.
        flag: its command-line flag if that is not the field's name, such as `--data`.
        constraints: further arguments of `pydantic.Field`; those unknown to it are kept beside the group.
    """
    return Field(
        default, description=description, json_schema_extra={"group": group, "flag": flag}, **constraints
    )
