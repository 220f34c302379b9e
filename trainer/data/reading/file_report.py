"""Collects what is wrong with one data file: problems of single lines, and problems that many lines share."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.data.reading.data_file import DataFile
from trainer.data.reading.skipped import Skipped
from trainer.errors import Problem

_MAX_LINES_NAMED = 5


@dataclass
class _Shared:
    """A problem that `count` lines, objects or values share; the other attributes are those of the first."""

    line: int
    name: str
    got: str
    what: str
    count: int = 0
    lines: list[int] = field(default_factory=list)  # the first few, if they are to be named


@dataclass
class _LeftOut:
    """What is left out of a line: some of its objects, or with None the whole line."""

    reasons: list[str] = field(default_factory=list)
    objects: set[int] | None = field(default_factory=set)
    is_wrong: bool = False


class FileReport:
    """The problems of one data file and what they rule out.

    Attributes:
        file: the data file.
        is_readable: False if the file could not be read to its end.
    """

    def __init__(self, file: DataFile) -> None:
        self.file = file
        self.is_readable = True
        self._problems: list[tuple[int, Problem]] = []
        self._shared: dict[tuple[str, str, str, bool], _Shared] = {}
        self._left_out: dict[int, _LeftOut] = {}

    def add_error(self, line: int, field: str, rule: str, got: str = "", hint: str = "") -> None:
        """Add an error of one line, which is then left out."""
        self._problems.append((line, Problem(self._where(line), field, rule, got, hint)))
        self._rule_out(line, field, rule, got)

    def add_shared_error(
        self,
        line: int,
        field: str,
        rule: str,
        got: str = "",
        hint: str = "",
        *,
        objects: set[int] | None = None,
    ) -> None:
        """Add an error that many lines may share: reported once, with their number.

        Args:
            objects: indices of the objects to leave out; None for the whole line.
        """
        self._share(line, field, rule, got, hint, warning=False)
        self._rule_out(line, field, rule, got, objects=objects)

    def add_shared_warning(
        self,
        line: int,
        field: str,
        rule: str,
        got: str = "",
        hint: str = "",
        *,
        leave_out: bool = False,
        what: str = "such lines",
        count: int = 1,
    ) -> None:
        """Add a warning that many lines may share: reported once, with their number.

        Args:
            leave_out: leave the line out nevertheless.
            what: what is counted, if not lines.
            count: how many of them there are.
        """
        self._share(line, field, rule, got, hint, warning=True, what=what).count += count - 1
        if leave_out:
            self._rule_out(line, field, rule, got, is_wrong=False)

    def add_degenerate(
        self, line: int, field: str, rule: str, got: str, hint: str, index: int | None = None
    ) -> None:
        """Add a warning of an object that is left out because it has no area, reported once for all.

        Args:
            field: the object or one of its segments.
            index: the object's index in its line; None if only the segment is left out.
        """
        what = "such segments" if index is None else "such objects"
        shared = self._share(line, field, rule, got, hint, warning=True, what=what, key="")
        if line not in shared.lines and len(shared.lines) < _MAX_LINES_NAMED:
            shared.lines.append(line)
        objects = set() if index is None else {index}
        self._rule_out(line, field, rule, got, objects=objects, is_wrong=False)

    def keep_rest(self, line: int, objects: set[int]) -> None:
        """Leave out only these objects of a line with errors, not the whole line."""
        self._left_out[line].objects = objects

    def leave_out_whole(self, line: int) -> None:
        """Leave out a line of which some objects are left out."""
        self._left_out[line].objects = None

    def is_wrong(self, line: int) -> bool:
        """Whether a line has an error."""
        return line in self._left_out and self._left_out[line].is_wrong

    def left_out(self) -> list[tuple[int, set[int] | None]]:
        """Each line that lacks something, with the indices of the objects left out; None if all of it is."""
        return [(line, left_out.objects) for line, left_out in self._left_out.items()]

    def set_unreadable(self, line: int, rule: str, got: str, hint: str = "") -> None:
        """Report that the file cannot be read from this line on; 0 stands for the whole file."""
        self.is_readable = False
        where = self._where(line) if line else self.file.name
        self._problems.append((line, Problem(where, "", rule, got, hint)))

    def in_order(self) -> list[Problem]:
        """All problems by line."""
        problems = list(self._problems)
        for (_, rule, hint, warning), shared in self._shared.items():
            count = first_of(shared.count, shared.what)
            if len(shared.lines) > 1:
                count += f", the next in line{'s' if len(shared.lines) > 2 else ''} "
                count += ", ".join(map(str, shared.lines[1:]))
            text = "; ".join(part for part in (hint, count) if part)
            problem = Problem(self._where(shared.line), shared.name, rule, shared.got, text, warning)
            problems.append((shared.line, problem))
        return [problem for _, problem in sorted(problems, key=lambda entry: entry[0])]

    def skipped(self) -> list[Skipped]:
        """What is left out, by line."""
        return [
            Skipped(
                self.file,
                line,
                tuple(left_out.reasons),
                None if left_out.objects is None else tuple(sorted(left_out.objects)),
            )
            for line, left_out in sorted(self._left_out.items())
        ]

    def _share(
        self,
        line: int,
        field: str,
        rule: str,
        got: str,
        hint: str,
        *,
        warning: bool,
        what: str = "such lines",
        key: str | None = None,
    ) -> _Shared:
        """Count a problem; `key` replaces the field in what tells problems apart."""
        entry = (field if key is None else key, rule, hint, warning)
        shared = self._shared.setdefault(entry, _Shared(line, field, got, what))
        shared.count += 1
        return shared

    def _rule_out(
        self,
        line: int,
        field: str,
        rule: str,
        got: str,
        *,
        objects: set[int] | None = None,
        is_wrong: bool = True,
    ) -> None:
        left_out = self._left_out.setdefault(line, _LeftOut())
        left_out.reasons.append(str(Problem("", field, rule, got)))
        left_out.is_wrong |= is_wrong
        if objects is None or left_out.objects is None:
            left_out.objects = None
        else:
            left_out.objects |= objects

    def _where(self, line: int) -> str:
        return f"{self.file.name}:{line}"


def first_of(count: int, what: str = "such lines") -> str:
    """A note for a problem that is shown once but occurs `count` times; empty if it occurs once."""
    return f"the first of {count:,} {what}" if count > 1 else ""
