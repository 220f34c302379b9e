from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from trainer.errors import Problem, ProblemsError
from trainer.strict_yaml import MAX_ALIASED, MAX_DEPTH, load, load_json


def problem_of(content: bytes | str, read: Callable[..., Any] = load) -> Problem:
    started = time.perf_counter()
    with pytest.raises(ProblemsError) as caught:
        read(content, "job.yml")
    assert time.perf_counter() - started < 1
    (problem,) = caught.value.problems
    return problem


def doubling(levels: int, first: str, each: str) -> str:
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{level}: &a{level} {each.format(f'*a{level - 1}')}" for level in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (doubling(12, "[1, 1, 1, 1, 1, 1, 1, 1, 1]", "[{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]"), 5),
        (doubling(40, "[x, x]", "[{0}, {0}]"), 14),
        (doubling(40, "{x: 1, y: 1}", "{{p: {0}, q: {0}}}"), 13),
        (doubling(40, "{x: 1}", "{{<<: [{0}, {0}]}}"), 13),
        (doubling(40, "{x: 1}", "{{<<: {0}, x: {0}}}"), 13),
        (doubling(40, "[x]", "\n- {0}\n- {0}"), 34),
    ],
    ids=["nines", "lists", "maps", "merged lists", "merged maps", "blocks"],
)
def test_multiplying_aliases_are_rejected_with_their_line(content: str, line: int) -> None:
    problem = problem_of(content)
    assert str(MAX_ALIASED) in problem.rule
    assert problem.where.startswith("job.yml:")
    assert abs(int(problem.where.rpartition(":")[2]) - line) <= 2


@pytest.mark.parametrize("content", ["a: &a [1, *a]", "a: &a {b: *a}", "&a {<<: *a}"])
def test_alias_inside_its_own_value_is_rejected(content: str) -> None:
    problem = problem_of(content)
    assert problem.where == "job.yml:1"
    assert "*a must not be inside its own value" in problem.rule


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("paths:\n " + "[" * 100_000, 2),
        ("{a: " * 100_000, 1),
        ("- " * 3000 + "x", 1),
        ("? " * 3000 + "x", 1),
        ("\n".join(" " * level + "a:" for level in range(500)), MAX_DEPTH),
    ],
    ids=["flow lists", "flow maps", "lists", "keys", "maps"],
)
def test_deep_yaml_is_rejected_with_its_line(content: str, line: int) -> None:
    problem = problem_of(content)
    assert f"more than {MAX_DEPTH} levels" in problem.rule
    assert abs(int(problem.where.rpartition(":")[2]) - line) <= 1


@pytest.mark.parametrize(
    "content", ['{"a":\n' + "[" * 100_000, '\n{"a": ' * 1000 + "1" + "}" * 1000], ids=["lists", "maps"]
)
def test_deep_json_is_rejected_with_its_line(content: str) -> None:
    problem = problem_of(content, load_json)
    assert f"more than {MAX_DEPTH} levels" in problem.rule
    assert problem.where in ("job.yml:2", f"job.yml:{MAX_DEPTH + 2}")


def test_json_with_a_text_without_end_is_rejected_at_once() -> None:
    content = "[" * MAX_DEPTH + "{" + '"' + '\\"' * 200_000
    assert f"more than {MAX_DEPTH} levels" in problem_of(content, load_json).rule
    problem = problem_of("[1]" * (MAX_DEPTH + 1) + '"' + '\\"' * 200_000, load_json)
    assert "must be JSON" in problem.rule


@pytest.mark.parametrize(
    ("content", "where", "said"),
    [
        ("a: 1\nb: [", "job.yml:2", "must be YAML: expected the node content"),
        ("a: 1\nb: 2\na: 3", "job.yml:3", "duplicate key 'a'"),
        ("when: 2024-13-01", "job.yml:1", "month must be in 1..12"),
        ("n: " + "1" * 5000, "job.yml:1", "4300 digits"),
        ("a: 1\nn: 0x" + "f" * 5000, "job.yml:2", "4300 digits"),
        ("a: 1\nb: !!bool x", "job.yml:2", "must be a value that YAML allows: 'x' is no bool"),
        ("a: !!int ''", "job.yml:1", "'' is no int"),
        ("a: !!timestamp x", "job.yml:1", "'x' is no timestamp"),
        ('a: 1\nb: "\\U99999999"', "job.yml:2", "must be YAML: "),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1", "job.yml:1", "must be YAML: "),
        ("a: 1\n---\na: 2", "job.yml:2", "single document"),
        ("a: !!python/object/apply:os.system [echo]", "job.yml:1", "could not determine a constructor"),
        ("a: *b", "job.yml:1", "undefined alias 'b'"),
        ("[a]: 1\n? {b: 1}\n: 2", "job.yml:1", "unhashable key"),
        ("b: 1\na: \x07", "job.yml:2", "must be YAML: unacceptable character"),
        (b"a: 1\nb: \xb0\xa1\n", "job.yml:2", "must be text in UTF-8"),
        (b"\xff\xfea", "job.yml", "must be text in UTF-8"),
    ],
    ids=[*map(str, range(17))],
)
def test_what_is_no_yaml_is_rejected_with_line_and_reason(content: Any, where: str, said: str) -> None:
    problem = problem_of(content)
    assert problem.where == where
    assert said in problem.rule


@pytest.mark.parametrize(
    ("content", "where", "said"),
    [
        ('{"a": 1,\n"b" 2}', "job.yml:2", "must be JSON: expecting ':' delimiter"),
        ('{"a": 1, "a": 2}', "job.yml:1", "duplicate key 'a'"),
        ('{"b": [{"a": ":"}, {"a": 1}],\n"c": {"a": 2},\n"\\u0062": 3}', "job.yml:3", "duplicate key 'b'"),
        ('{"a": ' + "1" * 5000 + "}", "job.yml", "4300 digits"),
    ],
    ids=["no colon", "duplicate", "duplicate in another line", "digits"],
)
def test_what_is_no_json_is_rejected_with_line_and_reason(content: str, where: str, said: str) -> None:
    problem = problem_of(content, load_json)
    assert problem.where == where
    assert said in problem.rule


def test_plain_aliases_and_merged_keys_are_read() -> None:
    content = """
    first: &first {lr: 0.1, epochs: 3}
    second:
      inner: &inner {<<: *first, lr: 0.2}
    third: {<<: *inner, epochs: 4}
    both: [*first, *first]
    """
    first = {"lr": 0.1, "epochs": 3}
    assert load(content, "") == {
        "first": first,
        "second": {"inner": {"lr": 0.2, "epochs": 3}},
        "third": {"lr": 0.2, "epochs": 4},
        "both": [first, first],
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_of_windows_editors_and_shells_is_read(encoding: str) -> None:
    assert load("a: é\r\nb: [1, x]\r\n".encode(encoding), "") == {"a": "é", "b": [1, "x"]}
    assert load_json('{"a": "é [{"}'.encode(encoding), "") == {"a": "é [{"}


def test_json_counts_brackets_outside_texts_only() -> None:
    assert load_json('{"a": "' + "[" * 1000 + '\\"{"}', "") == {"a": "[" * 1000 + '"{'}
