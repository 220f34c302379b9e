"""Jobs: read from Azure's YAML form, checked, and written so that they run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer import job as jobs
from trainer.errors import JobError, Problem
from trainer.job import Job
from trainer.settings import Settings
from trainer.tasks import Task

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

AZURE = """\
$schema: https://azuremlsdk2.blob.core.windows.net/preview/0.0.1/autoMLJob.schema.json
type: automl
name: dpv2-cli-automl-image-object-detection-experiment
experiment_name: dpv2-cli-automl-image-object-detection-experiment
description: An Image Object detection job using fridge items dataset
compute: azureml:gpu-cluster
task: image_object_detection
log_verbosity: debug
primary_metric: mean_average_precision
target_column_name: label
tags: {team: vision}
properties: {node_count_per_trial: "2"}
resources: {instance_count: 4}
training_data:
  path: data/training-mltable-folder
  type: mltable
  mode: eval_mount
validation_data:
  path: data/validation-mltable-folder
  type: mltable
limits:
  max_trials: 1
  max_concurrent_trials: 1
training_parameters:
  model_name: yolov5
  early_stopping: True
  evaluation_frequency: 1
  learning_rate: 1e-3
"""


def write(folder: Path, text: str, name: str = "job.yml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_job(folder: Path, **changes: Any) -> Path:
    """A small job file with keys added or, where the value is None, taken away."""
    content: dict[str, Any] = {
        "type": "automl",
        "task": "image_classification",
        "training_data": {"path": "train.jsonl", "type": "mltable"},
        **changes,
    }
    content = {key: value for key, value in content.items() if value is not None}
    return write(folder, yaml.safe_dump(content, allow_unicode=True))


def read_job(path: Path) -> Job:
    values, _ = jobs.read(path)
    return jobs.make(str(path), **values)


def problems_of(path: Path) -> list[Problem]:
    with pytest.raises(JobError) as caught:
        read_job(path).resolve_settings()
    return list(caught.value.problems)


def test_an_azure_job_is_read_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, AZURE)
    job = read_job(path)
    assert job.task is Task.DETECTION
    assert job.training_data == (str(tmp_path / "data/training-mltable-folder"),)
    assert job.validation_data == (str(tmp_path / "data/validation-mltable-folder"),)
    assert (job.model_name, job.metric) == ("yolov5", "mean_average_precision")
    assert job.name == "dpv2-cli-automl-image-object-detection-experiment"
    settings = job.resolve_settings()
    assert (settings.learning_rate, settings.number_of_epochs) == (0.001, 30)


def test_keys_that_mean_something_in_the_cloud_alone_are_named(tmp_path: Path) -> None:
    _, ignored = jobs.read(write(tmp_path, AZURE))
    assert ignored == [
        "compute", "description", "experiment_name", "log_verbosity", "properties", "resources", "tags",
        "target_column_name",
    ]  # fmt: skip


@pytest.mark.parametrize("spelled", ["image_classification", "image-classification", "Image_Classification"])
def test_any_spelling_of_the_task_will_do(tmp_path: Path, spelled: str) -> None:
    assert read_job(write_job(tmp_path, task=spelled)).task is Task.CLASSIFICATION


def test_a_relative_path_starts_at_the_file_not_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "작업" / "사과 배"
    path = write(
        folder,
        "task: image_object_detection\n"
        "training_data:\n  path: ./데이터/훈련.jsonl\n  type: mltable\n"
        "local:\n  weights: 가중치/yolo.pt\n  datastores: {저장소: ./저장, far: abfs://box/images}\n",
        "작업.yml",
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    job = read_job(path.relative_to(tmp_path))
    again = write(elsewhere, job.to_yaml())  # absolute by now
    monkeypatch.chdir(elsewhere)
    for each in (read_job(path), read_job(again)):
        assert Path(each.training_data[0]) == folder / "데이터/훈련.jsonl"
        assert each.weights == str(folder / "가중치/yolo.pt")
        assert each.datastores == {"저장소": str(folder / "저장"), "far": "abfs://box/images"}


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/train.jsonl",
        "file:///data/train.jsonl",
        "azureml://datastores/workspaceblobstore/paths/train",
        "azureml:fridge-items:1",
        "/absolute/train.jsonl",
    ],
)
def test_urls_and_absolute_paths_stay_as_they_are(tmp_path: Path, url: str) -> None:
    job = read_job(write_job(tmp_path, training_data={"path": url, "type": "mltable"}))
    assert job.training_data == (url,)
    assert read_job(write(tmp_path, job.to_yaml())).training_data == (url,)


def test_several_data_sets_are_a_list(tmp_path: Path) -> None:
    job = read_job(write_job(tmp_path, training_data=[{"path": "a.jsonl"}, "b"]))
    assert job.training_data == (str(tmp_path / "a.jsonl"), str(tmp_path / "b"))
    assert read_job(write(tmp_path, job.to_yaml())).training_data == job.training_data


@pytest.mark.parametrize("data", [{"type": "mltable"}, {"path": ""}, {"path": 3}, [{"path": "a"}, {}]])
def test_data_without_a_path_is_refused(tmp_path: Path, data: Any) -> None:
    (problem,) = problems_of(write_job(tmp_path, training_data=data))
    assert problem.field == "training_data.path"
    assert problem.where.endswith("job.yml")


def test_unknown_keys_get_the_nearest_known_one_all_at_once(tmp_path: Path) -> None:
    changes = {
        "primary_metrics": "accuracy",
        "trainning_parameters": {},
        "qwertz": 1,
        "limits": {"max_trail": 3},
        "local": {"gpu": 1, "weights": "none"},
    }
    problems = {problem.field: problem for problem in problems_of(write_job(tmp_path, **changes))}
    assert problems.keys() == {
        "primary_metrics",
        "trainning_parameters",
        "qwertz",
        "limits.max_trail",
        "local.gpu",
    }
    assert problems["primary_metrics"].hint == "did you mean primary_metric?"
    assert problems["trainning_parameters"].hint == "did you mean training_parameters?"
    assert "max_trials" in problems["limits.max_trail"].hint
    assert "gpus" in problems["local.gpu"].hint


def test_an_unknown_key_of_a_data_entry_is_refused(tmp_path: Path) -> None:
    (problem,) = problems_of(write_job(tmp_path, training_data={"path": "a", "paht": "b"}))
    assert problem.field == "training_data.paht"


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("sweep", {"sweep": {"sampling_algorithm": "random"}}),
        ("search_space", {"search_space": [{"model_name": {"type": "choice", "values": ["yolov5"]}}]}),
        ("limits.max_trials", {"limits": {"max_trials": 10}}),
    ],
)
def test_a_sweep_is_refused_not_passed_over(tmp_path: Path, key: str, changes: dict[str, Any]) -> None:
    (problem,) = problems_of(write_job(tmp_path, **changes))
    assert problem.field == key
    assert "sweep" in problem.rule
    assert problem.hint == "give fixed values under training_parameters"


def test_another_type_of_job_is_refused(tmp_path: Path) -> None:
    (problem,) = problems_of(write_job(tmp_path, type="command"))
    assert str(problem).endswith("type: must be automl, got 'command'")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"task: [", "line 1"),
        (b"- a\n- b\n", "must hold a YAML mapping"),
        (b"", "must hold a YAML mapping"),
        (b"task: \xb0\xa1\n", "utf-8"),  # Korean in EUC-KR
        (b"task: image_classification\ntask: image_object_detection\n", "'task' stands twice"),
        (b"training_parameters:\n  seed: 1\n  seed: 2\n", "'seed' stands twice"),
        (b"!!python/object/apply:os.system [echo]\n", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_job_is_refused_with_the_reason(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "job.yml"
    path.write_bytes(content)
    with pytest.raises(JobError) as caught:
        jobs.read(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.yml", tmp_path):
        with pytest.raises(JobError, match="cannot be read"):
            jobs.read(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "job.yml"
    path.write_bytes(b"\xef\xbb\xbf" + b"task: image_classification\ntraining_data: {path: a}\n")
    assert read_job(path).task is Task.CLASSIFICATION


@pytest.mark.parametrize("key", ["training_parameters", "limits", "local"])
@pytest.mark.parametrize("value", [["a"], "a", 5])
def test_a_section_that_is_no_mapping_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    (problem,) = problems_of(write_job(tmp_path, **{key: value}))
    assert (problem.field, problem.rule, problem.got) == (key, "must be a mapping", repr(value))


@pytest.mark.parametrize("stores", [["a"], {"name": 3}, {"name": ""}, "a=b"])
def test_datastores_map_names_to_places(tmp_path: Path, stores: Any) -> None:
    (problem,) = problems_of(write_job(tmp_path, local={"datastores": stores}))
    assert problem.field == "local.datastores"


def test_empty_sections_are_as_good_as_none(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "task: image_classification\ntraining_data: {path: a}\n"
        "validation_data:\ntraining_parameters:\nlimits:\nlocal:\nsweep:\nsearch_space:\n",
    )
    assert (
        read_job(path).resolve_settings()
        == Job(task="image-classification", training_data="a").resolve_settings()
    )


def test_wrong_values_are_reported_at_once_with_file_and_key(tmp_path: Path) -> None:
    path = write_job(
        tmp_path, task="image_classifcation", validation_data_size=1.5, local={"gpus": -2, "processes": 0}
    )
    problems = {problem.field: problem for problem in problems_of(path)}
    assert problems.keys() == {"task", "validation_data_size", "gpus", "processes"}
    assert all(problem.where == str(path) for problem in problems.values())
    assert "object-detection" in problems["task"].rule
    assert "'image_classifcation'" in problems["task"].rule
    assert problems["validation_data_size"].got == "1.5"


@pytest.mark.parametrize("size", [0, 1, -0.1, "half", float("nan")])
def test_the_split_is_a_true_share(size: Any) -> None:
    with pytest.raises(JobError, match="validation_data_size"):
        jobs.make("", task="object-detection", training_data="a", validation_data_size=size)


def test_the_primary_metric_is_one_of_the_tasks(tmp_path: Path) -> None:
    (problem,) = problems_of(write_job(tmp_path, primary_metric="iou"))
    assert "must be accuracy, got 'iou'" in problem.rule
    path = write_job(tmp_path, task="image_classification_multilabel", primary_metric="accuracy")
    assert read_job(path).metric == "accuracy"
    assert read_job(write_job(tmp_path, task="image_classification_multilabel")).metric == "iou"


def test_missing_keys_are_named_without_a_dump_of_the_rest() -> None:
    with pytest.raises(JobError) as caught:
        jobs.make("job.yml", model="resnet18")
    assert {str(problem) for problem in caught.value.problems} == {
        "job.yml: task: field required",
        "job.yml: training_data: field required",
    }
    with pytest.raises(JobError, match="training_data"):
        jobs.make("job.yml", task="object-detection", training_data=())


def test_a_search_space_among_the_fixed_values_is_refused(tmp_path: Path) -> None:
    path = write_job(tmp_path, training_parameters={"learning_rate": {"type": "uniform", "min_value": 0}})
    assert problems_of(path)[0].field == "learning_rate"
    path = write_job(tmp_path, training_parameters={"learning_rate": "uniform(0.001,0.01)"})
    assert problems_of(path)[0].field == "learning_rate"


def test_a_flag_replaces_a_files_value_under_any_name() -> None:
    values = {"lr_scheduler": "step", "momentum": 0.5, "learning_rte": 1}
    flags = {"learning_rate_scheduler": "warmup_cosine", "nesterov": False}
    assert jobs.override(values, flags) == {
        "momentum": 0.5,
        "learning_rte": 1,  # left for the check of the settings
        "learning_rate_scheduler": "warmup_cosine",
        "nesterov": False,
    }


def test_weights_come_from_the_job_else_the_environment_else_the_publisher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare = Job(task="object-detection", training_data="a")
    given = Job(task="object-detection", training_data="a", weights="/my/weights")
    assert (bare.weights_choice, given.weights_choice) == ("pretrained", "/my/weights")
    monkeypatch.setenv("TRAINER_WEIGHTS", "/shared/weights")
    assert (bare.weights_choice, given.weights_choice) == ("/shared/weights", "/my/weights")
    monkeypatch.setenv("TRAINER_WEIGHTS", "")
    assert bare.weights_choice == "pretrained"


def test_an_earlier_run_is_where_the_weights_come_from_unless_others_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_WEIGHTS", "/shared/weights")
    run = "0123456789abcdef0123456789abcdef"

    def choice(checkpoint_run_id: Any, weights: str | None = None) -> str:
        settings = {"checkpoint_run_id": checkpoint_run_id}
        job = Job(task="object-detection", training_data="a", weights=weights, settings=settings)
        if isinstance(checkpoint_run_id, str | None):
            assert job.resolve_settings().checkpoint_run_id == checkpoint_run_id
        return job.weights_choice

    assert choice(run) == f"runs:/{run}/model"
    assert choice(str(tmp_path)) == str(tmp_path)
    assert choice("runs/no such run") == "runs/no such run"
    assert choice(run, "none") == "none"
    assert choice(None) == "/shared/weights"
    for wrong in (3, True, ""):
        job = Job(task="object-detection", training_data="a", settings={"checkpoint_run_id": wrong})
        with pytest.raises(JobError, match="checkpoint_run_id"):
            job.resolve_settings()


@pytest.mark.parametrize("run", ["0123456789abcdef0123456789abcdef", "실행/first", "runs:/x/model"])
def test_a_written_job_goes_on_from_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    (tmp_path / "실행/first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    path = write_job(tmp_path, training_parameters={"checkpoint_run_id": run})
    monkeypatch.chdir("/")  # what a file names is relative to the file
    job = read_job(path)
    expected = {"실행/first": str(tmp_path / "실행/first"), "runs:/x/model": run}
    assert job.weights_choice == expected.get(run, f"runs:/{run}/model")
    again = read_job(write(tmp_path, job.to_yaml()))
    assert again.weights_choice == job.weights_choice
    assert again.to_yaml() == job.to_yaml()
    # A flag for another run is not overruled by what the file says of weights.
    values, _ = jobs.read(write(tmp_path, job.to_yaml()))
    values["settings"] = jobs.override(values["settings"], {"checkpoint_run_id": "other"})
    assert jobs.make("", **values).weights_choice == "runs:/other/model"


def test_from_scratch_nothing_is_frozen_unless_asked_for() -> None:
    def frozen(weights: str, **settings: Any) -> int | None:
        job = Job(task="object-detection", training_data="a", weights=weights, settings=settings)
        return job.resolve_settings().layers_to_freeze

    assert frozen("pretrained") == 2
    assert frozen("none") is None
    assert frozen("none", layers_to_freeze=1) == 1
    assert frozen("pretrained", layers_to_freeze=None) is None


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
        "settings": {
            "model_size": "xlarge",
            "multi_scale": 1,
            "advanced_settings": '{"apply_mosaic_for_yolo": false}',
        },
    },
    {"task": "object-detection", "model": "yolo11n", "validation_data": ("v1.jsonl", "검증")},
    {
        "task": "instance-segmentation",
        "validation_data_size": 0.35,
        "datastores": {"blob": "/mnt/blob", "far": "https://example.org/blob"},
        "settings": {"log_validation_loss": "Disable", "max_number_of_polygon_points": 12},
    },
]


@pytest.mark.parametrize("values", ROUND_TRIPS, ids=lambda values: str(values.get("model", values["task"])))
def test_a_written_job_runs_again_the_same(tmp_path: Path, values: dict[str, Any]) -> None:
    job = jobs.make("", training_data=("훈련.jsonl",), **values)
    text = job.to_yaml()
    again = read_job(write(tmp_path, text))
    assert again.resolve_settings() == job.resolve_settings()
    assert again.to_yaml() == text
    same = ("task", "model_name", "metric", "weights_choice", "validation_data_size", "gpus", "processes")
    for name in (*same, "datastores", "skip_invalid", "name"):
        assert getattr(again, name) == getattr(job, name), name
    assert [Path(path) for path in again.training_data] == [Path.cwd() / "훈련.jsonl"]
    assert [Path(path) for path in again.validation_data] == [Path.cwd() / v for v in job.validation_data]
    assert "훈련.jsonl" in text  # readable, not escaped


def test_a_written_job_has_azures_form_and_every_setting_that_means_something() -> None:
    text = Job(task="object-detection", model="yolo11n", training_data="a.jsonl").to_yaml()
    written = yaml.safe_load(text)
    assert (written["type"], written["task"]) == ("automl", "image_object_detection")
    assert written["training_data"] == {"path": str(Path.cwd() / "a.jsonl"), "type": "mltable"}
    parameters = written["training_parameters"]
    assert parameters["model_name"] == "yolo11n"
    assert parameters.keys() - {"model_name"} <= Settings.model_fields.keys()
    assert parameters["learning_rate"] == 0.01
    assert not {"min_size", "weighted_loss", "model_size", "mask_pixel_score_threshold"} & parameters.keys()


def test_a_job_from_python_takes_paths_and_task_names() -> None:
    job = Job(task="image_object_detection", training_data=Path("a.jsonl"), validation_data=["b", "c"])
    assert (job.task, job.training_data, job.validation_data) == (Task.DETECTION, ("a.jsonl",), ("b", "c"))
    with pytest.raises(ValueError, match="Extra inputs"):
        Job(task="object-detection", training_data="a", learning_rate=0.1)


def test_there_is_a_job_file_for_each_task() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yml")} == {task.value for task in Task}


@pytest.mark.parametrize("task", Task)
def test_a_shipped_job_file_is_ready_to_run(task: Task) -> None:
    path = CONFIGS / f"{task}.yml"
    values, ignored = jobs.read(path)
    job = jobs.make(str(path), **values)
    assert job.task is task
    assert job.training_data == (str(CONFIGS / "data/train.jsonl"),)
    assert {"compute", "experiment_name", "description"} <= set(ignored)
    resolved = job.resolve_settings()
    for name, value in job.settings.items():
        assert getattr(resolved, name) == value, name
    assert "$schema" in yaml.safe_load(path.read_text(encoding="utf-8"))
