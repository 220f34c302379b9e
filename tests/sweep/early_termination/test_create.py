"""Policies as job files give them, when they are applied, and whole sweeps with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from trainer.errors import JobError
from trainer.sweep.early_termination import create_pruner
from trainer.sweep.early_termination.policies import (
    BanditPolicy,
    MedianStoppingPolicy,
    SuccessiveHalvingPolicy,
    TruncationSelectionPolicy,
)

Ends = Callable[..., bool]
BANDIT = {"type": "bandit", "slack_factor": 0.2}


@pytest.mark.parametrize(
    ("content", "policy"),
    [
        (
            {"type": "bandit", "evaluation_interval": 2, "slack_factor": 0.2, "delay_evaluation": 6},
            BanditPolicy(2, 6, slack_factor=0.2),
        ),
        ({"type": "bandit", "slack_amount": 0.1}, BanditPolicy(slack_amount=0.1)),
        # as the SDK writes it: what is not meant stands there as 0
        (
            {"type": "bandit", "slack_amount": 0.0, "slack_factor": 0.2, "evaluation_interval": 0},
            BanditPolicy(0, slack_factor=0.2),
        ),
        ({"type": "BanditPolicy", "slack_factor": "2e-1"}, BanditPolicy(slack_factor=0.2)),
        (
            {"policyType": "Bandit", "slackFactor": 0.2, "evaluationInterval": 3, "delayEvaluation": 1},
            BanditPolicy(3, 1, slack_factor=0.2),
        ),
        ({"type": "median_stopping"}, MedianStoppingPolicy()),
        ("median_stopping", MedianStoppingPolicy()),
        ({"type": "MedianStoppingPolicy", "delay_evaluation": 5}, MedianStoppingPolicy(1, 5)),
        (
            {"type": "truncation_selection", "truncation_percentage": 30, "exclude_finished_jobs": True},
            TruncationSelectionPolicy(truncation_percentage=30, exclude_finished_jobs=True),
        ),
        (
            {"policy_type": "TruncationSelection", "truncation_percentage": 1, "evaluation_interval": 0},
            TruncationSelectionPolicy(0, truncation_percentage=1),
        ),
        ("successive_halving", SuccessiveHalvingPolicy()),
        (
            {"type": "SuccessiveHalving", "minResource": "3", "reductionFactor": 4},
            SuccessiveHalvingPolicy(min_resource=3, reduction_factor=4),
        ),
    ],
)
def test_policies_of_job_files(content: Any, policy: optuna.pruners.BasePruner) -> None:
    assert create_pruner(content) == policy


def test_no_policy_ends_no_trial() -> None:
    study = optuna.create_study(pruner=create_pruner(None), direction="maximize")
    for value in (0.9,) * 9 + (0.0,):  # Optuna's own default would end the last
        trial = study.ask()
        trial.report(value, 1)
        assert not trial.should_prune()
        study.tell(trial, value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"type": "bandits", "slack_factor": 1},
            "type: must be the type of a policy, got 'bandits'; did you mean bandit?",
        ),
        (
            {"slack_factor": 1},
            "type: must be the type of a policy, got None; choose one of bandit, ",
        ),
        (["bandit"], "sweep.early_termination: must be a policy with the key type, got ['bandit']"),
        ("bandit", "needs either slack_factor or slack_amount, over 0, got neither"),
        ({"type": "bandit", "slack_factor": 0, "slack_amount": 0}, "slack_amount, over 0, got neither"),
        ({"type": "bandit", "slack_factor": 0.1, "slack_amount": 0.1}, "slack_amount, over 0, got both"),
        ({"type": "bandit", "slack_factor": -0.1}, "slack_factor: input should be greater than 0, got -0.1"),
        (
            BANDIT | {"evaluation_interval": -1},
            "evaluation_interval: input should be greater than or equal to 0, got -1",
        ),
        (
            BANDIT | {"delay_evaluation": 1.5},
            "delay_evaluation: input should be a valid integer, got a number with a fractional part, got 1.5",
        ),
        (
            BANDIT | {"delay_evaluation": True},
            "delay_evaluation: must be a number, got True",
        ),
        (BANDIT | {"slack_facter": 1}, "slack_facter: is not a key of bandit; did you mean slack_factor"),
        (
            BANDIT | {"truncation_percentage": 1},
            "truncation_percentage: is not a key of bandit",
        ),
        ({"type": "truncation_selection"}, "truncation_percentage: field required"),
        *(
            (
                {"type": "truncation_selection", "truncation_percentage": wrong},
                f"truncation_percentage: input should be {rule}, got {wrong!r}",
            )
            for wrong, rule in (
                (0, "greater than or equal to 1"),
                (100, "less than or equal to 99"),
                (12.5, "a valid integer, got a number with a fractional part"),
                ("many", "a valid integer, unable to parse string as an integer"),
            )
        ),
        (
            {"type": "truncation_selection", "truncation_percentage": 9, "exclude_finished_jobs": "maybe"},
            "exclude_finished_jobs: input should be a valid boolean, unable to interpret input, got 'maybe'",
        ),
        (
            {"type": "successive_halving", "min_resource": 0},
            "min_resource: input should be greater than or equal to 1, got 0",
        ),
        (
            {"type": "successive_halving", "reduction_factor": 1},
            "reduction_factor: input should be greater than or equal to 2, got 1",
        ),
        (
            {"type": "successive_halving", "evaluation_interval": 1},
            "evaluation_interval: is not a key of successive_halving",
        ),
    ],
)
def test_what_is_said_of_policies_that_cannot_be_used(content: Any, said: str) -> None:
    with pytest.raises(JobError) as caught:
        create_pruner(content, "job.yml")
    (problem,) = caught.value.problems
    assert str(problem).startswith("job.yml: sweep.early_termination")
    assert said in str(problem)


def test_all_problems_of_a_policy_are_told_at_once() -> None:
    with pytest.raises(JobError) as caught:
        create_pruner({"type": "bandit", "evaluation_interval": "x", "delay_evaluation": -1, "slack": 1})
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("interval", "delay", "applied"),
    [
        (1, 0, [1, 2, 3, 4, 5, 6, 7, 8]),
        (0, 0, [1, 2, 3, 4, 5, 6, 7, 8]),  # Azure's default for bandit and truncation selection
        (2, 0, [2, 4, 6, 8]),
        (3, 0, [3, 6]),
        (1, 5, [5, 6, 7, 8]),
        # multiples of the interval from the delay on, and not the delay and each interval after it
        (2, 5, [6, 8]),
        (2, 6, [6, 8]),
        (3, 4, [6]),
        (1, 9, []),
    ],
)
@pytest.mark.parametrize(
    "policy",
    [BANDIT, {"type": "median_stopping"}, {"type": "truncation_selection", "truncation_percentage": 50}],
    ids=lambda policy: policy["type"],
)
def test_intervals_at_which_a_policy_is_applied(
    policy: dict[str, Any], interval: int, delay: int, applied: list[int]
) -> None:
    content = policy | {"evaluation_interval": interval, "delay_evaluation": delay}
    study = optuna.create_study(pruner=create_pruner(content), direction="maximize")
    good, poor = study.ask(), study.ask()
    ended = []
    for step in range(1, 9):
        good.report(0.9, step)
        poor.report(0.1, step)
        assert not good.should_prune()
        if poor.should_prune():
            ended.append(step)
    assert ended == applied


# What five trials report: at each step the value, in Azure's terms the primary metric at each interval.
CURVES = {
    0: [0.50, 0.60, 0.70, 0.80],
    1: [0.40, 0.65, 0.75, 0.85],
    2: [0.30, 0.35, 0.90, 0.90],
    3: [0.45, 0.52, 0.60, 0.60],
    4: [0.10, 0.20, 0.30, 0.40],
}


@pytest.mark.parametrize(
    ("policy", "ends"),
    [
        # the limit at step 1 is .50 / 1.25 = .40, which trials 2 and 4 are under; from trial 1 on those at
        # steps 2 to 4 are .65 / 1.25 = .52, .75 / 1.25 = .60 and .85 / 1.25 = .68, the last over trial 3
        ({"type": "bandit", "slack_factor": 0.25}, {0: 4, 1: 4, 2: 1, 3: 4, 4: 1}),
        # at step 2, trials 2 and 4 have .35 and .20, under .52
        ({"type": "bandit", "slack_factor": 0.25, "evaluation_interval": 2}, {0: 4, 1: 4, 2: 2, 3: 4, 4: 2}),
        # from step 3 on: trial 2 has .90 there, so that the limit is .90 / 1.25 = .72
        ({"type": "bandit", "slack_factor": 0.25, "delay_evaluation": 3}, {0: 4, 1: 4, 2: 4, 3: 3, 4: 3}),
        # averages at step 2: .55, .525, .325, .485, .15. Trial 2: .35 < .525, the median of the first 3;
        # trial 3: .52 ≥ .505, of the first 4, and at step 4 .60 ≥ .544, of .65, .6625, .325 and .5425;
        # trial 4: .20 < .485, of all
        ({"type": "median_stopping", "evaluation_interval": 2}, {0: 4, 1: 4, 2: 2, 3: 4, 4: 2}),
        # from step 2 on: of 2, 3, 4 and 5 trials the worst 1, 1, 2 and 2; trial 1 is never the worst of 2
        (
            {"type": "truncation_selection", "truncation_percentage": 50, "delay_evaluation": 2},
            {0: 4, 1: 4, 2: 2, 3: 2, 4: 2},
        ),
    ],
)
def test_a_sweep_one_trial_after_the_other_also_when_resumed(
    policy: dict[str, Any], ends: dict[int, int], tmp_path: Path
) -> None:
    def objective(trial: optuna.Trial) -> float:
        curve = CURVES[trial.number]
        for step, value in enumerate(curve, start=1):
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return curve[-1]

    def study() -> optuna.Study:
        return optuna.create_study(
            storage=f"sqlite:///{tmp_path}/study.db",
            study_name="s",
            load_if_exists=True,
            direction="maximize",
            pruner=create_pruner(policy),
        )

    study().optimize(objective, n_trials=2)
    study().optimize(objective, n_trials=3)

    assert {trial.number: trial.last_step for trial in study().trials} == ends


def test_trials_side_by_side_in_a_shared_storage(storage: BaseStorage) -> None:
    """As processes see it: each has its own study object and its own pruner."""
    pruner = {"type": "truncation_selection", "truncation_percentage": 40}
    optuna.create_study(storage=storage, study_name="s", direction="maximize")
    studies = [
        optuna.load_study(storage=storage, study_name="s", pruner=create_pruner(pruner)) for _ in CURVES
    ]
    trials = [study.ask() for study in studies]
    running = dict(enumerate(trials))
    ended = {}
    for step in range(1, 5):
        for number, trial in running.items():
            trial.report(CURVES[number][step - 1], step)
        for number, trial in list(running.items()):
            if trial.should_prune():
                studies[number].tell(trial, state=TrialState.PRUNED)
                ended[number] = step
                del running[number]
    # step 1: 2 of 5, the values .30 and .10; the ended ones stay the worst 2 of 5 afterwards
    assert ended == {2: 1, 4: 1}
