"""AutoMode: what is tried without a search space, and in which order."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml

import trainer
from tools import automode_page as auto_docs
from trainer import cli
from trainer.automode import plan as auto
from trainer.automode.data_statistics import DataStatistics
from trainer.automode.plan import Plan
from trainer.data.samples import make
from trainer.errors import JobError
from trainer.job.job import Job
from trainer.sweep.attempts import next_attempt
from trainer.sweep.early_termination.policies import BanditPolicy, SuccessiveHalvingPolicy
from trainer.sweep.first_trials import FirstTrials, optuna_parameters, replaced_values
from trainer.sweep.search import Search, prepare_search
from trainer.sweep.space.search_space import REPLACED
from trainer.tasks import Task

USUAL = DataStatistics(400, 4, 1920, 1080, most_objects=20, object_side=0.3, small_object_side=0.2)


@pytest.fixture(autouse=True)
def _all_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    there = SimpleNamespace(origin="there")
    monkeypatch.setattr("trainer.models.libraries.find_spec", lambda name: there)


def automatic(task: str = "object-detection", **values: Any) -> Job:
    known = {"training_data": "a", "limits": {"max_trials": 10}, "weights": "pretrained"}
    return Job.of("", **{**known, "task": task, **values})


def plan(job: Job | None = None, facts: DataStatistics = USUAL, gpus: int = 1) -> Plan:
    return auto.plan(job or automatic(), facts, gpus)


def sub_space(of: Plan, model: str) -> dict[str, Any]:
    """The first sub-space that has a model."""
    for space in of.job.search_space:
        name = space["model_name"]
        names = name["values"] if isinstance(name, Mapping) else [name]
        if model in names:
            return space
    raise AssertionError(f"{model} is not tried")


def tried(of: Plan) -> set[str]:
    names: set[str] = set()
    for space in of.job.search_space:
        name = space["model_name"]
        names |= set(name["values"]) if isinstance(name, Mapping) else {name}
    return names


def settings_of(of: Plan, made: Search, number: int) -> dict[str, Any]:
    """All settings of one of the first trials, as it would be trained."""
    parameters = optuna_parameters(made.space, of.first_trials.settings[number])
    trial = optuna.trial.FixedTrial(parameters)
    trial.set_user_attr(REPLACED, replaced_values(made.space, of.first_trials.settings[number]))
    job = of.job.for_trial(made.space.suggest(trial))
    return {"model_name": job.model_name, **job.resolve_settings().model_dump()}


DATA = {
    "tiny": DataStatistics(20, 2, 100, 80, most_objects=3, object_side=0.5, small_object_side=0.4),
    "usual": USUAL,
    "many, with small objects": DataStatistics(
        120_000, 80, 4000, 6000, 30.0, most_objects=700, object_side=0.01, small_object_side=0.005
    ),
}
JOBS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "from scratch": {"weights": "none"},
    "in a hurry": {"limits": {"max_trials": 20, "timeout_minutes": 1}},
    "by a grid": {"sweep": {"sampling_algorithm": "grid"}},
    "for latency": {"objective": "latency"},
}


@pytest.mark.parametrize("values", JOBS.values(), ids=JOBS)
@pytest.mark.parametrize("gpus", [0, 1, 4])
@pytest.mark.parametrize("task", Task)
def test_every_plan_can_be_run(task: Task, gpus: int, values: dict[str, Any]) -> None:
    """Every space passes the check that a job file's passes, and the first trials lie in it."""
    for facts in DATA.values():
        chosen = plan(automatic(task, **values), facts, gpus)
        made = prepare_search(chosen.job)
        distributions = made.space.distributions()
        for number, first in enumerate(chosen.first_trials.settings):
            for name, value in optuna_parameters(made.space, first).items():
                distribution = distributions[name]
                assert distribution._contains(distribution.to_internal_repr(value)), (name, value)
            settings_of(chosen, made, number)
        assert chosen.first_trials.settings or "sweep" in values


