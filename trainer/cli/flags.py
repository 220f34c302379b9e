"""Command-line flags derived from the fields of pydantic models: names, types, help texts and headings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, field, make_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter, Token
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer.fields import details, help_text
from trainer.settings import shown

_HEADINGS = (
    *("Job", "Data", "Model", "Schedule", "Optimizer", "Learning rate", "Images", "Hardware", "Sweep"),
    *("Output", "Evaluation", "Scoring", "Limits"),
)


@cache
def heading(name: str) -> Group:
    """The group of flags under a heading; help lists the headings in a fixed order."""
    return Group(name, sort_key=_HEADINGS.index(name))


def flags_of(
    model: type[BaseModel],
    *,
    group: str = "",
    leave_out: Collection[str] = (),
    first: Sequence[str] = (),
    aliases: Callable[[str], Sequence[str]] = lambda _: (),
    note: Callable[[str], str] = lambda _: "",
    default: Callable[[str], str] | None = None,
) -> Any:
    """A dataclass with a flag for each field of a model, None unless the flag is given.

    As the type of a command's parameter it adds all these flags to the command.

    Args:
        group: heading of the fields that state none themselves.
        leave_out: fields without a flag.
        first: fields whose flags help lists before the others.
        aliases: further names of a field.
        note: a sentence to add to a field's help.
        default: a field's default in words; None: the field's own.
    """
    members: list[tuple[str, Any, Any]] = []
    for name in dict.fromkeys((*first, *model.model_fields)):
        if name in leave_out:
            continue
        info = model.model_fields[name]
        extra = details(info)
        kind = int | str if extra.get("takes_words") else _kind(info.annotation)
        parameter = Parameter(
            name=[str(extra.get("flag") or flag(name)), *map(flag, aliases(name))],
            help=help_of(info, note(name), default(name) if default else None),
            group=heading(str(extra.get("group", group))),
            show_default=False,
            converter={int: whole_number, int | str: whole_number_or_word}.get(kind),
        )
        members.append((name, Annotated[kind | None, parameter], field(default=None)))
    flags = make_dataclass(f"{model.__name__}Flags", members, frozen=True)
    flags.__module__ = __name__  # cyclopts takes a class from `types`, where it would be, for a builtin
    return Parameter(name="*")(flags)


def values_of(flags: Any) -> dict[str, Any]:
    """The values of the flags on the command line, by field."""
    return (
        {} if flags is None else {name: value for name, value in asdict(flags).items() if value is not None}
    )


def flag(name: str) -> str:
    """number_of_epochs → --number-of-epochs."""
    return f"--{name.replace('_', '-')}"


def whole_number(_: Any, tokens: Sequence[Token]) -> int:
    """Read a whole number; cyclopts itself would round 1.5 epochs to 2."""
    value = float(tokens[0].value)
    if not value.is_integer():
        raise ValueError("must be a whole number")
    return int(value)


def whole_number_or_word(kind: Any, tokens: Sequence[Token]) -> int | str:
    """Read a whole number, or leave any other text to the check of the model."""
    try:
        return whole_number(kind, tokens)
    except (ValueError, OverflowError):
        return tokens[0].value


def help_of(info: FieldInfo, note: str = "", default: str | None = None) -> str:
    """The help text of a field's flag.

    Args:
        note: a sentence to add.
        default: the default in words; None: the field's own.
    """
    text = help_text(info)
    if form := details(info).get("form"):
        text = f"{form}: {text[:1].lower()}{text[1:]}"
    if get_origin(info.annotation) is Literal:
        text += f" One of {', '.join(map(str, get_args(info.annotation)))}."
    if get_origin(info.annotation) in (tuple, dict):
        text += " May be repeated."
    text = f"{text} {note}".rstrip()
    if default is None and "[default:" not in text:
        value = info.get_default(call_default_factory=True) if not info.is_required() else None
        default = shown(value) if isinstance(value, (int, float, str)) and value is not False else ""
    return f"{text} [default: {default}]" if default else text


def _kind(annotation: Any) -> Any:
    """The type that a flag's text is read as; the model itself reads what is no number, switch or path."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    if len(kinds) > 1 and any(get_origin(kind) is Literal for kind in kinds):
        return int | str  # a number, or a word in its place
    if type(None) in get_args(annotation):
        (annotation,) = kinds
    if get_origin(annotation) in (tuple, dict):
        return list[str]
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0])
    return annotation if annotation in (int, float, bool, str, Path) else str
