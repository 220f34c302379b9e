"""The callbacks that a job names by import path."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from operator import attrgetter

from lightning import Callback

from trainer.errors import JobError, Problem, did_you_mean
from trainer.job.callback_path import CallbackPath, parse
from trainer.job.job import Job

_HEADLINE = "the job cannot be run:"


def check_callbacks(job: Job) -> None:
    """Check that a job's callbacks can be imported and called, without making them.

    Raises:
        JobError: all problems.
    """
    problems: list[Problem] = []
    for text in job.callbacks:
        try:
            _import(text)
        except JobError as error:
            problems += error.problems
    if problems:
        raise JobError(_HEADLINE, problems)


def make_callbacks(job: Job) -> Sequence[Callback]:
    """Make the job's callbacks, in its order.

    Raises:
        JobError: one cannot be imported, or raises an error when it is made.
    """
    made = []
    for text in job.callbacks:
        kind, path = _import(text)
        try:
            made.append(kind(*path.arguments, **path.options))
        except Exception as error:
            raise _error(text, f"raises {type(error).__name__}: {error}") from error
    return made


def _import(text: str) -> tuple[type[Callback], CallbackPath]:
    path = parse(text)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # `python -m` has it, an installed command does not
    try:
        module = importlib.import_module(path.module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path.module}.".startswith(f"{error.name}."):
            raise _error(text, f"cannot be imported: {error}") from error
        hint = f"put it into {os.getcwd()}, install it, or add its directory to PYTHONPATH"
        raise _error(text, f"there is no module {error.name!r}", hint) from error
    except Exception as error:
        raise _error(text, f"cannot be imported: {type(error).__name__}: {error}") from error
    try:
        kind = attrgetter(path.name)(module)
    except AttributeError as error:
        hint = did_you_mean(path.name, [name for name in vars(module) if _is_callback(vars(module)[name])])
        raise _error(text, f"{path.module} has no {path.name!r}", hint) from error
    if not _is_callback(kind):
        raise _error(text, "is not a subclass of lightning.Callback")
    try:
        inspect.signature(kind).bind(*path.arguments, **path.options)
    except TypeError as error:
        call = f"{path.name}{inspect.signature(kind)}"
        raise _error(text, f"does not fit its arguments: {error}", f"it is {call}") from error
    return kind, path


def _is_callback(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Callback)


def _error(text: str, rule: str, hint: str = "") -> JobError:
    return JobError(_HEADLINE, [Problem("", "callbacks", f"{text}: {rule}", hint=hint)])
