"""The sampling algorithms, in real studies: what they cover, what they repeat, what they reject."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from pydantic import ValidationError

from trainer.errors import JobError
from trainer.job.sweep import SamplingAlgorithm
from trainer.sweep import sampling
from trainer.sweep.sampling import create_sampler
from trainer.sweep.space import search_space as spaces

FLAT = spaces.parse(
    {
        "learning_rate": "loguniform(-9, -2)",
        "momentum": "uniform(0.5, 1)",
        "optimizer": "choice('sgd', 'adam')",
        "number_of_epochs": "randint(16)",
        "weight_decay": "normal(0.001, 0.0001)",
    }
)
CONDITIONAL = spaces.parse(
    [
        {"model_name": "a", "learning_rate": "uniform(0, 1)", "momentum": "uniform(0, 1)"},
        {"model_name": "b", "learning_rate": "loguniform(-7, 0)", "layers": "randint(8)"},
    ]
)


def proposals(
    sampler: optuna.samplers.BaseSampler, space: spaces.SearchSpace, trials: int
) -> list[dict[str, Any]]:
    study = optuna.create_study(study_name="sweep", sampler=sampler)
    return [space.suggest(study.ask()) for _ in range(trials)]


def journal(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


@pytest.mark.parametrize(
    ("algorithm", "rule", "cls"),
    [
        ("random", None, sampling.RandomSampler),
        ("random", "random", sampling.RandomSampler),
        ("random", "sobol", sampling.SobolSampler),
        ("bayesian", None, sampling.BayesianSampler),
    ],
)
def test_algorithms_by_name(algorithm: str, rule: str | None, cls: type) -> None:
    assert type(create_sampler(algorithm, rule=rule, space=FLAT)) is cls


@pytest.mark.parametrize(("algorithm", "rule"), [("random", None), ("random", "sobol"), ("bayesian", None)])
def test_any_space_can_be_sampled_and_in_silence(
    algorithm: str, rule: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    for space in (FLAT, CONDITIONAL):
        sampler = create_sampler(algorithm, seed=1, rule=rule, space=space, max_trials=12)
        study = optuna.create_study(sampler=sampler)
        for number in range(12):  # any warning would be an error
            trial = study.ask()
            proposed = space.suggest(trial)
            assert any(part.parameters.keys() == proposed.keys() for part in space.sub_spaces)
            study.tell(trial, float(number))
    assert "[W " not in capsys.readouterr().err  # as Optuna's log begins its warnings


@pytest.mark.parametrize(("algorithm", "rule"), [("random", None), ("random", "sobol"), ("bayesian", None)])
@pytest.mark.parametrize("space", [FLAT, CONDITIONAL], ids=["flat", "conditional"])
def test_a_seed_makes_a_sweep_repeatable_also_when_it_is_resumed(
    algorithm: str, rule: str | None, space: spaces.SearchSpace, tmp_path: Path
) -> None:
    def run(path: Path, trials: int, seed: int) -> list[dict[str, Any]]:
        """As a process of its own would resume a sweep: nothing but the storage is carried over."""
        sampler = create_sampler(algorithm, seed=seed, rule=rule, space=space)
        study = optuna.create_study(
            storage=journal(path), study_name="s", sampler=sampler, load_if_exists=True, direction="maximize"
        )
        for _ in range(trials):
            trial = study.ask()
            study.tell(trial, space.suggest(trial)["learning_rate"])
        return [space.suggest(trial) for trial in study.get_trials()]

    once = run(tmp_path / "once.log", 16, seed=3)
    run(tmp_path / "stopped.log", 5, seed=3)
    run(tmp_path / "stopped.log", 8, seed=3)
    resumed = run(tmp_path / "stopped.log", 3, seed=3)

    assert resumed == once
    assert run(tmp_path / "other.log", 16, seed=4) != once
    assert len({str(settings) for settings in once}) == 16


def test_without_a_seed_each_sweep_is_another() -> None:
    for algorithm in ("random", "bayesian"):
        first = proposals(create_sampler(algorithm, space=FLAT), FLAT, 3)
        assert first != proposals(create_sampler(algorithm, space=FLAT), FLAT, 3)
    one, other = (
        optuna.create_study(study_name=name, sampler=create_sampler("random", rule="sobol", space=FLAT))
        for name in ("one", "other")
    )
    assert FLAT.suggest(one.ask()) != FLAT.suggest(other.ask())


def test_random_proposals_have_the_distributions_asked_for() -> None:
    drawn = proposals(create_sampler("random", seed=0, space=FLAT), FLAT, 800)
    logarithms = [(math.log(each["learning_rate"]) + 9) / 7 for each in drawn]
    for quantile in (0.25, 0.5, 0.75):
        assert np.quantile(logarithms, quantile) == pytest.approx(quantile, abs=0.06)
    assert sum(each["optimizer"] == "sgd" for each in drawn) == pytest.approx(400, abs=60)
    assert {each["number_of_epochs"] for each in drawn} == set(range(16))
    assert np.mean([each["weight_decay"] for each in drawn]) == pytest.approx(0.001, abs=2e-5)
    # one parameter says nothing of another
    assert abs(np.corrcoef(logarithms, [each["momentum"] for each in drawn])[0, 1]) < 0.1


def test_sobol_points_cover_the_space_evenly() -> None:
    drawn = proposals(create_sampler("random", rule="sobol", seed=5, space=FLAT), FLAT, 64)
    # of 2^k points of a Sobol' sequence one lies in each of 2^k equal parts of every axis
    assert sorted(int((math.log(each["learning_rate"]) + 9) / 7 * 64) for each in drawn) == list(range(64))
    assert sorted(int((each["momentum"] - 0.5) * 2 * 64) for each in drawn) == list(range(64))
    assert sorted(each["number_of_epochs"] for each in drawn) == sorted(list(range(16)) * 4)
    assert sum(each["optimizer"] == "sgd" for each in drawn) == 32

    def discrepancy(rule: str) -> float:
        from scipy.stats import qmc

        settings = proposals(create_sampler("random", rule=rule, seed=5, space=FLAT), FLAT, 64)
        return float(
            qmc.discrepancy(
                [[(math.log(s["learning_rate"]) + 9) / 7, (s["momentum"] - 0.5) * 2] for s in settings]
            )
        )

    assert discrepancy("sobol") < discrepancy("random") / 3


def test_sobol_covers_each_sub_space_of_a_conditional_space() -> None:
    drawn = proposals(create_sampler("random", rule="sobol", seed=2, space=CONDITIONAL), CONDITIONAL, 64)
    first = [each for each in drawn if each["model_name"] == "a"]
    second = [each for each in drawn if each["model_name"] == "b"]
    assert len(first) == len(second) == 32
    for values in (
        [each["learning_rate"] for each in first],
        [each["momentum"] for each in first],
        [(math.log(each["learning_rate"]) + 7) / 7 for each in second],
    ):
        eighths = np.histogram(values, bins=8, range=(0, 1))[0]
        assert eighths.min() >= 2  # 4 would be perfect
        assert eighths.max() <= 6


def test_sobol_gives_no_point_to_two_processes(tmp_path: Path) -> None:
    def study() -> optuna.Study:
        """As each process sees it."""
        sampler = create_sampler("random", rule="sobol", space=FLAT)
        return optuna.create_study(
            storage=journal(tmp_path / "s.log"), study_name="s", sampler=sampler, load_if_exists=True
        )

    here, there = study(), study()
    running = [worker.ask() for worker in (here, there, here, there)]  # asked for before any proposes
    points = [FLAT.suggest(trial) for trial in reversed(running)][::-1]

    alone = optuna.create_study(study_name="s", sampler=create_sampler("random", rule="sobol", space=FLAT))
    assert points == [FLAT.suggest(alone.ask()) for _ in range(4)]


def test_a_retried_trial_is_given_what_the_failed_one_would_have_had(tmp_path: Path) -> None:
    for rule in ("random", "sobol"):
        expected = proposals(create_sampler("random", rule=rule, seed=1, space=FLAT), FLAT, 3)
        study = optuna.create_study(sampler=create_sampler("random", rule=rule, seed=1, space=FLAT))
        for _ in range(2):
            FLAT.suggest(study.ask())
        lost = study.ask()  # whose process dies before it has any parameters
        study.tell(lost, state=optuna.trial.TrialState.FAIL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            retry = optuna.storages.RetryHeartbeatStaleTrialCallback()
        retry(study, study.trials[2])
        again = study.ask()
        assert again.number == 3
        assert FLAT.suggest(again) == expected[2]


def toy(settings: dict[str, Any]) -> float:
    """Best, at 0, with model b, a rate of 0.01 and 5 layers; model a comes to −1 at most."""
    if settings["model_name"] == "a":
        return -1 - (settings["learning_rate"] - 0.5) ** 2 - (settings["momentum"] - 0.5) ** 2
    return -abs(math.log10(settings["learning_rate"]) + 2) - 0.2 * abs(settings["layers"] - 5)


def test_bayesian_finds_better_settings_of_a_conditional_space_than_random() -> None:
    def best(algorithm: str, seed: int) -> float:
        sampler = create_sampler(algorithm, seed=seed, space=CONDITIONAL, max_trials=40)
        study = optuna.create_study(sampler=sampler, direction="maximize")
        study.optimize(lambda trial: toy(CONDITIONAL.suggest(trial)), n_trials=40)
        return study.best_value

    seeds = range(6)
    random, bayesian = ([best(name, seed) for seed in seeds] for name in ("random", "bayesian"))

    assert np.mean(bayesian) > np.mean(random)
    assert sum(b > r for b, r in zip(bayesian, random, strict=True)) >= 4


def test_bayesian_proposes_the_parameters_of_each_sub_space_jointly() -> None:
    study = optuna.create_study(
        sampler=create_sampler("bayesian", seed=0, space=CONDITIONAL), direction="maximize"
    )
    study.optimize(lambda trial: toy(CONDITIONAL.suggest(trial)), n_trials=20)
    # what Optuna draws by itself, parameter by parameter, is not among these
    assert study.ask().relative_params.keys() == CONDITIONAL.distributions().keys()


def test_bayesian_proposes_other_settings_while_trials_run() -> None:
    study = optuna.create_study(
        sampler=create_sampler("bayesian", seed=0, space=CONDITIONAL), direction="maximize"
    )
    study.optimize(lambda trial: toy(CONDITIONAL.suggest(trial)), n_trials=20)
    running = [str(CONDITIONAL.suggest(study.ask())) for _ in range(6)]
    assert len(set(running)) == 6


def test_a_short_bayesian_sweep_is_not_spent_on_random_trials() -> None:
    def differing(max_trials: int | None) -> int:
        """The first trial that depends on the results before it."""
        best: dict[str, list[dict[str, Any]]] = {}
        for sign in (1, -1):
            sampler = create_sampler("bayesian", seed=0, space=FLAT, max_trials=max_trials)
            study = optuna.create_study(sampler=sampler, direction="maximize")
            study.optimize(lambda trial, sign=sign: sign * FLAT.suggest(trial)["momentum"], n_trials=14)
            best[str(sign)] = [FLAT.suggest(trial) for trial in study.trials]
        return [one == other for one, other in zip(best["1"], best["-1"], strict=True)].index(False)

    assert differing(None) in (10, 11)
    assert differing(100) in (10, 11)
    assert differing(12) in (3, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "baysian"}, "type.*should be 'random', 'grid' or 'bayesian'.*'baysian'"),
        ({"type": "hyperband"}, "type.*should be 'random', 'grid' or 'bayesian'.*'hyperband'"),
        ({"seed": -1}, "seed.*greater than or equal to 0.*-1"),
        ({"seed": 1.5}, "seed.*valid integer.*1.5"),
        ({"rule": "halton"}, "rule.*should be 'random' or 'sobol'.*'halton'"),
        ({"type": "bayesian", "rule": "sobol"}, "rule is an option of random sampling.*apply to bayesian"),
        *(
            ({"logbase": wrong}, "logbase.*must be e or a positive number other than 1")
            for wrong in (0, -2, 1, "x", True, math.inf)
        ),
    ],
)
def test_what_is_said_of_algorithms_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){message}"):
        SamplingAlgorithm.model_validate(options)


def test_a_grid_over_other_than_choices_is_refused_with_all_of_them() -> None:
    with pytest.raises(JobError) as caught:
        create_sampler("grid", space=CONDITIONAL, where="job.yml")
    hint = "; list the values in a choice, or sample by random or bayesian"
    assert str(caught.value).splitlines()[1:] == [
        f"  job.yml: search_space[0].learning_rate: must be a choice for a grid, got uniform{hint}",
        f"  job.yml: search_space[0].momentum: must be a choice for a grid, got uniform{hint}",
        f"  job.yml: search_space[1].learning_rate: must be a choice for a grid, got loguniform{hint}",
        f"  job.yml: search_space[1].layers: must be a choice for a grid, got randint{hint}",
    ]
