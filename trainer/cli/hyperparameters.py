"""A flag for every hyperparameter, made from the settings themselves."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter

from trainer.cli.arguments import whole_number, whole_number_or_word


def _hyperparameter_flags() -> type:
    """One flag for each field of Settings, unset unless given, under its group's heading."""
    from trainer import settings
    from trainer.models import defaults
    from trainer.settings import Settings

    groups: dict[str, Group] = {}
    made = []
    for name, info in Settings.model_fields.items():
        heading = settings.group_of(name)
        group = groups.setdefault(heading, Group(heading, sort_key=10 + len(groups)))
        text = info.description or ""
        if get_origin(info.annotation) is Literal:
            text += f" One of {', '.join(map(str, get_args(info.annotation)))}."
        if models := defaults.models_taking(name):
            text += f" Only {models}."
        text += f" [default: {defaults.default_in_words(name)}]"
        kind = _flag_type(info.annotation)
        names = [f"--{n.replace('_', '-')}" for n in (name, *settings.aliases_of(name))]
        converter = {int: whole_number, int | str: whole_number_or_word}.get(kind)
        parameter = Parameter(name=names, help=text, group=group, show_default=False, converter=converter)
        made.append((name, Annotated[kind | None, parameter], field(default=None)))
    made_class = make_dataclass("Hyperparameters", made, frozen=True)
    made_class.__module__ = __name__  # cyclopts takes a class from `types`, where it would be, for a builtin
    return Parameter(name="*")(made_class)


def _flag_type(annotation: Any) -> Any:
    """What a flag's text is read as; anything richer than a number or choice is left to the settings."""
    if type(None) in get_args(annotation):
        (annotation,) = (kind for kind in get_args(annotation) if kind is not type(None))
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0])
    if any(get_origin(kind) is Literal for kind in get_args(annotation)):
        return int | str  # a number, or a word in its place
    return annotation if annotation in (int, float, bool, str) else str


Hyperparameters: Any = _hyperparameter_flags()