def test_first_trials_are_the_models_usual_settings_in_turns() -> None:
    chosen = plan()
    made = prepare_search(chosen.job)
    known = [settings_of(chosen, made, number) for number in range(len(chosen.first_trials.settings))]
    assert [values["model_name"] for values in known] == [
        *("rfdetr-small", "yolo26s", "fasterrcnn_resnet50_fpn_v2", "rtdetrv2-r50"),
        *("dfine-m", "yolo11s"),
        *("rfdetr-medium", "yolo26m"),
        *("dfine-l", "yolo11m"),
    ]
    assert [values["learning_rate"] for values in known[:4]] == [1e-4, 1e-3, 1e-4, 1e-4]
    assert known[1]["recipe"] == "modern"
    assert known[1]["image_size"] == 640


def test_classes_that_are_rare_may_weigh_more() -> None:
    for imbalance, searched in ((1.9, False), (2.1, True)):
        facts = DataStatistics(400, 4, 500, 400, imbalance)
        space = sub_space(plan(automatic("image-classification"), facts), "seresnext")
        assert ("weighted_loss" in space) is searched
    assert "balanced_sampling" in sub_space(plan(facts=DataStatistics(400, 4, 500, 400, 6.0)), "yolo26s")


def test_epochs_and_batches_are_the_recipes_for_the_number_of_images() -> None:
    def of_trial(images: int, gpus: int = 1, model: str = "resnet50", **values: Any) -> dict[str, Any]:
        """The settings of a first trial, as its run completes them."""
        task = "image-classification" if model == "resnet50" else "object-detection"
        chosen = plan(automatic(task, model=model, **values), DataStatistics(images, 4, 500, 400), gpus)
        made = prepare_search(chosen.job)
        first = chosen.first_trials.settings[-1]
        trial = optuna.trial.FixedTrial(optuna_parameters(made.space, first))
        trial.set_user_attr(REPLACED, replaced_values(made.space, first))
        job = chosen.job.for_trial(made.space.suggest(trial))
        return job.for_images(images // gpus).resolve_settings().model_dump()

    few, many = of_trial(40), of_trial(100_000)
    # 40 images: batches of 8, 5 steps an epoch, so 20 epochs have 100 steps
    assert [few[name] for name in ("number_of_epochs", "training_batch_size")] == [20, 8]
    assert [many[name] for name in ("number_of_epochs", "training_batch_size")] == [15, 64]
    assert of_trial(100_000, weights="none")["number_of_epochs"] == 30
    # Each of two GPUs has 20 images, so 3 steps.
    assert of_trial(40, gpus=2)["number_of_epochs"] == 30
    # So that all have about as many evaluations.
    yolo = of_trial(400, model="yolo26s")
    assert (yolo["number_of_epochs"], yolo["evaluation_frequency"]) == (100, 8)
    # The one without recipes for numbers of images
    assert of_trial(400, model="rtdetr-l")["number_of_epochs"] == 60


def test_on_the_cpu_models_and_images_are_small() -> None:
    chosen = plan(gpus=0)
    assert tried(chosen) == {"yolo11n", "yolo26n", "fasterrcnn_resnet18_fpn"}
    assert sub_space(chosen, "yolo11n")["image_size"] == 320
    assert "trials on the CPU: small models" in chosen.first_trials.reasons
    assert "trials on 2 GPUs each" in plan(gpus=2).first_trials.reasons


def test_small_objects_change_the_size() -> None:
    facts = DataStatistics(400, 4, 1920, 1080, most_objects=150, object_side=0.05, small_object_side=0.031)
    chosen = plan(facts=facts)
    assert sub_space(chosen, "yolo26s")["image_size"]["values"] == [800, 960]
    (said,) = (
        reason
        for reason in chosen.first_trials.reasons
        if reason.startswith("yolo26s") and "epochs" in reason
    )
    assert "image_size 800: at 640 a quarter of the objects would be smaller than 20 pixels" in said
    # Room for all objects of an image, where a model has less of it: 1.2 · 150 = 180
    assert sub_space(chosen, "fasterrcnn_resnet50_fpn_v2")["box_detections_per_image"] == 200
    assert "box_detections_per_image" not in sub_space(chosen, "yolo26s")


def test_what_the_job_fixes_stays_as_it_is() -> None:
    settings = {
        "number_of_epochs": 7,
        "seed": 3,
        "img_size": 352,
        "learning_rate": 0.02,
        "training_batch_size": "auto",
    }
    chosen = plan(automatic(settings=settings))
    for space in chosen.job.search_space:
        assert not {"number_of_epochs", "learning_rate", "image_size", "training_batch_size"} & space.keys()
    assert chosen.job.settings == settings
    made = prepare_search(chosen.job)
    assert made.is_repeatable
    for number in range(len(chosen.first_trials.settings)):
        values = settings_of(chosen, made, number)
        assert (values["number_of_epochs"], values["learning_rate"], values["random_seed"]) == (7, 0.02, 3)
        assert values["image_size"] in (352, 640)  # the latter does not apply to R-CNNs
    only = plan(automatic(model="yolov5"))
    assert tried(only) == {"yolov5"}
    assert sub_space(only, "yolov5")["model_size"]["values"][0] == "medium"


def test_models_on_which_a_setting_has_no_effect_are_named() -> None:
    reasons = plan(automatic(settings={"momentum": 0.8})).first_trials.reasons
    assert [reason.split("-")[0] for reason in reasons if "no effect" in reason] == ["rfdetr", "rtdetrv2"]
    assert "rtdetrv2-r50: momentum has no effect with optimizer adamw, only with sgd" in reasons


def test_settings_that_mean_nothing_are_errors_before_the_data_are_read() -> None:
    with pytest.raises(JobError, match=r"job\.yml: number_of_epochs: .* greater than 0"):
        auto.check(automatic(settings={"number_of_epochs": 0}), "job.yml")
    with pytest.raises(JobError, match="mixup_alpha: applies only to"):
        prepare_search(auto.check(automatic(settings={"mixup_alpha": 0.2})))


def test_trials_are_searched_by_tpe_and_halved_unless_the_job_says_otherwise() -> None:
    made = prepare_search(plan().job)
    # 12 evaluations: rungs after 3 and 6
    assert made.pruner == SuccessiveHalvingPolicy(min_resource=3, reduction_factor=2)
    assert type(made.sampler).__name__ == "BayesianSampler"
    short = prepare_search(plan(automatic(settings={"number_of_epochs": 2})).job)
    assert short.pruner == SuccessiveHalvingPolicy(min_resource=1, reduction_factor=2)
    assert isinstance(
        prepare_search(plan(automatic(settings={"number_of_epochs": 1})).job).pruner, optuna.pruners.NopPruner
    )
    policy = {"type": "bandit", "slack_factor": 0.1}
    own = prepare_search(plan(automatic(sweep={"early_termination": policy})).job)
    assert own.pruner == BanditPolicy(slack_factor=0.1)
    assert type(own.sampler).__name__ == "BayesianSampler"
    sobol = {"type": "random", "rule": "sobol"}
    by_sobol = prepare_search(plan(automatic(sweep={"sampling_algorithm": sobol})).job)
    assert type(by_sobol.sampler).__name__ == "SobolSampler"
    # Without a policy in its `sweep` a job's trials run to their end, as in Azure.
    assert isinstance(by_sobol.pruner, optuna.pruners.NopPruner)
    two = prepare_search(plan(automatic(objective="latency")).job)
    assert isinstance(two.pruner, optuna.pruners.NopPruner)


def test_a_grid_has_choices_alone_and_an_order_of_its_own() -> None:
    chosen = plan(automatic(sweep={"sampling_algorithm": "grid"}), gpus=0)
    assert chosen.first_trials.settings == ()
    space = sub_space(chosen, "yolo11n")
    assert space["learning_rate"] == {"type": "choice", "values": [0.001, 0.00033, 0.003]}
    prepare_search(chosen.job)


def study_of(made: Search) -> optuna.Study:
    return optuna.create_study(sampler=made.sampler, pruner=made.pruner, direction="maximize")


def learning_rates(study: optuna.Study, made: Search, count: int) -> list[float]:
    """Of the next trials, each of which is told a value."""
    found = []
    for _ in range(count):
        trial = study.ask()
        found.append(made.space.suggest(trial)["learning_rate"])
        study.tell(trial, 0.5)
    return found


def test_first_trials_come_first_and_in_order_then_the_sampler_proposes() -> None:
    chosen = plan(automatic(settings={"seed": 1}), gpus=0)
    made = prepare_search(chosen.job)
    study = study_of(made)
    chosen.first_trials.enqueue_missing(study, made.space, max_trials=10)
    usual = [first["learning_rate"] for first in chosen.first_trials.settings]
    assert learning_rates(study, made, 3) == usual == [0.001, 0.0001, 0.001]
    proposed = learning_rates(study, made, 5)
    assert len(set(proposed)) == 5
    assert not set(proposed) & set(usual)


def test_no_more_are_queued_than_there_may_be_trials(tmp_path: Path) -> None:
    chosen = plan(gpus=0)
    chosen.first_trials.write(tmp_path, chosen.job.search_space)
    made = prepare_search(chosen.job)
    study = study_of(made)
    FirstTrials.read(tmp_path).enqueue_missing(study, made.space, max_trials=2)
    assert len(study.trials) == 2
    # A stop in between, and further attempts, change nothing.
    FirstTrials.read(tmp_path).enqueue_missing(study, made.space, max_trials=2)
    study.add_trial(next_attempt(study.trials[0]))
    FirstTrials.read(tmp_path).enqueue_missing(study, made.space, max_trials=2)
    assert len(study.trials) == 3
    # Of more trials the next are again those to begin with, as long as there are any.
    FirstTrials.read(tmp_path).enqueue_missing(study, made.space, max_trials=8)
    assert len(study.trials) == 4
    FirstTrials.read(tmp_path / "nothing").enqueue_missing(study, made.space, max_trials=8)
    assert len(study.trials) == 4


def test_who_goes_on_searches_the_same(tmp_path: Path) -> None:
    chosen = plan()
    file = tmp_path / "job.yaml"
    file.write_text(chosen.job.to_yaml(), encoding="utf-8")
    again = Job.read(file)
    assert not auto.is_automatic(again)
    assert prepare_search(again).space == prepare_search(chosen.job).space
    assert prepare_search(again).pruner == prepare_search(chosen.job).pruner
    assert again.to_yaml() == chosen.job.to_yaml()


def test_the_plan_stands_in_the_runs_directory(tmp_path: Path) -> None:
    chosen = plan()
    chosen.first_trials.write(tmp_path, chosen.job.search_space)
    content = yaml.safe_load((tmp_path / "search_space.yaml").read_text("utf-8"))
    assert content["reasons"] == list(chosen.first_trials.reasons)
    assert content["first_trials"] == list(chosen.first_trials.settings)
    assert content["search_space"] == list(chosen.job.search_space)
    assert any("under AGPL-3.0" in reason for reason in chosen.first_trials.reasons)


def test_weak_trials_are_given_up_at_a_quarter_and_a_half() -> None:
    made = prepare_search(plan(automatic(settings={"number_of_epochs": 12})).job)
    study = study_of(made)
    ended = {}
    for number, level in enumerate((0.9, 0.5, 0.8, 0.1, 0.95)):
        trial = study.ask()
        for evaluation in range(1, 13):
            trial.report(level, evaluation)
            if evaluation < 12 and trial.should_prune():
                ended[number] = evaluation
                break
        study.tell(trial, level)
    # At 3: 0.9 alone; 0.5 the second of two; 0.8 the second of three, of which two go on; 0.1 the last of
    # four; 0.95 the first. At 6: 0.8 is the second of two there.
    assert ended == {1: 3, 2: 6, 3: 3}


def test_a_dry_run_with_the_data_shows_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(Task.DETECTION, tmp_path / "data", images=10, seed=1)
    given = ("--task", "object-detection", "--data", data.train, "--max-trials", 3, "--gpus", 0)
    cli.app(
        ["fit", "--dry-run", "--check-data", *map(str, given)],
        exit_on_error=False,
        result_action="return_value",
    )
    printed = capsys.readouterr().out
    assert "# trials on the CPU" in printed
    assert "# 7 training images of" in printed
    content = yaml.safe_load(printed)
    assert "search_space" not in content["job"]
    models = [trial["training_parameters"]["model_name"] for trial in content["trials"]]
    assert models == ["yolo11n", "fasterrcnn_resnet18_fpn", "yolo26n"]
    assert content["search_space"][0]["model_name"]["values"] == ["yolo11n", "yolo26n"]


def test_the_docs_tell_what_is_done() -> None:
    page = Path(__file__).resolve().parents[2] / "docs/automode.md"
    due = "it is due: make docs"
    assert page.read_text("utf-8") == auto_docs.page(), due


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("warm_processes")
def test_a_whole_sweep_without_a_search_space(tmp_path: Path) -> None:
    data = make(Task.CLASSIFICATION, tmp_path / "data", images=20, seed=1)
    job = Job(
        task=Task.CLASSIFICATION,
        training_data=(str(data.train),),
        validation_data=(str(data.validation),),
        model="timm/test_resnet",
        weights="none",
        gpus=0,
        output=tmp_path / "run",
        limits={"max_trials": 3, "max_concurrent_trials": 2},
        settings={
            "number_of_epochs": 2,
            "number_of_workers": 0,
            "training_crop_size": 32,
            "validation_crop_size": 32,
            "random_seed": 3,
        },
    )
    run = trainer.fit(job)
    with (run.directory / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    assert {row["recipe"] for row in rows} == {"modern"}
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates[0] == 5e-4
    assert 5e-4 not in rates[1:]
    result = run.read_result()
    assert (result.model, result.value) == ("timm/test_resnet", max(float(row["accuracy"]) for row in rows))
    written = (run.directory / "job.yaml").read_text("utf-8")
    # More trials are drawn from the same space.
    plan_of_run = (run.directory / "search_space.yaml").read_text("utf-8")
    trainer.resume(run.directory, limits={"max_trials": 4})
    with (run.directory / "trials.csv").open(encoding="utf-8") as file:
        more = list(csv.DictReader(file))
    assert more[:3] == rows
    assert len(more) == 4
    assert (run.directory / "search_space.yaml").read_text("utf-8") == plan_of_run
    before, after = (yaml.safe_load(text) for text in (written, run.job.read_text("utf-8")))
    assert after["search_space"] == before["search_space"]
    log = run.log.read_text("utf-8")
    assert "16 training images of" in log
    assert "by the modern recipe: 2 epochs" in log


def test_first_trial_of_classifiers_with_weights_is_a_probe_alone() -> None:
    chosen = plan(automatic("image-classification"))
    made = prepare_search(chosen.job)
    probe, usual = (settings_of(chosen, made, number) for number in (0, 1))
    assert (probe["probe_first"], probe["number_of_epochs"]) == (True, 0)
    assert usual["number_of_epochs"] > 0
    changed = {name for name in probe if probe[name] != usual[name]}
    assert changed == {"number_of_epochs", "probe_first"}
    study = study_of(made)
    chosen.first_trials.enqueue_missing(study, made.space, max_trials=2)
    proposed = [made.space.suggest(study.ask())["number_of_epochs"] for _ in range(2)]
    assert proposed == [0, usual["number_of_epochs"]]
    settings = {"settings": {"number_of_epochs": 5}}, {"settings": {"probe_first": False}}
    for other in (*settings, {"weights": "none"}):
        of_other = plan(automatic("image-classification", **other))
        assert all(first.get("number_of_epochs") != 0 for first in of_other.first_trials.settings)


def test_only_the_first_trial_of_a_frozen_backbone_is_its_probe_alone() -> None:
    chosen = plan(automatic("image-classification", settings={"layers_to_freeze": "backbone"}))
    made = prepare_search(chosen.job)
    trials = [settings_of(chosen, made, number) for number in range(3)]
    # 400 images: 15 epochs, as without a frozen backbone
    assert [trial["number_of_epochs"] for trial in trials] == [0, 15, 15]
    assert all(trial["probe_first"] for trial in trials)
