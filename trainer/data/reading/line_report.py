"""What the careful reader finds in one line of a data file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from trainer.data.reading.repeated_keys import RULE as REPEATED_KEY
from trainer.data.reading.schema import LABEL_KEY, Line, show
from trainer.errors import Problem


class Degenerate(NamedTuple):
    """An object that has too few points, or one of its segments; it is left out.

    Attributes:
        position: the object's index in the line; None if the object keeps other segments.
        problem: a warning with an empty `where`.
    """

    position: int | None
    problem: Problem


@dataclass
class LineReport:
    """What `examine_line` finds in one line.

    Attributes:
        line: what can be used of the line, as the fast reader returns it, with coordinates up to a pixel
            outside [0, 1]; None if nothing can.
        problems: its errors, with an empty `where`.
        wrong_objects: indices of the objects with errors; they are not in `line`.
        degenerate: objects and segments without an area, as far as they are not in `line`.
        lenient: warnings of what is taken as meant although the schema has it otherwise.
        unknown_keys: fields without their indices (`label[].pose`), each once with a hint.
        image_url: None unless it is a string.
        size: declared (width, height) in pixels; 0 where undeclared.
        is_json: whether the line is a JSON object.
        lacks_label: whether it lacks the key that the job names as its label's.
        measure: reads the (width, height) in pixels of the image at an image_url; 0 where it cannot.
    """

    line: Line[Any] | None = None
    problems: list[Problem] = field(default_factory=list)
    wrong_objects: set[int] = field(default_factory=set)
    degenerate: list[Degenerate] = field(default_factory=list)
    lenient: list[Problem] = field(default_factory=list)
    unknown_keys: dict[str, str] = field(default_factory=dict)
    image_url: str | None = None
    size: tuple[int, int] = (0, 0)
    is_json: bool = True
    lacks_label: bool = False
    measure: Callable[[str], tuple[int, int]] = lambda _: (0, 0)

    def add(self, name: str, rule: str, got: str = "", hint: str = "") -> None:
        """Add a problem of the field `name`."""
        self.problems.append(Problem("", name, rule, got, hint))

    def side(self, axis: int) -> int:
        """The image's declared width (axis 0) or height (1), else as it is in the image; 0 if unknown."""
        if not all(self.size) and self.image_url is not None:
            declared, measured = self.size, self.measure(self.image_url)
            self.size = (declared[0] or measured[0], declared[1] or measured[1])
            self.measure = lambda _: (0, 0)
        return self.size[axis]

    def rename_label(self, label_key: str) -> None:
        """Change the fields of an examined line that have the label under `label` to those of its own key."""

        def renamed(name: str) -> str:
            is_label = name == LABEL_KEY or name.startswith(f"{LABEL_KEY}[")
            return label_key + name.removeprefix(LABEL_KEY) if is_label else name

        def with_name(problem: Problem) -> Problem:
            is_of_object = problem.rule == REPEATED_KEY  # a key in the line's own words
            return problem if is_of_object else replace(problem, field=renamed(problem.field))

        self.problems = [with_name(problem) for problem in self.problems]
        self.lenient = [with_name(problem) for problem in self.lenient]
        self.degenerate = [Degenerate(index, with_name(problem)) for index, problem in self.degenerate]
        self.unknown_keys = {renamed(key): hint for key, hint in self.unknown_keys.items()}

    def add_value(self, name: str, rule: str, value: object, hint: str = "") -> None:
        """Add a problem whose `got` is a JSON value."""
        self.add(name, rule, show(value), hint)


def has_key(entry: Mapping[str, Any], key: str, known: Sequence[str], path: str, report: LineReport) -> bool:
    """Whether an entry has a key; if not, report that it is missing."""
    if key in entry:
        return True
    similar = [k for k in entry if k not in known and _plain(k) == _plain(key)]
    hint = f"did you mean {similar[0]!r}? keys are case-sensitive" if similar else ""
    others = [k for k in entry if k not in known]
    if not path and key == LABEL_KEY and others and not similar:
        hint = f"if the label is in {' or '.join(map(repr, others))}, name it with --target-column-name"
    report.add(f"{path}.{key}" if path else key, "is missing", "", hint)
    return False


def note_unknown(entry: Mapping[str, Any], known: Sequence[str], prefix: str, report: LineReport) -> None:
    """Note the keys of an entry that the schema does not have."""
    for key in entry:
        if key not in known:
            meant = [each for each in known if each not in entry and _plain(each) == _plain(key)]
            hint = f"did you mean {meant[0]!r}? keys are case-sensitive" if meant else ""
            report.unknown_keys[prefix + key] = hint


def _plain(key: str) -> str:
    return key.lower().replace("_", "")
