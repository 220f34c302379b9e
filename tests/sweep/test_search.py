"""From a job to what its sweep works with."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from trainer.errors import JobError
from trainer.job.job import Job
from trainer.sweep.early_termination.policies import BanditPolicy
from trainer.sweep.search import prepare_search

SPACE: list[dict[str, Any]] = [
    {"model_name": "yolov5", "learning_rate": "loguniform(-4, -2)"},
    {"model_name": "choice('fasterrcnn_resnet50_fpn')", "optimizer": "choice('sgd', 'adamw')"},
]


def sweeping(**values: Any) -> Job:
    given = {
        "task": "object-detection",
        "training_data": "a",
        "search_space": SPACE,
        "limits": {"max_trials": 9},
    }
    return Job.of("job.yml", **{**given, **values})


def proposals(job: Job, count: int = 6) -> list[dict[str, Any]]:
    made = prepare_search(job)
    study = optuna.create_study(sampler=made.sampler)
    return [made.space.suggest(study.ask()) for _ in range(count)]


def problems_of(job: Job) -> dict[str, str]:
    with pytest.raises(JobError) as caught:
        prepare_search(job, "job.yml")
    assert {problem.where for problem in caught.value.problems} == {"job.yml"}
    return {problem.field: problem.rule for problem in caught.value.problems}


def test_the_sampling_algorithm_has_its_own_seed_else_that_of_the_training() -> None:
    algorithm = {"type": "random", "seed": 5}
    own = proposals(sweeping(sweep={"sampling_algorithm": algorithm}, settings={"seed": 1}))
    assert proposals(sweeping(settings={"random_seed": 5})) == own
    assert proposals(sweeping(settings={"seed": 1})) != own
    assert prepare_search(sweeping(settings={"seed": "1"})).is_repeatable
    assert not prepare_search(sweeping()).is_repeatable


def test_a_grid_is_repeatable_without_a_seed() -> None:
    job = sweeping(search_space=SPACE[1:], sweep={"sampling_algorithm": "grid"})
    assert prepare_search(job).is_repeatable
    assert [proposal["optimizer"] for proposal in proposals(job, 2)] == ["sgd", "adamw"]


def test_the_logbase_is_that_of_the_texts_exponents() -> None:
    job = sweeping(search_space=SPACE[:1], sweep={"sampling_algorithm": {"logbase": 10, "seed": 1}})
    rates = [proposal["learning_rate"] for proposal in proposals(job, 20)]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert min(rates) < 1e-3 < max(rates)


def test_early_termination_is_the_jobs_policy() -> None:
    policy = {"type": "bandit", "slack_factor": 0.2, "slack_amount": 0.0, "delay_evaluation": 6}
    job = sweeping(sweep={"early_termination": policy})
    pruner = prepare_search(job).pruner
    assert isinstance(pruner, BanditPolicy)
    assert (pruner.slack_factor, pruner.delay_evaluation) == (0.2, 6)


def test_a_fixed_setting_is_for_the_models_to_which_it_means_something() -> None:
    for conditional, settings in (
        (SPACE, {"min_size": 500, "image_size": 320, "number_of_epochs": 3}),
        (SPACE, {}),
    ):
        prepare_search(sweeping(search_space=conditional, settings=settings))
    # One that means something to no model of the space is a mistake.
    assert list(problems_of(sweeping(settings={"mixup_alpha": 0.2}))) == ["training_parameters.mixup_alpha"]
    assert list(problems_of(sweeping(settings={"min_sise": 500}))) == ["training_parameters.min_sise"]
    wrong = problems_of(sweeping(settings={"number_of_epochs": 0}))
    assert list(wrong) == ["training_parameters.number_of_epochs"]


def test_everything_wrong_with_a_sweep_is_said_at_once() -> None:
    space = [{"model_name": "yolov5", "learning_rate": "uniform(1, 0)", "min_size": "choice(1, 2)"}]
    policy = {"type": "truncation_selection"}
    problems = problems_of(sweeping(search_space=space, sweep={"early_termination": policy}))
    assert problems.keys() == {
        "search_space[0].learning_rate",
        "sweep.early_termination.truncation_percentage",
    }
    space = [{"model_name": "yolov5", "min_size": "choice(1, 2)"}, {"model_name": "yolov6"}]
    assert problems_of(sweeping(search_space=space)).keys() == {
        "search_space[0].min_size",
        "search_space[1].model_name",
    }


def test_a_grid_over_what_is_no_choice_is_refused() -> None:
    problems = problems_of(sweeping(sweep={"sampling_algorithm": "grid"}))
    assert "must be a choice for a grid" in problems["search_space[0].learning_rate"]
