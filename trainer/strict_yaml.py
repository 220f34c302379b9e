"""Reads YAML and JSON files that anyone may have written: job files, MLTables and a run's own files."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

import yaml

from trainer.errors import Problem, ProblemsError

MAX_DEPTH = 64
"""Most levels of nesting; Python's recursion, and that of whatever walks the content, ends far beyond."""
MAX_ALIASED = 10_000
"""Most values that the aliases of a file may stand for. Aliases of aliases multiply without a limit."""

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SUMMARY = "the file cannot be read:"


def load(content: bytes | str, where: str) -> Any:
    """Parse a YAML document.

    Args:
        content: the file's content; bytes are UTF-8, or UTF-16 with a byte order mark.
        where: the file, for errors.

    Raises:
        ProblemsError: it is not YAML, repeats a key, or nests or multiplies its values beyond all use. The
            problem names the line.
    """
    return _parse(content, where)[0]


Lines = dict[tuple[str | int, ...], int]
"""Lines of a document's values, counted from 1, by the keys and indices that lead to them."""


def load_with_lines(content: bytes | str, where: str) -> tuple[Any, Lines]:
    """Do what `load` does, and return the line of every value too; that of a mapping's value is its key's."""
    value, node = _parse(content, where)
    lines: Lines = {}
    if node is not None:
        _note_lines(node, node.start_mark.line, (), lines)
    return value, lines


def _note_lines(node: yaml.Node, line: int, path: tuple[str | int, ...], lines: Lines) -> None:
    lines[path] = line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _note_lines(value, key.start_mark.line, (*path, str(key.value)), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, value.start_mark.line, (*path, index), lines)


def _parse(content: bytes | str, where: str) -> tuple[Any, yaml.Node | None]:
    loader = _Loader(_text(content, where), where)
    try:
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.problem, error.context) if part)
        raise _error(where, mark.line + 1 if mark else None, f"must be YAML: {reason}") from error
    except (ValueError, OverflowError) as error:  # "\U99999999", or a version of thousands of digits
        raise _error(where, loader.line + 1, f"must be YAML: {error}") from error
    finally:
        loader.dispose()


def load_json(content: bytes | str, where: str) -> Any:
    """Parse a JSON document by the same rules as `load`.

    Raises:
        ProblemsError: it is not JSON, repeats a key, or is nested too deeply. The problem names the line.
    """
    text = _text(content, where)
    if (line := _too_deep_line(text)) is not None:
        raise _error(where, line, f"must not nest values more than {MAX_DEPTH} levels deep")
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        reason = f"{error.msg[:1].lower()}{error.msg[1:]} in column {error.colno}"
        raise _error(where, error.lineno, f"must be JSON: {reason}") from error
    except _RepeatedKeyError as error:
        name, line = _repeated_key(text)
        raise _error(where, line, f"must be JSON: duplicate key {name!r}", "keep one of them") from error
    except ValueError as error:
        raise _error(where, None, f"must be JSON: {error}") from error


def _text(content: bytes | str, where: str) -> str:
    if isinstance(content, str):
        return content
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1 if encoding != "utf-16" else None
        raise _error(where, line, f"must be text in UTF-8, but {error.reason}", "save it as UTF-8") from error


def _error(where: str, line: int | None, rule: str, hint: str = "") -> ProblemsError:
    place = where if line is None else f"{where}:{line}"
    return ProblemsError(_SUMMARY, [Problem(place, "", rule, hint=hint)])


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, of which YAML would silently keep the last, and values that multiply."""

    def __init__(self, text: str, where: str) -> None:
        try:
            super().__init__(text)
        except yaml.reader.ReaderError as error:  # a character that YAML does not allow
            line = text.count("\n", 0, error.position) + 1
            raise _error(where, line, f"must be YAML: {' '.join(str(error).split())}") from error
        self._where = where
        self._depth = 0
        self._values = 0  # composed so far, those that aliases stand for included
        self._aliased = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        before = self._values
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._rejected(f"must not nest values more than {MAX_DEPTH} levels deep", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self._values += 1
            if node is not None:
                self._sizes[node] = self._values - before
            if isinstance(node, yaml.MappingNode):
                self._check_keys(node)
            return node
        size = self._sizes.get(node) if node is not None else None
        if size is None:  # the value of its anchor is not complete yet
            raise self._rejected(
                f"the alias *{event.anchor} must not be inside its own value", event.start_mark
            )
        self._values += size
        self._aliased += size
        if self._aliased > MAX_ALIASED:
            raise self._rejected(
                f"aliases must not stand for more than {MAX_ALIASED} values", event.start_mark
            )
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int):
                str(value)  # an error for thousands of digits, which a message could not show
            return value
        except (ValueError, OverflowError) as error:  # 2024-13-01
            reason = str(error)
        except (LookupError, AttributeError):  # !!bool x
            reason = f"{node.value!r} is no {node.tag.rpartition(':')[2]}"
        raise self._rejected(f"must be a value that YAML allows: {reason}", node.start_mark)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise self._rejected(f"duplicate key {key.value!r}", key.start_mark, "keep one of them")
                seen.add(key.value)

    def _rejected(self, rule: str, mark: Any, hint: str = "") -> ProblemsError:
        return _error(self._where, mark.line + 1, rule, hint)


_COLON = re.compile(r"\s*:")
_JSON_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)
"""Texts, which hide brackets, and brackets. A text without an end takes all that follows: looking for its end
again from every quotation mark in it would take time that grows with the square of its length."""


def _too_deep_line(text: str) -> int | None:
    """The line of the first JSON value that is nested too deeply; None if there is none."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return None
    depth = 0
    for match in _JSON_BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > MAX_DEPTH:
            return text.count("\n", 0, match.start()) + 1
    return None


def _repeated_key(text: str) -> tuple[str, int]:
    """The first key that its object has already, and its line; the text is JSON up to there."""
    keys: list[set[str]] = [set()]  # of each value around
    for match in _JSON_BRACKETS.finditer(text):
        token = match[0]
        if token in "[{":
            keys.append(set())
        elif token in "]}":
            keys.pop()
        elif _COLON.match(text, match.end()):
            name = json.loads(token)
            if name in keys[-1]:
                return name, text.count("\n", 0, match.start()) + 1
            keys[-1].add(name)
    raise AssertionError("a key is repeated")


class _RepeatedKeyError(ValueError):
    """An object has a key twice."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _RepeatedKeyError
    return content
