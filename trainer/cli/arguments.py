"""Arguments that several commands share: their types, and what their texts mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token

from trainer.errors import JobError, Problem
from trainer.tasks import Task


def a_task(words: str) -> Parameter:
    """A task's name: the command's own words on it, and the names that there are."""
    return Parameter(help=f"{words} One of {', '.join(Task)}; a job file's names are fine too.")


Datastores = Annotated[
    list[str] | None,
    Parameter(
        name="--datastore",
        help="NAME=DIR_OR_URL: what azureml://…/datastores/NAME/… stands for; may be given several times.",
    ),
]
DataAssets = Annotated[
    list[str] | None,
    Parameter(
        name="--data-asset",
        help="NAME=PATH: where the data lie that a job file calls azureml:NAME:VERSION; NAME:VERSION=PATH "
        "for one version alone; may be given several times.",
    ),
]
Switch = Annotated[bool, Parameter(negative="")]


def whole_number(_: Any, tokens: Sequence[Token]) -> int:
    """cyclopts itself rounds: 1.5 epochs would become 2."""
    value = float(tokens[0].value)
    if not value.is_integer():
        raise ValueError("must be a whole number")
    return int(value)


def whole_number_or_word(kind: Any, tokens: Sequence[Token]) -> int | str:
    """What is no whole number the settings take or refuse, with all that they take."""
    try:
        return whole_number(kind, tokens)
    except (ValueError, OverflowError):
        return tokens[0].value


Count = Annotated[int, Parameter(converter=whole_number)]
DATASTORE = ("the datastore", "--datastore", "NAME=DIR_OR_URL")
DATA_ASSET = ("the data asset", "--data-asset", "NAME=PATH")


def mapping(pairs: list[str] | None, words: tuple[str, str, str] = DATASTORE) -> dict[str, str]:
    """NAME=VALUE pairs of a flag as a mapping.

    Raises:
        JobError: a text has another form.
    """
    what, flag, form = words
    mapping = {}
    for pair in pairs or ():
        name, separator, target = pair.partition("=")
        if not (name and separator and target):
            raise JobError(f"{what} cannot be used:", [Problem(flag, "", f"must be {form}", pair)])
        mapping[name] = target
    return mapping


def gpu_count(text: str) -> int:
    if not text.isdecimal():
        raise JobError(
            "the job cannot be run:", [Problem("--gpus", "", "must be auto or a number", repr(text))]
        )
    return int(text)
