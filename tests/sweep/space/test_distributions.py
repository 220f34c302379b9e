"""What each expression proposes, through Optuna's own trials."""

from __future__ import annotations

import math
import pickle
from typing import Any

import optuna
import pytest

from trainer.sweep.space.distributions import (
    TYPES,
    Choice,
    Distribution,
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

ALL: list[Distribution] = [
    Choice(("sgd", "adam")),
    RandInt(5),
    Uniform(0.1, 0.2),
    QUniform(0.05, 0.75, 0.1),
    LogUniform(-9, -2),
    QLogUniform(0, 4.6, 5),
    Normal(10, 3),
    QNormal(10, 3, 2),
    LogNormal(0, 1),
    QLogNormal(2, 0.5, 1),
]


def drawn(distribution: Distribution, trials: int = 300) -> list[Any]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    return [distribution.suggest(study.ask(), "x") for _ in range(trials)]


def at(distribution: Distribution, number: float) -> Any:
    """The value for a number that Optuna has drawn."""
    return distribution.suggest(optuna.trial.FixedTrial({"x": number}), "x")


def test_there_is_a_distribution_for_every_expression_of_azure() -> None:
    assert set(TYPES) == {
        *("choice", "randint", "uniform", "loguniform", "quniform", "qloguniform"),
        *("normal", "lognormal", "qnormal", "qlognormal"),
    }
    assert {type(distribution) for distribution in ALL} == set(TYPES.values())


@pytest.mark.parametrize("distribution", ALL, ids=lambda d: d.type_name())
def test_proposed_values_are_choices_or_numbers_within_the_bounds(distribution: Distribution) -> None:
    values = drawn(distribution)
    assert len(set(values)) > 1
    if isinstance(distribution, Choice):
        assert set(values) <= set(distribution.values)
    else:
        assert {type(value) for value in values} <= {int, float}
        low, high = distribution.bounds
        assert low <= min(values)
        assert max(values) <= high


@pytest.mark.parametrize("distribution", ALL, ids=lambda d: d.type_name())
def test_a_study_can_be_stored_and_read_again(distribution: Distribution, tmp_path: Any) -> None:
    address = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=address, study_name="s")
    trial = study.ask()
    value = distribution.suggest(trial, "x")
    study.tell(trial, 1.0)

    read = optuna.load_study(storage=address, study_name="s").trials[0]

    assert read.distributions == {"x": distribution.to_optuna()}
    assert distribution.suggest(read, "x") == value
    assert pickle.loads(pickle.dumps(distribution)) == distribution


@pytest.mark.parametrize(
    ("distribution", "number", "value"),
    [
        (Uniform(0, 10), 2.5, 2.5),
        (LogUniform(-9, -2), 0.003, 0.003),
        (QUniform(0, 100, 5), 12.4, 10),
        (QUniform(0, 100, 5), 12.6, 15),
        (QUniform(0.05, 0.75, 1), 0.6, 1),  # hyperopt rounds beyond the bounds, too
        (QUniform(0, 1, 0.1), 0.31, 0.3),
        (QLogUniform(0, 7, 10), 96, 100),
        (Normal(10, 3), 0.5, 10.0),
        (Normal(10, 3), 0.8413447460685429, 13.0),
        (LogNormal(0, 1), 0.5, 1.0),
        (LogNormal(2, 0.5), 0.15865525393145707, math.exp(1.5)),
        (QNormal(10, 3, 4), 0.8413447460685429, 12),
        (QLogNormal(0, 1, 0.25), 0.8413447460685429, 2.75),  # e is 2.718…
    ],
)
def test_hand_computed_values(distribution: Distribution, number: float, value: float) -> None:
    assert at(distribution, number) == pytest.approx(value, rel=1e-12)


def test_whole_numbers_stay_whole() -> None:
    assert {type(value) for value in drawn(QUniform(1.0, 9.0, 2.0))} == {int}
    assert {type(value) for value in drawn(QLogUniform(0, 4, 1))} == {int}
    assert {type(value) for value in drawn(QNormal(5, 1, 1))} == {int}
    assert {type(value) for value in drawn(RandInt(7))} == {int}
    assert {type(value) for value in drawn(QUniform(0, 1, 0.5))} == {float}


def test_quantized_values_are_the_decimals_one_expects() -> None:
    assert set(drawn(QUniform(0, 1, 0.1))) == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}


def test_randint_leaves_its_upper_bound_out() -> None:
    assert set(drawn(RandInt(3))) == {0, 1, 2}
    assert RandInt(3).bounds == (0, 2)
    assert drawn(RandInt(1), 3) == [0, 0, 0]


def test_log_scales_give_each_order_of_magnitude_as_often() -> None:
    values = drawn(LogUniform(math.log(1e-4), 0), 2000)
    shares = [sum(10**-k <= value < 10 ** (1 - k) for value in values) / 2000 for k in (4, 3, 2, 1)]
    assert shares == pytest.approx([0.25] * 4, abs=0.03)


def test_normal_values_are_normally_distributed() -> None:
    values = drawn(Normal(10, 3), 2000)
    within_one_sigma = sum(7 <= value <= 13 for value in values) / 2000
    assert sum(values) / 2000 == pytest.approx(10, abs=0.3)
    assert within_one_sigma == pytest.approx(0.683, abs=0.03)
    assert LogNormal(0, 1).bounds[0] > 0


@pytest.mark.parametrize("storage", ["memory", "sqlite"])
def test_equal_values_of_different_types_are_kept_apart(storage: str, tmp_path: Any) -> None:
    choice = Choice((1, 1.0, "1", True, None, 0, False))
    address = f"sqlite:///{tmp_path}/study.db" if storage == "sqlite" else None
    study = optuna.create_study(
        storage=address, study_name="s", sampler=optuna.samplers.RandomSampler(seed=0)
    )
    proposed = []
    for _ in range(30):
        trial = study.ask()
        proposed.append(choice.suggest(trial, "x"))
        study.tell(trial, 0.0)

    read = [choice.suggest(trial, "x") for trial in study.get_trials()]

    assert [(type(a), a) for a in read] == [(type(b), b) for b in proposed]
    assert {(type(value), value) for value in proposed} == {(type(value), value) for value in choice.values}
