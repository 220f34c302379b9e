"""How pydantic models declare fields from which flags, help and documentation derive."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import Field
from pydantic.fields import FieldInfo

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


def option(
    default: Any,
    group: str,
    *,
    aliases: tuple[str, ...] = (),
    flag: str = "",
    form: str = "",
    takes_words: bool = False,
    **more: Any,
) -> Any:
    """An optional field of a model that takes help texts from the docstrings below its fields.

    The first sentence of such a docstring is the short help; `[default: …]` at its end describes a default
    that depends on something else.

    Args:
        group: heading under which help lists the field.
        aliases: older names of the field.
        flag: command-line flag if it is not the field's name, such as `--data`.
        form: what the flag takes if it is no plain value, such as `NAME=PATH`.
        takes_words: whether the flag also takes a text that is no number, such as a duration.
        more: further arguments of `pydantic.Field`, such as `gt`.
    """
    extra: dict[str, Any] = {"group": group, "aliases": list(aliases), "flag": flag, "form": form}
    extra["takes_words"] = takes_words
    return Field(default, json_schema_extra=extra, **more)


def enum_member(value: Any) -> Any:
    """Strip the class from a member of an enumeration as Azure's SDK writes it: LogTrainingMetrics.ENABLE."""
    return re.sub(r"^[A-Z][A-Za-z]*\.(?=[A-Z][A-Z0-9_]*$)", "", value) if isinstance(value, str) else value


def snake_case(name: str) -> str:
    """Rewrite a name of the REST form: learningRate → learning_rate, stepLRGamma → step_lr_gamma."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return name.replace("-", "_").lower()


def camel_case(name: str) -> str:
    """Rewrite a name as the REST form has it: learning_rate → learningRate. `snake_case` reads it again."""
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def help_text(info: FieldInfo) -> str:
    """The help text of a field, on one line."""
    return " ".join((info.description or "").split())


def details(info: FieldInfo) -> dict[str, Any]:
    """What `option` states about a field beyond pydantic's own attributes: group, aliases, flag and form."""
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
