"""Job files: Azure's YAML form, read as it is or rejected with every reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.errors import JobError, Problem
from trainer.job.job import Job
from trainer.tasks import Task

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


def problems_of(path: Path) -> list[Problem]:
    with pytest.raises(JobError) as caught:
        Job.read(path).resolve_settings()
    return list(caught.value.problems)


def test_azure_job_is_read_unchanged(tmp_path: Path) -> None:
    path = write(tmp_path, AZURE)
    job = Job.read(path)
    assert job.task is Task.DETECTION
    assert job.training_data == (str(tmp_path / "data/training-mltable-folder"),)
    assert job.validation_data == (str(tmp_path / "data/validation-mltable-folder"),)
    assert (job.model_name, job.metric) == ("yolov5", "mean_average_precision")
    assert job.name == "dpv2-cli-automl-image-object-detection-experiment"
    assert job.experiment_name == "dpv2-cli-automl-image-object-detection-experiment"
    settings = job.resolve_settings()
    assert (settings.learning_rate, settings.number_of_epochs) == (0.001, 30)
    assert job.nodes == 2
    assert not job.sweeps


def test_keys_without_effect_are_listed(tmp_path: Path) -> None:
    assert list(Job.read(write(tmp_path, AZURE)).ignored_keys) == [
        "compute", "description", "log_verbosity", "resources", "tags", "training_data.mode",
    ]  # fmt: skip


@pytest.mark.parametrize("spelled", ["image_classification", "image-classification", "Image_Classification"])
def test_task_may_have_any_spelling(tmp_path: Path, spelled: str) -> None:
    assert Job.read(write_job(tmp_path, task=spelled)).task is Task.CLASSIFICATION


def test_relative_paths_start_at_the_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    job = Job.read(path.relative_to(tmp_path))
    again = write(elsewhere, job.to_yaml())  # absolute by now
    monkeypatch.chdir(elsewhere)
    for each in (Job.read(path), Job.read(again)):
        assert Path(each.training_data[0]) == folder / "데이터/훈련.jsonl"
        assert each.weights == str(folder / "가중치/yolo.pt")
        assert each.datastores == {"저장소": str(folder / "저장"), "far": "abfs://box/images"}


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/train.jsonl",
        "file:///data/train.jsonl",
        "azureml://datastores/workspaceblobstore/paths/train",
        "wasbs://box@account.blob.core.windows.net/train",
        "/absolute/train.jsonl",
    ],
)
def test_urls_and_absolute_paths_are_unchanged(tmp_path: Path, url: str) -> None:
    job = Job.read(write_job(tmp_path, training_data={"path": url, "type": "mltable"}))
    assert job.training_data == (url,)
    assert Job.read(write(tmp_path, job.to_yaml())).training_data == (url,)


def test_several_data_sets_are_read_from_a_list(tmp_path: Path) -> None:
    job = Job.read(write_job(tmp_path, training_data=[{"path": "a.jsonl"}, "b"]))
    assert job.training_data == (str(tmp_path / "a.jsonl"), str(tmp_path / "b"))
    assert Job.read(write(tmp_path, job.to_yaml())).training_data == job.training_data


@pytest.mark.parametrize("data", [{"type": "mltable"}, {"path": ""}, {"path": 3}, [{"path": "a"}, {}]])
def test_data_without_a_path_are_rejected(tmp_path: Path, data: Any) -> None:
    (problem,) = problems_of(write_job(tmp_path, training_data=data))
    assert problem.field == "training_data.path"
    assert problem.where.endswith("job.yml")


def test_unknown_keys_are_reported_at_once_with_the_closest_known_ones(tmp_path: Path) -> None:
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


def test_unknown_key_of_a_data_entry_is_rejected(tmp_path: Path) -> None:
    (problem,) = problems_of(write_job(tmp_path, training_data={"path": "a", "paht": "b"}))
    assert problem.field == "training_data.paht"


def test_job_of_another_type_is_rejected(tmp_path: Path) -> None:
    (problem,) = problems_of(write_job(tmp_path, type="command"))
    assert str(problem).endswith("type: must be automl, got 'command'")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"task: [", "job.yml:1: must be YAML"),
        (b"- a\n- b\n", "must be a YAML mapping"),
        (b"", "must be a YAML mapping"),
        (b"task: \xb0\xa1\n", "UTF-8"),  # Korean in EUC-KR
        (b"task: image_classification\ntask: image_object_detection\n", "duplicate key 'task'"),
        (b"training_parameters:\n  seed: 1\n  seed: 2\n", "duplicate key 'seed'"),
        (b"task: &a [*a]\n", "job.yml:1: the alias *a"),
        (b"limits:\n  " + b"[" * 100, "job.yml:2: must not nest"),
        (b"!!python/object/apply:os.system [echo]\n", "could not determine a constructor"),
    ],
)
def test_file_without_a_job_is_rejected_with_the_reason(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "job.yml"
    path.write_bytes(content)
    with pytest.raises(JobError) as caught:
        Job.read(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_is_rejected(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.yml", tmp_path):
        with pytest.raises(JobError, match="cannot be read"):
            Job.read(path)


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "job.yml"
    path.write_bytes(b"\xef\xbb\xbf" + b"task: image_classification\ntraining_data: {path: a}\n")
    assert Job.read(path).task is Task.CLASSIFICATION


@pytest.mark.parametrize("key", ["training_parameters", "limits", "local"])
@pytest.mark.parametrize("value", [["a"], "a", 5])
def test_section_must_be_a_mapping(tmp_path: Path, key: str, value: Any) -> None:
    (problem,) = problems_of(write_job(tmp_path, **{key: value}))
    assert (problem.field, problem.rule, problem.got) == (key, "must be a mapping", repr(value))


@pytest.mark.parametrize("stores", [["a"], {"name": 3}, {"name": ""}, "a=b"])
def test_datastores_must_map_names_to_places(tmp_path: Path, stores: Any) -> None:
    (problem,) = problems_of(write_job(tmp_path, local={"datastores": stores}))
    assert problem.field == "local.datastores"


def test_empty_sections_are_ignored(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "task: image_classification\ntraining_data: {path: a}\n"
        "validation_data:\ntraining_parameters:\nlimits: {max_trials: }\nlocal:\nsweep:\nsearch_space:\n"
        "properties:\nprimary_metric:\n",
    )
    plain = Job(task="image-classification", training_data="a", default_recipe="reference")
    assert Job.read(path).resolve_settings() == plain.resolve_settings()


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


def test_primary_metric_must_fit_the_task(tmp_path: Path) -> None:
    (problem,) = problems_of(write_job(tmp_path, primary_metric="iou"))
    assert "must be a metric of image-classification, got 'iou'; there are accuracy" in problem.rule
    path = write_job(tmp_path, task="image_classification_multilabel", primary_metric="accuracy")
    assert Job.read(path).metric == "accuracy"
    assert Job.read(write_job(tmp_path, task="image_classification_multilabel")).metric == "iou"


def test_expression_among_training_parameters_is_rejected(tmp_path: Path) -> None:
    path = write_job(tmp_path, training_parameters={"learning_rate": {"type": "uniform", "min_value": 0}})
    assert problems_of(path)[0].field == "learning_rate"
    path = write_job(tmp_path, training_parameters={"learning_rate": "uniform(0.001,0.01)"})
    assert problems_of(path)[0].field == "learning_rate"


@pytest.mark.parametrize("run", ["0123456789abcdef0123456789abcdef", "실행/first", "runs:/x/model"])
def test_written_job_starts_from_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    (tmp_path / "실행/first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    path = write_job(tmp_path, training_parameters={"checkpoint_run_id": run})
    monkeypatch.chdir("/")  # what a file names is relative to the file
    job = Job.read(path)
    expected = {"실행/first": str(tmp_path / "실행/first"), "runs:/x/model": run}
    assert job.weights_choice == expected.get(run, f"runs:/{run}")
    again = Job.read(write(tmp_path, job.to_yaml()))
    assert again.weights_choice == job.weights_choice
    assert again.to_yaml() == job.to_yaml()
    # A flag for another run is not overruled by what the file says of weights.
    changed = Job.read(write(tmp_path, job.to_yaml()), settings={"checkpoint_run_id": "other"})
    assert changed.weights_choice == "runs:/other"


SWEEP = """\
type: automl
task: image_object_detection
training_data: {path: train, type: mltable}
limits: {timeout_minutes: 60, max_trials: 10, max_concurrent_trials: 2}
training_parameters: {early_stopping: true, min_size: 500}
sweep:
  sampling_algorithm: {type: random, seed: 7, rule: sobol, logbase: e}
  early_termination: {type: bandit, evaluation_interval: 2, slack_factor: 0.2, delay_evaluation: 6}
