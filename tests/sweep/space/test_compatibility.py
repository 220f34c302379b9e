"""What is said, before the first trial, of settings that the models of a search space do not take."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from trainer.errors import JobError
from trainer.sweep.space import search_space as spaces
from trainer.sweep.space.compatibility import check_space
from trainer.tasks import Task

CLASSIFICATION, MULTILABEL, DETECTION, SEGMENTATION = Task


def check(
    content: Any, task: Task = DETECTION, model: str = "fasterrcnn_resnet50_fpn", **fixed: Any
) -> spaces.SearchSpace:
    return check_space(spaces.parse(content, "job.yml"), task, model, fixed, "job.yml")


def refused(
    content: Any, task: Task = DETECTION, model: str = "fasterrcnn_resnet50_fpn", **fixed: Any
) -> list[str]:
    with pytest.raises(JobError) as caught:
        check(content, task, model, **fixed)
    assert all(problem.where == "job.yml" for problem in caught.value.problems)
    return [str(problem).removeprefix("job.yml: ") for problem in caught.value.problems]


def test_a_space_whose_models_take_everything_is_used_as_it_is() -> None:
    content = [
        {
            "model_name": "choice('yolov5')",
            "learning_rate": "uniform(0.0001, 0.01)",
            "model_size": "choice('small', 'medium', 'ExtraLarge')",
            "number_of_epochs": "quniform(1, 30, 1)",
        },
        {
            "model_name": "choice('fasterrcnn_resnet50_fpn', 'retinanet_resnet50_fpn')",
            "lr_scheduler": "choice('step', 'warmup_cosine')",
            "learning_rate": "loguniform(-9, -4)",
            "nesterov": "choice(True, False, 1)",
            "optimizer": "choice('sgd', 'None')",
            "validation_metric_type": "choice('none', 'Coco')",
            "layers_to_freeze": "choice(0, 2)",
            "min_size": "choice(600, 800)",
            "early_stopping_patience": "choice(1, '2')",
        },
    ]
    assert check(content) == spaces.parse(content)


def test_names_are_checked_with_hints() -> None:
    said = refused([{"learning_rte": "uniform(0, 1)", "model": "yolov5", "zzz": 1}])
    assert said == [
        "search_space[0].learning_rte: is not a setting; "
        "did you mean learning_rate or learning_rate_scheduler?",
        "search_space[0].model: is not a setting; did you mean model_size or model_name?",
        "search_space[0].zzz: is not a setting; `trainer fit --help-all` lists all",
    ]


def test_every_model_that_may_be_proposed_must_take_the_setting() -> None:
    models = "choice('yolov5', 'fasterrcnn_resnet50_fpn', 'retinanet_resnet50_fpn')"
    assert refused([{"model_name": models, "min_size": "choice(600, 800)", "learning_rate": 0.1}]) == [
        "search_space[0].min_size: applies only to R-CNNs, not to yolov5; "
        "give these models a sub-space of their own"
    ]
    assert refused([{"model_name": "yolov5", "min_size": 600}]) == [
        "search_space[0].min_size: applies only to R-CNNs, not to yolov5"
    ]
    assert refused({"model_size": "choice('small')"})[0].startswith(
        "search_space.model_size: applies only to yolov5, not to fasterrcnn_resnet50_fpn"
    )


def test_the_jobs_own_model_is_that_of_sub_spaces_without_one() -> None:
    assert check([{"image_size": "choice(320, 640)"}], model="yolov5")
    assert refused([{"image_size": "choice(320, 640)"}])[0].startswith(
        "search_space[0].image_size: applies only to"
    )


def test_models_must_be_the_tasks_own() -> None:
    content = [
        {"model_name": "choice('yolo5', 'seresnext')", "learning_rate": 7},
        {"model_name": "uniform(0, 1)"},
        {"model_name": 5},
    ]
    said = refused(content)
    assert said[0].startswith("search_space[0].model_name: no model is named 'yolo5'; did you mean yolov5")
    assert said[1].startswith("search_space[0].model_name: seresnext is a model for image-classification and")
    assert said[2].startswith("search_space[0].learning_rate: input should be less than or equal to 1, got 7")
    assert said[3] == "search_space[1].model_name: must be a name or a choice of names, got uniform"
    assert said[4].startswith("search_space[2].model_name: no model is named '5'")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", 7, "input should be less than or equal to 1, got 7"),
        ("learning_rate", "choice(0.1, 2, -1)", "input should be less than or equal to 1, got 2"),
        ("learning_rate", "uniform(-0.1, 0.1)", "input should be greater than or equal to 0, got -0.1"),
        ("learning_rate", "uniform(0.1, 1.5)", "input should be less than or equal to 1, got 1.5"),
        (
            "learning_rate",
            "loguniform(-3, 1)",
            "input should be less than or equal to 1, but loguniform draws exp(x) for x from -3 to 1, which",
        ),
        ("learning_rate", "normal(2, 0.1)", "input should be less than or equal to 1, got 2.0"),
        ("optimizer", "choice('sgd', 'rmsprop')", "input should be 'sgd', 'adam' or 'adamw', got 'rmsprop'"),
        ("number_of_epochs", "choice(True)", "must not be a boolean, got True"),
        ("number_of_epochs", "randint(10)", "input should be greater than 0, got 0"),
        (
            "number_of_epochs",
            "uniform(1, 10)",
            "takes whole numbers, which uniform does not give; use choice",
        ),
        ("number_of_epochs", "quniform(1, 10, 0.5)", "takes whole numbers, which quniform does not give"),
        ("number_of_epochs", "normal(10, 2)", "takes whole numbers, which normal does not give"),
        (
            "number_of_epochs",
            "choice(1.5)",
            "input should be a valid integer, got a number with a fractional",
        ),
        ("number_of_epochs", None, "input should be a valid integer, got None"),
        ("advanced_settings", "choice('{')", "must be a JSON object, but"),
    ],
)
def test_every_value_must_be_one_of_the_setting(name: str, value: Any, message: str) -> None:
    said = refused([{name: value}])
    assert said[0].startswith(f"search_space[0].{name}: {message}")


@pytest.mark.parametrize(
    ("name", "value", "draws", "meant"),
    [
        (
            "learning_rate",
            {"type": "loguniform", "min_value": 0.0001, "max_value": 0.1},
            "loguniform draws exp(x) for x from 0.0001 to 0.1, which is 1.0001 to 1.10517",
            "for 0.0001 to 0.1 write min_value: -9.21, max_value: -2.30",
        ),
        (
            "weight_decay",
            "loguniform(1e-05, 0.01)",
            "for x from 1e-05 to 0.01",
            "for 1e-05 to 0.01 write min_value: -11.51, max_value: -4.61",
        ),
        (
            "momentum",
            {"type": "qloguniform", "min_value": 0.5, "max_value": 0.9, "q": 0.1},
            "which is 1.64872 to 2.4596",
            "for 0.5 to 0.9 write min_value: -0.69, max_value: -0.11",
        ),
        (
            "learning_rate",
            "loguniform(0, 0.1)",
            "which is 1 to 1.10517",
            "for 0 to 0.1 write min_value: -11.51 (1e-05, as 0 has none), max_value: -2.30",
        ),
        (
            "training_batch_size",
            {"type": "qloguniform", "min_value": 8, "max_value": 64, "q": 8},
            "input should be at most 1,000,000, but qloguniform draws exp(x) for x from 8 to 64",
            "for 8 to 64 write min_value: 2.08, max_value: 4.16",
        ),
        (
            "learning_rate",
            "lognormal(0.01, 0.001)",
            "lognormal has the median exp(0.01) = 1.01005",
            "mu is an exponent: for 0.01 write mu: -4.61",
        ),
    ],
)
def test_plain_bounds_of_exponents_are_rejected_with_the_exponents(
    name: str, value: Any, draws: str, meant: str
) -> None:
    (said,) = refused([{name: value}])
    assert draws in said
    assert said.endswith(meant)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            "loguniform(0, 3)",
            "takes whole numbers, which loguniform does not give; "
            "use choice, randint, or qloguniform with q: 1",
        ),
        (
            "lognormal(1, 1)",
            "takes whole numbers, which lognormal does not give; "
            "use choice, randint, or qlognormal with q: 1",
        ),
        (
            "loguniform(10, 100)",
            "takes whole numbers, but loguniform draws exp(x) for x from 10 to 100, which is 22026.5 to "
            "2.68812e+43; min_value and max_value are exponents: for 10 to 100 write qloguniform with "
            "min_value: 2.30, max_value: 4.61, q: 1",
        ),
        (
            "normal(10, 3)",
            "takes whole numbers, which normal does not give; use choice, randint, or qnormal with q: 1",
        ),
    ],
)
def test_settings_of_whole_numbers_are_told_the_rounded_distribution(value: str, said: str) -> None:
    assert refused([{"number_of_epochs": value}]) == [f"search_space[0].number_of_epochs: {said}"]


def test_exponents_get_no_advice_where_their_bounds_make_no_plain_range() -> None:
    (said,) = refused([{"learning_rate": "loguniform(-9, 2)"}])
    assert said.endswith("min_value and max_value are exponents")


def test_the_upper_bound_of_randint_is_never_proposed() -> None:
    assert check([{"weighted_loss": "randint(3)"}], CLASSIFICATION, "resnet18")
    assert refused([{"weighted_loss": "randint(4)"}], CLASSIFICATION, "resnet18") == [
        "search_space[0].weighted_loss: input should be 0, 1 or 2, got 3"
    ]


def test_one_setting_must_not_be_given_by_two_names() -> None:
    assert refused([{"lr_scheduler": "step", "learning_rate_scheduler": "choice('step')"}]) == [
        "search_space[0].learning_rate_scheduler: is the same setting as lr_scheduler; keep one of the two"
    ]


def test_values_that_do_not_go_together_are_found_before_a_trial_has_them() -> None:
    sizes = {"min_size": "choice(600, 800, 1000)", "max_size": "choice(1333, 900)"}
    assert refused([sizes]) == [
        "search_space[0]: has conflicting values: max_size (900) must be at least min_size (1000)"
    ]
    assert check([sizes | {"min_size": "choice(600, 800)"}])
    # with the values that the job fixes, and with the model's own
    assert refused([{"min_size": "quniform(600, 900, 100)"}], max_size=800) == [
        "search_space[0]: has conflicting values: max_size (800) must be at least min_size (900)"
    ]
    assert check([{"min_size": "choice(900)"}], max_size=1000)
    assert len(refused([{"min_size": "choice(600, 1400)"}])) == 1
    crops = {"training_crop_size": "choice(224, 384)", "validation_crop_size": 384}
    assert refused([crops], CLASSIFICATION, "vitb16r224") == [
        "search_space[0]: has conflicting values: training_crop_size must equal "
        "validation_crop_size (384) for vitb16r224, got 224"
    ]
    assert check([crops], CLASSIFICATION, "seresnext")


def test_values_of_the_job_itself_are_named_as_such() -> None:
    assert refused([{"learning_rate": 0.1}], weight_decay=5) == [
        "training_parameters.weight_decay: input should be less than or equal to 1, got 5"
    ]
    assert check([{"lr_scheduler": "choice('step')"}], learning_rate_scheduler="warmup_cosine")


def test_problems_of_all_sub_spaces_are_told_at_once() -> None:
    said = refused([{"learning_rate": 2}, {"momentum": 3, "x": 1}, {"model_name": "y"}])
    assert [line.split(":")[0] for line in said] == [
        "search_space[0].learning_rate",
        "search_space[1].momentum",
        "search_space[1].x",
        "search_space[2].model_name",
    ]


def test_normal_distributions_are_drawn_as_far_as_the_setting_takes_their_values() -> None:
    content = [{"learning_rate": "normal(0.01, 0.01)", "number_of_epochs": "qnormal(3, 2, 1)"}]
    space = check(content)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))

    drawn = [space.suggest(study.ask()) for _ in range(300)]

    rates = [settings["learning_rate"] for settings in drawn]
    assert 0 <= min(rates) < 0.001
    assert max(rates) > 0.03
    assert min(settings["number_of_epochs"] for settings in drawn) == 1
    assert check([{"learning_rate": "normal(0.5, 0.01)"}]) == spaces.parse(
        [{"learning_rate": "normal(0.5, 0.01)"}]
    )
    assert space.to_content() == spaces.parse(content).to_content()
