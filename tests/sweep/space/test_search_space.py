"""Search spaces as a whole: sub-spaces, names in Optuna, and the way there and back."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import optuna
import pytest
import yaml

from trainer.errors import JobError
from trainer.sweep.space import search_space as spaces
from trainer.sweep.space.distributions import Choice, LogUniform, Uniform

# As in Azure's own example jobs.
CONDITIONAL = """
- model_name:
    type: choice
    values: [yolov5]
  learning_rate:
    type: uniform
    min_value: 0.0001
    max_value: 0.01
  model_size:
    type: choice
    values: [small, medium]
- model_name: fasterrcnn_resnet50_fpn
  learning_rate: uniform(0.0001, 0.001)
  optimizer: choice('sgd', 'adam', 'adamw')
  min_size: choice(600, 800)
"""


def conditional() -> spaces.SearchSpace:
    return spaces.parse(yaml.safe_load(CONDITIONAL), "job.yml")


def test_one_map_is_one_sub_space_whose_parameters_have_the_names_of_the_job_file() -> None:
    space = spaces.parse({"learning_rate": "uniform(0.1, 0.2)", "optimizer": "sgd"})
    trial = optuna.create_study().ask()

    settings = space.suggest(trial)

    assert space == spaces.parse([{"learning_rate": "uniform(0.1, 0.2)", "optimizer": "sgd"}])
    assert settings == {"learning_rate": trial.params["learning_rate"], "optimizer": "sgd"}
    assert trial.params.keys() == {"learning_rate"} == space.distributions().keys()
    assert 0.1 <= settings["learning_rate"] <= 0.2


def test_each_trial_takes_one_sub_space_and_its_parameters_only() -> None:
    space = conditional()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    taken = set()
    for _ in range(20):
        trial = study.ask()
        settings = space.suggest(trial)
        index = trial.params[spaces.SUB_SPACE]
        taken.add(index)
        if index == 0:
            assert settings.keys() == {"model_name", "learning_rate", "model_size"}
            assert settings["model_name"] == "yolov5"
        else:
            assert settings.keys() == {"model_name", "learning_rate", "optimizer", "min_size"}
            assert settings["learning_rate"] <= 0.001
        assert all(name.startswith(f"{index}/") for name in trial.params if name != spaces.SUB_SPACE)
    assert taken == {0, 1}


def test_optuna_knows_equal_names_of_different_sub_spaces_apart() -> None:
    assert {name: str(value) for name, value in conditional().distributions().items()} == {
        "sub_space": "CategoricalDistribution(choices=(0, 1))",
        "0/model_name": "CategoricalDistribution(choices=('yolov5',))",
        "0/learning_rate": "FloatDistribution(high=0.01, log=False, low=0.0001, step=None)",
        "0/model_size": "CategoricalDistribution(choices=('small', 'medium'))",
        "1/learning_rate": "FloatDistribution(high=0.001, log=False, low=0.0001, step=None)",
        "1/optimizer": "CategoricalDistribution(choices=('sgd', 'adam', 'adamw'))",
        "1/min_size": "CategoricalDistribution(choices=(600, 800))",
    }


def test_the_settings_of_a_finished_trial_can_be_told_again(tmp_path: Any) -> None:
    space = conditional()
    address = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=address, study_name="s")
    proposed = []
    for _ in range(8):
        trial = study.ask()
        proposed.append(space.suggest(trial))
        study.tell(trial, 0.5)

    read = optuna.load_study(storage=address, study_name="s").trials

    assert [space.suggest(trial) for trial in read] == proposed
    assert [space.suggest(optuna.trial.FixedTrial(trial.params)) for trial in read] == proposed


def test_a_space_written_as_yaml_is_read_as_the_same_space() -> None:
    content = [
        {
            "model_name": "vitb16r224",
            "a": "choice(1, 1.0, '1', True)",
            "b": "loguniform(-6, -1)",
            "c": "qnormal(10, 3, 2)",
            "d": "randint(4)",
            "e": "QLogUniform(0, 3, 0.5)",
            "f": None,
        },
        {"a": {"type": "lognormal", "mu": 0, "sigma": 1}},
    ]
    space = spaces.parse(content)
    again = spaces.parse(yaml.safe_load(yaml.safe_dump(space.to_content())))
    assert again == space
    assert again.to_content() == space.to_content()
    first = space.sub_spaces[0].parameters["a"]
    assert isinstance(first, Choice)
    assert list(map(type, first.values)) == [int, float, str, bool]


def test_the_base_of_exponents_is_that_of_the_sampling_algorithm() -> None:
    space = spaces.parse({"learning_rate": "loguniform(-3, -1)", "x": "uniform(-3, -1)"}, logbase=10)
    rate = LogUniform(-3, -1, base=10)
    assert space.sub_spaces[0].parameters == {"learning_rate": rate, "x": Uniform(-3, -1)}
    assert rate.bounds == (0.001, 0.1)


def test_all_problems_are_told_at_once_with_their_places() -> None:
    content = [
        {"learning_rate": {"type": "uniform", "min_value": 1, "max_value": 0}, "optimizer": "choice()"},
        [],
        {"weight_decay": "chioce(1)"},
    ]
    with pytest.raises(JobError) as caught:
        spaces.parse(content, "job.yml")
    assert str(caught.value).splitlines() == [
        "the search space cannot be used:",
        "  job.yml: search_space[0].learning_rate: min_value must not be over max_value, got 1 and 0",
        "  job.yml: search_space[0].optimizer: a choice needs at least one value",
        "  job.yml: search_space[1]: must map hyperparameters to expressions or values, got []",
        "  job.yml: search_space[2].weight_decay: must be the type of an expression, got 'chioce'; "
        "did you mean choice?",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"search_space: must have at least one sub-space, got \[\]"),
        (None, "search_space: must map hyperparameters to expressions or values, got None"),
        ({}, "search_space: must map hyperparameters"),
        ("random", "search_space: must map hyperparameters to expressions or values, got 'random'"),
        ({"x": "uniform(1)"}, "search_space.x: uniform needs max_value"),
    ],
)
def test_spaces_that_are_none(content: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        spaces.parse(content)


@pytest.mark.fresh_processes
def test_reading_a_space_needs_neither_torch_nor_optuna() -> None:
    program = (
        "import sys; from trainer.sweep.space import search_space as space; from trainer.tasks import Task\n"
        "from trainer.sweep.space.compatibility import check_space\n"
        "read = space.parse([{'learning_rate': 'normal(0.01, 0.001)'}, {'optimizer': \"choice('sgd')\"}])\n"
        "check_space(read, Task.CLASSIFICATION, 'seresnext')\n"
        "print([name for name in ('torch', 'optuna', 'scipy', 'lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