search_space:
  - model_name: {type: choice, values: [yolov5]}
    learning_rate: {type: uniform, min_value: 1.0e-4, max_value: 0.01}
    model_size: {type: choice, values: [small, medium]}
  - model_name: fasterrcnn_resnet50_fpn
    lr_scheduler: choice('step', 'warmup_cosine')
"""


def test_base_of_exponents_may_be_a_number_in_quotes(tmp_path: Path) -> None:
    job = Job.read(write(tmp_path, SWEEP.replace("logbase: e", "logbase: '10'")))
    assert job.sweep is not None
    assert job.sweep.sampling_algorithm.logbase == 10


def test_sweep_is_read_and_written_completely(tmp_path: Path) -> None:
    job = Job.read(write(tmp_path, SWEEP))
    assert job.limits.model_dump() == {"timeout_minutes": 60, "max_trials": 10, "max_concurrent_trials": 2}
    content = yaml.safe_load(SWEEP)
    assert job.sweep is not None
    algorithm = job.sweep.sampling_algorithm
    assert (algorithm.type, algorithm.seed, algorithm.rule) == ("random", 7, "sobol")
    assert algorithm.logbase == "e"
    assert job.sweep.early_termination == content["sweep"]["early_termination"]
    assert list(job.search_space) == content["search_space"]
    assert job.settings == {"early_stopping": True, "min_size": 500}
    assert job.model is None
    assert job.sweeps
    written = yaml.safe_load(job.to_yaml())
    for key in ("limits", "sweep", "search_space", "training_parameters"):
        assert written[key] == content[key], key
    again = Job.read(write(tmp_path, job.to_yaml(), "again.yml"))
    for name in ("limits", "sweep", "search_space", "settings", "model", "nodes"):
        assert getattr(again, name) == getattr(job, name), name
    assert again.to_yaml() == job.to_yaml()


def test_search_space_may_be_one_map(tmp_path: Path) -> None:
    space = {"learning_rate": {"type": "choice", "values": [0.1, 0.2]}}
    assert Job.read(write_job(tmp_path, search_space=space)).search_space == (space,)


@pytest.mark.parametrize("name", ["grid", "Bayesian", {"type": "Grid"}, "RANDOM"])
def test_sampling_algorithm_is_a_name_or_an_object_in_any_case(tmp_path: Path, name: Any) -> None:
    sweep = {"sampling_algorithm": name}
    job = Job.read(write_job(tmp_path, sweep=sweep, limits={"max_trials": 3}))
    assert job.sweep is not None
    given = name["type"] if isinstance(name, dict) else name
    assert job.sweep.sampling_algorithm.type == given.lower()


def test_problems_of_a_sweep_are_reported_at_once(tmp_path: Path) -> None:
    changes = {
        "limits": {"max_trials": 2000, "max_concurrent_trials": 0, "timeout_minutes": -5},
        "sweep": {"sampling_algorithm": {"type": "greedy", "seed": "x", "logbase": 1}},
        "search_space": ["yolov5"],
    }
    problems = {problem.field: problem for problem in problems_of(write_job(tmp_path, **changes))}
    assert problems.keys() == {
        "limits.max_trials",
        "limits.max_concurrent_trials",
        "limits.timeout_minutes",
        "sweep.sampling_algorithm.type",
        "sweep.sampling_algorithm.seed",
        "sweep.sampling_algorithm.logbase",
        "search_space",
    }
    assert problems["limits.max_trials"].got == "2000"
    assert "list of such maps" in problems["search_space"].rule


def test_misspelled_keys_of_a_sweep_get_the_closest_known_one(tmp_path: Path) -> None:
    changes = {
        "limits": {"timout_minutes": 3, "max_nodes": 2},
        "sweep": {"sampling_algoritm": "grid", "sampling_algorithm": {"type": "random", "sede": 1}},
    }
    problems = {problem.field: problem.hint for problem in problems_of(write_job(tmp_path, **changes))}
    assert problems == {
        "limits.timout_minutes": "did you mean timeout_minutes?",
        "limits.max_nodes": "there are timeout_minutes, max_trials, max_concurrent_trials",
        "sweep.sampling_algoritm": "did you mean sampling_algorithm?",
        "sweep.sampling_algorithm.sede": "did you mean seed?",
    }


@pytest.mark.parametrize(
    ("path", "assets"),
    [
        ("azureml:fridge-items:1", {"fridge-items": "data/fridge"}),
        ("azureml:fridge-items@latest", {"fridge-items": "data/fridge"}),
        ("azureml:fridge-items", {"fridge-items": "data/fridge"}),
        ("azureml:fridge-items:2", {"fridge-items": "other", "fridge-items:2": "data/fridge"}),
        (
            "azureml:/subscriptions/0/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
            "/data/fridge-items/versions/1",
            {"fridge-items": "data/fridge"},
        ),
        ("azureml://registries/azureml/data/fridge-items/versions/3", {"fridge-items": "data/fridge"}),
    ],
)
def test_job_file_gives_paths_of_registered_data(tmp_path: Path, path: str, assets: dict[str, str]) -> None:
    file = write_job(tmp_path, training_data={"path": path, "type": "mltable"}, local={"data_assets": assets})
    job = Job.read(file)
    assert job.training_data == (str(tmp_path / "data/fridge"),)
    assert Job.read(write(tmp_path, job.to_yaml(), "again.yml")).training_data == job.training_data


def test_registered_data_without_a_path_are_rejected(tmp_path: Path) -> None:
    path = write_job(
        tmp_path,
        training_data=[{"path": "azureml:one:1"}, {"path": "azureml:two@latest"}, "mine.jsonl"],
        validation_data={"path": "azureml:three:2"},
        local={"data_assets": {"one:2": "somewhere"}},
    )
    training, validation = problems_of(path)
    assert (training.field, validation.field) == ("training_data", "validation_data")
    assert "--data-asset one=PATH --data-asset two=PATH" in training.rule
    assert "mapped: one:2" in training.rule
    assert "--data-asset three=PATH" in validation.rule


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("file:./train", "FOLDER/train"),
        ("azureml:azureml://datastores/blob/paths/a", "azureml://datastores/blob/paths/a"),
        (
            "azureml://datastores/blob/paths/data/x/versions/1/",
            "azureml://datastores/blob/paths/data/x/versions/1/",
        ),
        ("data/x/versions/1", "FOLDER/data/x/versions/1"),
        ("/mnt/data/x/versions/1", "/mnt/data/x/versions/1"),
    ],
)
def test_azures_path_prefixes_are_read(tmp_path: Path, written: str, read: str) -> None:
    job = Job.read(write_job(tmp_path, training_data={"path": written}))
    assert job.training_data == (read.replace("FOLDER", str(tmp_path)),)


@pytest.mark.parametrize("kind", ["mltable", "MLTable", "uri_file", "uri_folder"])
def test_data_type_must_be_one_of_azures(tmp_path: Path, kind: str) -> None:
    job = Job.read(write_job(tmp_path, training_data={"path": "a", "type": kind}))
    assert job.training_data == (str(tmp_path / "a"),)
    (problem,) = problems_of(write_job(tmp_path, training_data={"path": "a", "type": "mlflow_model"}))
    assert (problem.field, problem.got) == ("training_data.type", "'mlflow_model'")


def test_empty_keys_without_effect_are_not_listed(tmp_path: Path) -> None:
    path = write_job(
        tmp_path,
        test_data={"path": "azureml:test:1"},
        outputs={"best_model": {"type": "mlflow_model", "path": "azureml://x"}},
        queue_settings={"job_tier": "spot"},
        environment_variables={"A": "${{b}}"},
        properties={"team": "vision"},
        tags={},
        services=[],
        validation_data={"path": "v", "mode": "download", "description": "mine"},
    )
    assert list(Job.read(path).ignored_keys) == [
        "environment_variables", "outputs", "properties", "queue_settings", "test_data",
        "validation_data.description", "validation_data.mode",
    ]  # fmt: skip


def test_pipeline_expressions_are_rejected_with_their_key(tmp_path: Path) -> None:
    path = write_job(
        tmp_path,
        training_data={"path": "${{parent.inputs.data}}"},
        search_space=[{"learning_rate": {"type": "choice", "values": [0.1, "${{parent.inputs.rate}}"]}}],
    )
    problems = {problem.field: problem.got for problem in problems_of(path)}
    assert problems == {
        "training_data.path": "'${{parent.inputs.data}}'",
        "search_space[0].learning_rate.values[1]": "'${{parent.inputs.rate}}'",
    }


def test_misplaced_training_parameter_gets_its_place_as_a_hint(tmp_path: Path) -> None:
    problems = {
        problem.field: problem.hint
        for problem in problems_of(write_job(tmp_path, learning_rate=0.1, model_name="x"))
    }
    assert problems == dict.fromkeys(("learning_rate", "model_name"), "put it under training_parameters")


def test_job_file_may_be_json(tmp_path: Path) -> None:
    text = '{\n\t"task": "image_classification",\n\t"training_data": {"path": "a"}\n}'
    assert Job.read(write(tmp_path, text, "job.json")).training_data == (str(tmp_path / "a"),)
    with pytest.raises(JobError, match="duplicate key 'task'"):
        Job.read(write(tmp_path, '{"task": 1, "task": 2}', "job.json"))


@pytest.mark.parametrize("size", ["0.3", 0.3, "3e-1"])
def test_validation_data_size_may_be_text(tmp_path: Path, size: Any) -> None:
    assert Job.read(write_job(tmp_path, validation_data_size=size)).validation_data_size == 0.3
    (problem,) = problems_of(write_job(tmp_path, validation_data_size=20))
    assert "0.2" in problem.hint
