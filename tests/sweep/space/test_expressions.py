"""Every form in which a job file may say what to search, and what is said of those that cannot be read."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from trainer.errors import JobError
from trainer.sweep.space.distributions import (
    Choice,
    LogNormal,
    LogUniform,
    Normal,
    QLogNormal,
    QLogUniform,
    QNormal,
    QUniform,
    RandInt,
    Uniform,
)
from trainer.sweep.space.expressions import read


def refused(value: Any) -> str:
    with pytest.raises(JobError) as caught:
        read(value, "job.yml", "search_space[0].x")
    assert all(str(problem).startswith("job.yml: search_space[0].x: ") for problem in caught.value.problems)
    return "\n".join(
        str(problem).removeprefix("job.yml: search_space[0].x: ") for problem in caught.value.problems
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{type: choice, values: [sgd, adam]}", Choice(("sgd", "adam"))),
        ("{type: choice, values: [1, 1.0, '1', true, null]}", Choice((1, 1.0, "1", True, None))),
        ("{type: randint, upper: 10}", RandInt(10)),
        ("{type: uniform, min_value: 0.001, max_value: 0.01}", Uniform(0.001, 0.01)),
        ("{type: uniform, min_value: 1e-4, max_value: 1e-2}", Uniform(0.0001, 0.01)),  # text to YAML 1.1
        ("{type: uniform, min_value: 1, max_value: 1}", Uniform(1, 1)),
        ("{type: loguniform, min_value: -9.2, max_value: -2.3}", LogUniform(-9.2, -2.3)),
        ("{type: loguniform, min_value: 0.0001, max_value: 0.1}", LogUniform(0.0001, 0.1)),
        ("{type: quniform, min_value: 1, max_value: 30, q: 2}", QUniform(1, 30, 2)),
        ("{type: qloguniform, min_value: 0, max_value: 4, q: 8}", QLogUniform(0, 4, 8)),
        ("{type: normal, mu: 10, sigma: 3}", Normal(10, 3)),
        ("{type: lognormal, mu: -4, sigma: 1}", LogNormal(-4, 1)),
        ("{type: qnormal, mu: 10, sigma: 5, q: 2}", QNormal(10, 5, 2)),
        ("{type: qlognormal, mu: 2, sigma: 1, q: 5}", QLogNormal(2, 1, 5)),
        ("{type: QUniform, min_value: 1, max_value: 30, q: 1}", QUniform(1, 30, 1)),
        ("{type: Randint, upper: 3}", RandInt(3)),
    ],
)
def test_the_yaml_form(text: str, expected: Any) -> None:
    assert read(yaml.safe_load(text), "", "") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("choice('vitb16r224','vits16r224')", Choice(("vitb16r224", "vits16r224"))),
        ("choice(\"sgd\", 'adam')", Choice(("sgd", "adam"))),
        ("  choice ( 'a' ,\n 'b' )  ", Choice(("a", "b"))),
        ("choice('it''s')", Choice(("its",))),
        ("choice('a,b', '(c)')", Choice(("a,b", "(c)"))),
        ("choice(yolov5, fasterrcnn_resnet50_fpn)", Choice(("yolov5", "fasterrcnn_resnet50_fpn"))),
        ("choice(0.1, 0.2)", Choice((0.1, 0.2))),
        ("choice(1, -2, +3, 1e-4)", Choice((1, -2, 3, 0.0001))),
        ("choice(True, false)", Choice((True, False))),
        ("choice(None, 2)", Choice((None, 2))),
        ("choice(range(1, 5))", Choice((1, 2, 3, 4))),
        ("choice(range(0, 10, 5))", Choice((0, 5))),
        ("choice([16, 32])", Choice((16, 32))),
        ("Choice(values=['a', 'b'])", Choice(("a", "b"))),
        ("Choice(['a'])", Choice(("a",))),
        ("uniform(0.001,0.01)", Uniform(0.001, 0.01)),
        ("uniform( -1 , 1 )", Uniform(-1, 1)),
        ("Uniform(min_value=0.1, max_value=0.2)", Uniform(0.1, 0.2)),
        ("Uniform(0.1, max_value=0.2)", Uniform(0.1, 0.2)),
        ("quniform(1, 100, 5)", QUniform(1, 100, 5)),
        ("QUniform(1, 100, q=5)", QUniform(1, 100, 5)),
        ("normal(10, 3)", Normal(10, 3)),
        ("LogNormal(mu=-4, sigma=1)", LogNormal(-4, 1)),
        ("qnormal(10, 3, 1)", QNormal(10, 3, 1)),
        ("QLogNormal(2, 1, 5)", QLogNormal(2, 1, 5)),
        ("randint(8)", RandInt(8)),
        ("Randint(upper=8)", RandInt(8)),
    ],
)
def test_the_string_form(text: str, expected: Any) -> None:
    distribution = read(text, "", "")
    assert distribution == expected
    if isinstance(expected, Choice):
        assert list(map(type, distribution.values)) == list(map(type, expected.values))


@pytest.mark.parametrize(
    "expression",
    [
        {"type": "loguniform", "min_value": -6, "max_value": 1},
        {"type": "LogUniform", "min_value": "-6", "max_value": 1.0},
        "loguniform(-6, 1)",
        "LogUniform(min_value=-6, max_value=1)",
    ],
)
def test_bounds_of_loguniform_are_exponents_in_every_form(expression: Any) -> None:
    assert read(expression, "", "").bounds == (math.exp(-6), math.exp(1))
    assert read(expression, "", "", logbase=10).bounds == (1e-6, 10)
    assert read(expression, "", "", logbase=0.5).bounds == (0.5, 64)


@pytest.mark.parametrize(
    "expression",
    [{"type": "qloguniform", "min_value": 0.5, "max_value": 4, "q": 2}, "qloguniform(0.5, 4, 2)"],
)
def test_bounds_of_qloguniform_are_exponents_in_every_form(expression: Any) -> None:
    assert read(expression, "", "").bounds == (2, 54)  # exp(0.5) = 1.6, exp(4) = 54.6


@pytest.mark.parametrize(
    "value",
    ["yolov5", "timm/resnet18.a1_in1k", "(3, 2)", "3x2", "runs (old)/fit", "", 5, 0.5, True, None],
)
def test_all_else_that_is_one_value_is_fixed(value: Any) -> None:
    fixed = read(value, "", "")
    assert fixed == value
    assert type(fixed) is type(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        # a choice
        ({"type": "choice"}, "choice needs values"),
        ({"type": "choice", "values": []}, "a choice needs at least one value"),
        ("choice()", "a choice needs at least one value"),
        ({"type": "choice", "values": "sgd"}, "values must be a list, got 'sgd'"),
        ({"type": "choice", "values": [1, 2, 1]}, "a choice must not repeat a value, got 1"),
        ({"type": "choice", "values": [{"a": 1}]}, "must be text, a number or a boolean, got {'a': 1}"),
        ({"type": "choice", "values": [math.nan]}, "must be a finite number, got nan"),
        ("uniform(0, 0x" + "f" * 5000 + ")", "must stay within the range of floating-point numbers"),
        ("choice(range(100000000))", "a choice must have at most 10000 values, got 10001"),
        ("choice(range(1.5))", "cannot be read as a range, got 'range(1.5)'; 'float' object"),
        # bounds
        (
            {"type": "uniform", "min_value": 2, "max_value": 1},
            "min_value must not be over max_value, got 2 and 1",
        ),
        ("uniform(0.1, 0.01)", "min_value must not be over max_value, got 0.1 and 0.01"),
        ({"type": "uniform", "min_value": "low", "max_value": 1}, "min_value must be a number, got 'low'"),
        ({"type": "uniform", "min_value": True, "max_value": 1}, "min_value must be a number, got True"),
        ({"type": "uniform", "min_value": 0, "max_value": math.inf}, "max_value must be a number, got inf"),
        ({"type": "uniform", "min_value": 0, "max_value": 10**400}, "max_value must be a number, got 1000"),
        ({"type": "uniform", "min_value": 0}, "uniform needs max_value"),
        ("uniform(0.1)", "uniform needs max_value"),
        (
            "uniform(0.1, 0.2, 0.3)",
            "uniform takes only min_value, max_value, got 'uniform(0.1, 0.2, 0.3)'",
        ),
        ("loguniform(1, 0)", "min_value must not be over max_value, got 1 and 0"),
        *(
            (expression, "must stay within the range of floating-point numbers, got {'")
            for expression in ("loguniform(0, 1000)", "loguniform(-2000, 1)", "qloguniform(0, 701, 1)")
        ),
        (
            "loguniform(600, 800)",
            "must stay within the range of floating-point numbers, got {'min_value': 600, 'max_value': 800}; "
            "its bounds are exponents of e: for 600 to 800 write min_value: 6.40, max_value: 6.68",
        ),
        # the rest
        ("quniform(1, 2, 0)", "q must be over 0, got 0"),
        ({"type": "qnormal", "mu": 1, "sigma": 1, "q": -1}, "q must be over 0, got -1"),
        ("normal(1, 0)", "sigma must be over 0, got 0"),
        ({"type": "lognormal", "mu": 1, "sigma": -2}, "sigma must be over 0, got -2"),
        ("lognormal(800, 1)", "must stay within the range of floating-point numbers"),
        ("randint(0)", "upper must be a whole number of at least 1, got 0"),
        ({"type": "randint", "upper": 2.5}, "upper must be a whole number of at least 1, got 2.5"),
        # names
        (
            {"type": "unifrom", "min_value": 0},
            "must be the type of an expression, got 'unifrom'; did you mean uniform",
        ),
        ("chioce('a', 'b')", "must be the type of an expression, got 'chioce'; did you mean choice?"),
        ("gamma(1, 2)", "must be the type of an expression, got 'gamma'; there are choice, randint, uniform"),
        (
            {"min_value": 0, "max_value": 1},
            "needs the key type, got {'min_value': 0, 'max_value': 1}; there are",
        ),
        (
            {"type": "uniform", "min": 0, "max_value": 1},
            "uniform has no key min; did you mean min_value?\nuniform needs min_value",
        ),
        ("uniform(low=0, max_value=1)", "uniform has no key low; there are min_value, max_value"),
        # what cannot be read
        (
            "choice('a', 'b'",
            "cannot be read as an expression, got \"choice('a', 'b'\"; write it as choice('a'",
        ),
        ("choice('a' 'b", "cannot be read as an expression"),
        ("uniform(0.1 0.2)", "cannot be read as an expression"),
        ("choice('a')('b')", "cannot be read as an expression"),
        ("uniform(**{})", "cannot be read as an expression"),
        ("uniform(0, min_value=1)", "cannot be read as an expression"),
        ("choice(" + "(" * 500 + ")" * 500 + ")", "cannot be read as an expression"),
        ("choice(yolo11n-seg)", "must be a value, got 'yolo11n - seg'; put text in quotes"),
        ("choice(__import__('os').getcwd())", "must be a value, got \"__import__('os').getcwd()\""),
        (["sgd", "adam"], "must be one value or an expression, got ['sgd', 'adam']; for a choice among them"),
        (math.inf, "must be a finite number, got inf"),
        (b"sgd", "must be text, a number or a boolean, got b'sgd'"),
    ],
)
def test_what_is_said_of_expressions_that_cannot_be_used(value: Any, message: str) -> None:
    assert refused(value).startswith(message)


def test_everything_wrong_with_an_expression_is_said_at_once() -> None:
    said = refused({"type": "qnormal", "mu": "x", "sigma": 0, "q": 0, "step": 1})
    assert said.splitlines() == [
        "qnormal has no key step; there are mu, sigma, q",
        "mu must be a number, got 'x'",
        "sigma must be over 0, got 0",
        "q must be over 0, got 0",
    ]


def test_an_expression_is_never_evaluated(tmp_path: Any) -> None:
    victim = tmp_path / "victim"
    refused(f"choice(open({str(victim)!r}, 'w'))")
    assert not victim.exists()
