"""Jobs: checked, and written so that they run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import trainer
from trainer.errors import JobError
from trainer.job import sweep as job_sweep
from trainer.job.changes import override
from trainer.job.job import Job
from trainer.job.sweep import Limits
from trainer.settings import Settings
from trainer.tasks import Task


def read_again(folder: Path, job: Job) -> Job:
    """The job as it comes back from the file that it writes."""
    path = folder / "job.yaml"
    path.write_text(job.to_yaml(), encoding="utf-8")
    again = Job.read(path)
    assert again.ignored_keys == ()
    return again


@pytest.mark.parametrize("size", [0, 1, -0.1, "half", float("nan")])
def test_validation_data_size_must_be_between_0_and_1(size: Any) -> None:
    with pytest.raises(JobError, match="validation_data_size"):
        Job.of("", task="object-detection", training_data="a", validation_data_size=size)


def test_missing_keys_are_reported_alone() -> None:
    with pytest.raises(JobError) as caught:
        Job.of("job.yml", model="resnet18")
    assert {str(problem) for problem in caught.value.problems} == {
        "job.yml: task: field required; add it or give --task",
        "job.yml: training_data: field required; add it or give --data",
    }
    with pytest.raises(JobError, match="training_data"):
        Job.of("job.yml", task="object-detection", training_data=())


def test_override_replaces_a_setting_under_any_name() -> None:
    values = {"lr_scheduler": "step", "momentum": 0.5, "learning_rte": 1}
    flags = {"learning_rate_scheduler": "warmup_cosine", "nesterov": False}
    assert override(values, flags) == {
        "momentum": 0.5,
        "learning_rte": 1,  # left for the check of the settings
        "learning_rate_scheduler": "warmup_cosine",
        "nesterov": False,
    }


def test_weights_come_from_job_environment_or_publisher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare = Job(task="object-detection", training_data="a")
    given = Job(task="object-detection", training_data="a", weights="/my/weights")
    assert (bare.weights_choice, given.weights_choice) == ("pretrained", "/my/weights")
    monkeypatch.setenv("TRAINER_WEIGHTS", "/shared/weights")
    assert (bare.weights_choice, given.weights_choice) == ("/shared/weights", "/my/weights")
    monkeypatch.setenv("TRAINER_WEIGHTS", "")
    assert bare.weights_choice == "pretrained"


def test_checkpoint_run_id_names_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_WEIGHTS", "/shared/weights")
    run = "0123456789abcdef0123456789abcdef"

    def choice(checkpoint_run_id: Any, weights: str | None = None) -> str:
        settings = {"checkpoint_run_id": checkpoint_run_id}
        job = Job(task="object-detection", training_data="a", weights=weights, settings=settings)
        if isinstance(checkpoint_run_id, str | None):
            assert job.resolve_settings().checkpoint_run_id == checkpoint_run_id
        return job.weights_choice

    assert choice(run) == f"runs:/{run}"
    assert choice(str(tmp_path)) == str(tmp_path)
    assert choice("runs/no such run") == "runs/no such run"
    assert choice(run, "none") == "none"
    assert choice(None) == "/shared/weights"
    for wrong in (3, True, ""):
        job = Job(task="object-detection", training_data="a", settings={"checkpoint_run_id": wrong})
        with pytest.raises(JobError, match="checkpoint_run_id"):
            job.resolve_settings()


def test_training_from_scratch_freezes_no_layers_by_default() -> None:
    def frozen(weights: str, **settings: Any) -> int | None:
        job = Job(task="object-detection", training_data="a", weights=weights, settings=settings)
        return job.resolve_settings().layers_to_freeze

    assert frozen("pretrained") == 2
    assert frozen("none") is None
    assert frozen("none", layers_to_freeze=1) == 1
    assert frozen("pretrained", layers_to_freeze=None) is None


def test_batch_norms_are_frozen_only_with_weights_to_start_from() -> None:
    def resolved(weights: str, model: str = "resnet18", **settings: Any) -> bool:
        job = Job(
            task="image-classification", training_data="a", model=model, weights=weights, settings=settings
        )
        return job.resolve_settings().freeze_batch_norm

    assert resolved("pretrained", freeze_batch_norm=True)
    assert not resolved("none")
    with pytest.raises(JobError, match=r"freeze_batch_norm: needs weights to start from.*--weights"):
        resolved("none", freeze_batch_norm=True)


def test_models_without_batch_norms_do_not_take_freeze_batch_norm() -> None:
    job = Job(task="object-detection", training_data="a", model="rfdetr-nano", weights="none")
    assert not job.resolve_settings().freeze_batch_norm
    with pytest.raises(JobError, match="freeze_batch_norm: applies only to classifiers, R-CNNs"):
        job.changed(settings={"freeze_batch_norm": True}).resolve_settings()


ROUND_TRIPS: list[dict[str, Any]] = [
    {"task": "image-classification", "model": "resnet18", "name": "첫 번째"},
    {
        "task": "image-classification",
        "model": "vitb16r224",
        "settings": {"gradient_clip_norm": None, "train_crop_size": 448, "valid_crop_size": 448},
    },
    {"task": "image-classification", "model": "vits16r224", "settings": {"gradient_clip_value": 3}},
    {"task": "image-classification", "settings": {"gradient_clip_value": None, "weighted_loss": 2}},
    {"task": "image-classification-multilabel", "primary_metric": "accuracy", "settings": {"seed": 3}},
    {"task": "object-detection", "weights": "none", "gpus": 0, "processes": 2},
    {"task": "object-detection", "settings": {"layers_to_freeze": None, "min_size": 300}},
    {
        "task": "object-detection",
        "model": "yolov5",
        "skip_invalid": True,
        "calibrate": True,
        "settings": {
            "model_size": "xlarge",
            "multi_scale": 1,
            "advanced_settings": '{"apply_mosaic_for_yolo": false}',
        },
    },
    {"task": "object-detection", "model": "yolo11n", "validation_data": ("v1.jsonl", "검증"), "nodes": 3},
    {
        "task": "instance-segmentation",
        "validation_data_size": 0.35,
        "datastores": {"blob": "/mnt/blob", "far": "https://example.org/blob"},
        "settings": {"log_validation_loss": "Disable", "max_number_of_polygon_points": 12},
    },
]


@pytest.mark.parametrize("values", ROUND_TRIPS, ids=lambda values: str(values.get("model", values["task"])))
def test_written_job_is_read_as_the_same_job(tmp_path: Path, values: dict[str, Any]) -> None:
    job = Job.of("", training_data=("훈련.jsonl",), **values)
    text = job.to_yaml()
    again = read_again(tmp_path, job)
    assert again.resolve_settings() == job.resolve_settings()
    assert again.to_yaml() == text
    same = ("task", "model_name", "metric", "weights_choice", "validation_data_size", "gpus", "processes")
    for name in (*same, "datastores", "skip_invalid", "calibrate", "name", "nodes", "limits"):
        assert getattr(again, name) == getattr(job, name), name
    assert [Path(path) for path in again.training_data] == [Path.cwd() / "훈련.jsonl"]
    assert [Path(path) for path in again.validation_data] == [Path.cwd() / v for v in job.validation_data]
    assert "훈련.jsonl" in text  # readable, not escaped


def test_written_job_has_azures_form_and_all_applicable_settings() -> None:
    text = Job(task="object-detection", model="yolo11n", training_data="a.jsonl").to_yaml()
    written = yaml.safe_load(text)
    assert (written["type"], written["task"]) == ("automl", "image_object_detection")
    assert written["training_data"] == {"path": str(Path.cwd() / "a.jsonl"), "type": "mltable"}
    parameters = written["training_parameters"]
    assert parameters["model_name"] == "yolo11n"
    assert parameters.keys() - {"model_name"} <= Settings.model_fields.keys()
    assert parameters["learning_rate"] == 0.01
    assert not {"min_size", "focal_gamma", "model_size", "mask_pixel_score_threshold"} & parameters.keys()


def test_constructor_takes_paths_and_task_names() -> None:
    job = Job(task="image_object_detection", training_data=Path("a.jsonl"), validation_data=["b", "c"])
    assert (job.task, job.training_data, job.validation_data) == (Task.DETECTION, ("a.jsonl",), ("b", "c"))
    with pytest.raises(ValueError, match="Extra inputs"):
        Job(task="object-detection", training_data="a", learning_rate=0.1)


SPACE: list[dict[str, Any]] = [
    {"model_name": "yolov5", "lr_scheduler": "choice('step', 'warmup_cosine')", "learning_rate": 0.01},
    {
        "model_name": {"type": "choice", "values": ["fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn"]},
        "min_size": {"type": "choice", "values": [600, 800]},
    },
]


def sweeping(**values: Any) -> Job:
    values = {"task": "object-detection", "training_data": "a.jsonl", "search_space": SPACE, **values}
    return Job.of("", **values)


@pytest.mark.parametrize(
    "values",
    [
        {"limits": {"max_trials": 20, "max_concurrent_trials": 4, "timeout_minutes": 60}},
        {"sweep": {"sampling_algorithm": {"type": "random", "seed": 1, "rule": "sobol", "logbase": 10}}},
        {
            "sweep": {
                "sampling_algorithm": "SamplingAlgorithmType.GRID",
                "early_termination": {"type": "median_stopping"},
            }
        },
        {"model": "yolov5", "settings": {"seed": 7, "min_size": 500, "layers_to_freeze": None}},
        {"search_space": (), "limits": {"max_trials": 2}, "data_assets": {"x": "/data/x"}},
    ],
)
def test_written_sweep_is_read_as_the_same_sweep(tmp_path: Path, values: dict[str, Any]) -> None:
    job = sweeping(**values)
    again = read_again(tmp_path, job)
    for name in ("limits", "sweep", "search_space", "model", "data_assets"):
        assert getattr(again, name) == getattr(job, name), name
    assert again.to_yaml() == job.to_yaml()
    assert again.sweeps


def test_written_sweep_has_only_the_fixed_settings() -> None:
    written = yaml.safe_load(sweeping(settings={"lr_scheduler": "step"}).to_yaml())
    assert written["training_parameters"] == {"learning_rate_scheduler": "step"}


def test_sweeps_needs_several_trials_or_a_search_space() -> None:
    assert sweeping().sweeps
    assert sweeping(search_space=(), limits={"max_trials": 2}).sweeps
    single = sweeping(search_space=(), limits={"timeout_minutes": 5})
    assert not single.sweeps
    with pytest.raises(JobError, match="sweep needs a search_space"):
        sweeping(search_space=(), sweep={"sampling_algorithm": "grid"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("objective", "latency"), ("max_latency_ms", 5.0), ("storage", "sqlite:///s.db"), ("study", "fridge")],
)
def test_sweep_options_of_a_single_run_are_rejected(name: str, value: Any) -> None:
    with pytest.raises(JobError, match=f"{name} needs a search_space or limits.max_trials over 1"):
        Job.of("", task="object-detection", training_data=("a.jsonl",), **{name: value})
    limits = {"max_trials": 2}
    assert Job.of("", task="object-detection", training_data=("a.jsonl",), limits=limits, **{name: value})


@pytest.mark.parametrize(
    ("values", "field", "said"),
    [
        ({"limits": {"max_trials": 0}}, "limits.max_trials", "greater than or equal to 1"),
        ({"limits": {"max_trials": 1001}}, "limits.max_trials", "1000"),
        ({"limits": {"max_trials": True}}, "limits.max_trials", "whole number"),
        (
            {"limits": {"max_trials": 200, "max_concurrent_trials": 101}},
            "limits.max_concurrent_trials",
            "100",
        ),
        ({"limits": {"max_trials": 2, "max_concurrent_trials": 3}}, "limits", "at most max_trials (2)"),
        ({"limits": {"timeout_minutes": 0}}, "limits.timeout_minutes", "greater than 0"),
        ({"sweep": {"sampling_algorithm": "greedy"}}, "sweep.sampling_algorithm.type", "'bayesian'"),
        (
            {"sweep": {"sampling_algorithm": {"type": "grid", "rule": "sobol"}}},
            "sweep.sampling_algorithm",
            "option of random sampling",
        ),
        (
            {"sweep": {"sampling_algorithm": {"logbase": "two"}}},
            "sweep.sampling_algorithm.logbase",
            "must be e or a positive number",
        ),
        ({"sweep": {"early_termination": "bandit"}}, "sweep.early_termination", "dictionary"),
        ({"search_space": [{}]}, "search_space", "list of such maps"),
        ({"nodes": 0}, "nodes", "greater than 0"),
    ],
)
def test_wrong_value_of_a_sweep_is_reported_with_its_key(
    values: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(JobError) as caught:
        sweeping(**values)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert said in problem.rule


def test_proposal_replaces_the_jobs_settings() -> None:
    job = sweeping(
        settings={"seed": 1, "min_size": 500, "learning_rate_scheduler": "step", "number_of_epochs": 3},
        limits={"max_trials": 5, "timeout_minutes": 60},
        sweep={},
        weights="none",
    )
    trial = job.for_trial({"model_name": "fasterrcnn_resnet50_fpn", "lr_scheduler": "warmup_cosine"})
    assert not trial.sweeps
    settings = trial.resolve_settings()
    assert (settings.min_size, settings.random_seed, settings.number_of_epochs) == (500, 1, 3)
    assert settings.learning_rate_scheduler == "warmup_cosine"
    assert trial.model_name == "fasterrcnn_resnet50_fpn"
    # What does not apply to yolov5 is for the other models of the space.
    assert "min_size" not in job.for_trial({"model_name": "yolov5"}).settings
    # Without a proposed model there is no other to which it could mean something.
    with pytest.raises(JobError, match="min_size: applies only to R-CNNs, not to yolov5"):
        job.model_copy(update={"model": "yolov5"}).for_trial({"learning_rate": 0.1}).resolve_settings()
    assert job.for_trial({}).model_name == "fasterrcnn_resnet50_fpn"


def test_override_space_fixes_parameters() -> None:
    flags = {"learning_rate_scheduler": "step", "number_of_epochs": 2}
    assert job_sweep.override_space(SPACE, flags, None) == [{**SPACE[0], "lr_scheduler": "step"}, SPACE[1]]
    assert job_sweep.override_space(SPACE, {}, "retinanet_resnet50_fpn") == [
        {**SPACE[1], "model_name": "retinanet_resnet50_fpn"}
    ]
    text = {"model_name": "choice('yolov5', \"yolo11n\")", "learning_rate": "uniform(0.1, 0.2)"}
    assert job_sweep.override_space(text, {}, "yolo11n") == [{**text, "model_name": "yolo11n"}]
    open_space = [{"learning_rate": "uniform(0.1, 0.2)"}]
    assert job_sweep.override_space(open_space, {}, "yolo11n") == [{**open_space[0], "model_name": "yolo11n"}]
    with pytest.raises(JobError, match="yolov5") as caught:
        job_sweep.override_space(SPACE, {}, "yolo11n")
    assert str(caught.value.problems[0]).startswith("--model: must be a model of the search space")


def test_primary_metric_may_have_the_rest_spelling() -> None:
    assert sweeping(primary_metric="MeanAveragePrecision").metric == "mean_average_precision"
    data = {"training_data": "a", "task": "image-classification-multilabel"}
    assert [Job.of("", primary_metric=name, **data).metric for name in ("IOU", "Iou", "Accuracy")] == [
        "iou", "iou", "accuracy",
    ]  # fmt: skip


def test_primary_metric_may_be_any_that_evaluations_report() -> None:
    def of(task: str, metric: str, **settings: Any) -> Job:
        return Job.of(task=task, training_data="a", primary_metric=metric, settings=settings)

    assert of("image-classification", "AUCWeighted").metric == "AUC_weighted"
    assert of("object-detection", "recall").resolve_settings().validation_metric_type == "voc"
    assert of("object-detection", "map_50").resolve_settings().validation_metric_type == "coco_voc"
    coco = of("instance-segmentation", "mAP@[.5:.95]", validation_metric_type="coco")
    assert (coco.metric, coco.resolve_settings().validation_metric_type) == ("map", "coco")
    again = of("object-detection", "log_loss", log_validation_loss="Disable")
    assert again.to_dict()["training_parameters"]["log_validation_loss"] == "Enable"
    with pytest.raises(JobError, match=r"primary_metric: .*got 'acuracy'; did you mean accuracy\?"):
        of("image-classification", "acuracy")


def test_constructor_takes_paths_of_registered_data() -> None:
    assets = {"fridge": "data/fridge", "fridge:2": "data/second"}
    job = Job(
        task="object-detection", training_data=["azureml:fridge:1", "azureml:fridge:2"], data_assets=assets
    )
    assert job.training_data == ("data/fridge", "data/second")
    with pytest.raises(ValueError, match="--data-asset fridge=PATH"):
        Job(task="object-detection", training_data="azureml:fridge@latest")


def test_changed_replaces_settings_and_limits_one_by_one() -> None:
    job = sweeping(
        limits={"max_trials": 4, "timeout_minutes": 60}, settings={"seed": 7, "lr_scheduler": "step"}
    )
    changed = job.changed(
        limits={"max_trials": 9}, settings={"learning_rate_scheduler": "warmup_cosine"}, gpus=0
    )
    assert changed.limits.model_dump() == {"max_trials": 9, "max_concurrent_trials": 1, "timeout_minutes": 60}
    assert changed.settings == {"seed": 7, "learning_rate_scheduler": "warmup_cosine"}
    assert (changed.gpus, changed.training_data) == (0, job.training_data)
    assert "nodes" not in changed.model_fields_set  # a launcher may still choose it
    assert job.changed(limits=Limits(max_trials=9)).limits == changed.limits
    with pytest.raises(JobError, match=r"job.yaml: gpus: must be auto"):
        job.changed("job.yaml", gpus=-1)


def test_resume_turns_no_single_run_into_a_sweep(tmp_path: Path) -> None:
    job = Job(task="object-detection", training_data="a.jsonl", model="yolo11n")
    (tmp_path / "job.yaml").write_text(job.to_yaml(), encoding="utf-8")
    with pytest.raises(JobError, match="cannot turn a single run into a sweep"):
        trainer.resume(tmp_path, limits={"max_trials": 3})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("azureml:./train", "./train"),
        ("azureml:/data/train", "/data/train"),
        ("azureml:data/train", "data/train"),
        ("file:./train", "./train"),
        ("azureml:azureml://datastores/x/paths/y", "azureml://datastores/x/paths/y"),
        ("azureml://datastores/x/paths/y", "azureml://datastores/x/paths/y"),
        ("file:///data/train", "file:///data/train"),
    ],
)
def test_azures_prefixes_of_paths_are_read_in_python_too(given: str, meant: str) -> None:
    job = Job(task="object-detection", training_data=[given, "other"], validation_data=given)
    assert (job.training_data, job.validation_data) == ((meant, "other"), (meant,))


@pytest.mark.parametrize("prefix", ["", "azureml:", "file:"])
def test_home_directory_of_a_path_is_found(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "job.yml"
    path.write_text(f"task: object-detection\ntraining_data: '{prefix}~/train'\n")
    for job in (Job.read(path), Job(task="object-detection", training_data=f"{prefix}~/train")):
        assert job.training_data == (str(tmp_path / "train"),)


def test_home_directory_of_nobody_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "job.yml"
    local = "{weights: ~nobody-here/w, tracking_uri: ~nobody-here/m, datastores: {a: ~nobody-here/d}}"
    path.write_text(f"task: object-detection\ntraining_data: ~nobody-here/x\nlocal: {local}\n")
    assert Job.read(path).weights_choice == str(tmp_path / "~nobody-here/w")
    job = Job(task="object-detection", training_data="x", settings={"checkpoint_run_id": "~nobody-here"})
    assert job.weights_choice == "runs:/~nobody-here"
