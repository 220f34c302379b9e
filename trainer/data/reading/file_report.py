"""Collects what is wrong with one data file: problems of single lines, and problems that many lines share."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from trainer.data.reading.data_file import DataFile
from trainer.errors import Problem


@dataclass
class _Shared:
    """A problem that `count` lines share; `line` and `got` are those of the first."""

    line: int
    got: str
    count: int = 0


class FileReport:
    """The problems of one data file and the lines they rule out.

    Attributes:
        file: the data file.
        is_readable: False if the file could not be read to its end.
        errors: number of each invalid line → what is wrong with it.
    """

    def __init__(self, file: DataFile) -> None:
        self.file = file
        self.is_readable = True
        self.errors: dict[int, list[str]] = defaultdict(list)
        self._problems: list[tuple[int, Problem]] = []
        self._shared: dict[tuple[str, str, str, bool], _Shared] = {}

    def add_error(self, line: int, field: str, rule: str, got: str = "", hint: str = "") -> None:
        """Add an error of one line, which is then left out."""
        self._problems.append((line, Problem(self._where(line), field, rule, got, hint)))
        self._rule_out(line, field, rule, got)

    def add_shared_error(self, line: int, field: str, rule: str, got: str = "", hint: str = "") -> None:
        """Add an error that many lines may share: reported once, with their number. Each line is left out."""
        self._share(line, field, rule, got, hint, warning=False)
        self._rule_out(line, field, rule, got)

    def add_shared_warning(
        self, line: int, field: str, rule: str, got: str = "", *, leave_out: bool = False
    ) -> None:
        """Add a warning that many lines may share: reported once, with their number.

        Args:
            leave_out: leave the line out nevertheless.
        """
        self._share(line, field, rule, got, "", warning=True)
        if leave_out:
            self._rule_out(line, field, rule, got)

    def set_unreadable(self, line: int, rule: str, got: str, hint: str = "") -> None:
        """Report that the file cannot be read from this line on; 0 stands for the whole file."""
        self.is_readable = False
        where = self._where(line) if line else self.file.name
        self._problems.append((line, Problem(where, "", rule, got, hint)))

    def in_order(self) -> list[Problem]:
        """All problems by line."""
        problems = list(self._problems)
        for (field, rule, hint, warning), shared in self._shared.items():
            text = "; ".join(part for part in (hint, first_of(shared.count)) if part)
            problem = Problem(self._where(shared.line), field, rule, shared.got, text, warning)
            problems.append((shared.line, problem))
        return [problem for _, problem in sorted(problems, key=lambda entry: entry[0])]

    def _share(self, line: int, field: str, rule: str, got: str, hint: str, *, warning: bool) -> None:
        self._shared.setdefault((field, rule, hint, warning), _Shared(line, got)).count += 1

    def _rule_out(self, line: int, field: str, rule: str, got: str) -> None:
        self.errors[line].append(str(Problem("", field, rule, got)))

    def _where(self, line: int) -> str:
        return f"{self.file.name}:{line}"


def first_of(count: int, what: str = "such lines") -> str:
    """A note for a problem that is shown once but occurs `count` times; empty if it occurs once."""
    return f"the first of {count:,} {what}" if count > 1 else ""
