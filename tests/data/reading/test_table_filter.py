"""The filters of MLTables."""

from __future__ import annotations

import re

import pytest

from trainer.data.reading.table_filter import Expression


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("n == None", False),
        ("n != 'x'", False),
        ("not n == 'x'", False),
        ("n == 'x' or size == 3", True),
        ("size == '3'", False),
        ("checked == 1", False),
        ("checked", True),
        ("not checked", False),
        ("size", False),
        ("lacking == 1", False),
        ("size > -1.5e0 and size < 4", True),
        ("col('a b') == \"it's\"", True),
        ("'it' == col('a b')", False),
        ("col('a b').startswith('it')", True),
        ("starts_with(col('a b'), 'is')", False),
        ("size.startswith('3')", False),
        ("True", True),
    ],
)
def test_a_filter_matches_what_the_package_matches(text: str, matches: bool) -> None:
    row = {"n": None, "size": 3, "checked": True, "a b": "it's"}
    assert Expression(text).matches(row) is matches


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("1 < size < 4", "1 < size < 4"),
        ("label in ['a']", "label in ['a']"),
        ("n is None", "n is None"),
        ("size % 2 == 0", "size % 2"),
        ("date >= datetime(2015, 7, 5)", "datetime(2015, 7, 5)"),
        ("FBI Code == 1", "invalid syntax"),
        ("__import__('os').system('true')", "__import__('os').system('true')"),
        ("-label == 'a'", "-label"),
        ("col(label) == 1", "col(label)"),
        ("", "invalid syntax"),
        ("(" * 5000 + ")" * 5000, "too many nested parentheses"),
        ("not " * 2400 + "a", "conditions nested more than 64 levels deep"),
        ("not " * 64 + "a", "conditions nested more than 64 levels deep"),
        ("(a or b and " * 40 + "a" + ")" * 40, "conditions nested more than 64 levels deep"),
        ("a == 1 or " * 2000 + "b", "more than 10,000 characters"),
    ],
)
def test_other_filters_are_refused_by_their_part(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=re.escape(part)):
        Expression(text)


def test_columns_of_a_filter_are_known() -> None:
    assert Expression("a == 1 and (col('b c') > 2 or not d)").columns == {"a", "b c", "d"}
