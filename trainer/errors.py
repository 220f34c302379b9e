"""The errors that a user can cause. Each states the rule, what it got, where, and the next step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class TrainerError(Exception):
    """Root of all errors caused by a user rather than a bug; the commands print them without a traceback."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a user's input.

    Attributes:
        where: `file:line`, a flag, or a row of a request.
        field: key inside it, such as `label[2].bottomX`; "" for the whole.
        rule: what must hold.
        got: what was found instead; "" if there is nothing to show.
        hint: the next step, if one is likely to help.
        warning: whether the input can be used despite the problem.
    """

    where: str
    field: str
    rule: str
    got: str = ""
    hint: str = ""
    warning: bool = False

    def __str__(self) -> str:
        text = f"{self.where}: " if self.where else ""
        text += f"{self.field}: " if self.field else ""
        text += self.rule
        text += f", got {self.got}" if self.got else ""
        text += f"; {self.hint}" if self.hint else ""
        return f"warning: {text}" if self.warning else text


class ProblemsError(TrainerError):
    """All problems of one input, reported at once.

    Attributes:
        problems: in the order of the input; at least one.
    """

    def __init__(self, summary: str, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join([summary, *(f"  {problem}" for problem in problems)]))
        self.summary = summary
        self.problems = tuple(problems)


def problems_of(error: ValidationError, where: str = "") -> list[Problem]:
    """Convert a ValidationError of pydantic's: one Problem per error, with the field's dotted path.

    Args:
        where: origin of the values, such as a file.
    """
    return [problem_of(item, where) for item in error.errors()]


def problem_of(item: Mapping[str, Any], where: str = "", field: str | None = None) -> Problem:
    """Convert one error of pydantic's.

    Args:
        item: an entry of `ValidationError.errors()`.
        field: replaces the error's own path.
    """
    field = ".".join(map(str, item["loc"])) if field is None else field
    message = str(item["msg"]).removeprefix("Value error, ")
    # Our own validators state the value in their message, a missing field has none, and that of JSON is its
    # whole text.
    shows_value = item["type"] not in ("value_error", "missing", "json_invalid")
    return Problem(
        where, field, message[:1].lower() + message[1:], repr(item["input"]) if shows_value else ""
    )


def did_you_mean(
    name: str, known: Iterable[str], *, otherwise: str = "", most: int = 3, cutoff: float = 0.5
) -> str:
    """A hint with the known names closest to a mistyped one.

    Args:
        otherwise: the hint if no name is close.
        most: maximum number of names in the hint.
        cutoff: similarity, in [0, 1], from which a name is close.
    """
    import difflib

    close = difflib.get_close_matches(name.lower(), list(known), n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(close)}?" if close else otherwise


class DataError(ProblemsError):
    """Training or validation data that violate the data schema."""


class JobError(ProblemsError):
    """A key, flag or setting of a job that is unknown, misplaced or out of range."""


class WeightsError(TrainerError):
    """Weights that are missing, damaged or made for another model."""


class RunError(TrainerError):
    """A run directory or model directory that is missing, taken or incomplete."""


class TrainingError(TrainerError):
    """A training run that cannot continue, such as one whose loss diverged."""


class BrokenOffError(TrainingError):
    """A training run that ended for a reason that may not recur, such as the death of a process."""


class FullDiskError(BrokenOffError):
    """A run that could not write a file because the disk or the quota is full."""


class NoMemoryError(BrokenOffError):
    """A training run that ran out of memory; it may succeed with smaller micro-batches."""


class TrackingError(TrainerError):
    """A tracking server that does not answer or rejects what it is sent."""


class RequestError(TrainerError):
    """A scoring request that violates the documented form.

    Attributes:
        row: index of the wrong row in the request's data; None if the request as a whole is wrong.
        status: HTTP status of the answer, 400 to 499.
    """

    def __init__(self, reason: str, *, row: int | None = None, status: int = 400) -> None:
        super().__init__(reason if row is None else f"row {row}: {reason}")
        self.reason = reason
        self.row = row
        self.status = status
