"""A model whose library is not installed: what the error says, and that it comes before the data are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import trainer
from serving.package import carried_code
from trainer import cli, models
from trainer.automode.candidates import choose_groups
from trainer.errors import JobError
from trainer.models import catalog, libraries
from trainer.models.defaults import resolve
from trainer.models.published import published_models
from trainer.models.spec import Spec
from trainer.runs import Run
from trainer.scoring import ScoringParameters
from trainer.tasks import Task
from trainer.training.preview import preview

COMMAND = "pip install 'image-trainer[yolo]'"
DETECTION = {"task": "object-detection", "training_data": "missing.jsonl", "gpus": 0}
SPACE = {
    "search_space": [{"model_name": "choice('yolov5', 'fasterrcnn_resnet50_fpn', 'yolo11n')"}],
    "limits": {"max_trials": 2},
}


def spec_of(model: str, task: Task) -> Spec:
    settings = resolve(task, model, {})
    parameters = {name: getattr(settings, name) for name in ScoringParameters.model_fields}
    return Spec(
        family=catalog.MODELS[model].family,
        model=model,
        task=task,
        classes=("a",),
        options={},
        parameters=ScoringParameters(**parameters),
    )


@pytest.fixture
def without_ultralytics(hide_libraries: Callable[..., None]) -> None:
    hide_libraries("ultralytics")


def fit(**values: Any) -> None:
    trainer.fit(trainer.Job(**{**DETECTION, **values}))


def read_job(text: str, folder: Path) -> None:
    (folder / "job.yml").write_text(text, encoding="utf-8")
    trainer.fit(trainer.Job.read(folder / "job.yml"))


AZURES_JOB = """
type: automl
task: image_object_detection
training_data: {path: missing, type: mltable}
target_column_name: label
training_parameters: {model_name: yolov5}
"""
ENTRANCES: dict[str, Callable[[Path], object]] = {
    "fit": lambda _: fit(model="yolov5"),
    "Azure's job": lambda folder: read_job(AZURES_JOB, folder),
    "sweep": lambda _: fit(**SPACE),
    "AutoMode": lambda _: fit(model="yolov5", limits={"max_trials": 2}),
    "preview": lambda _: preview(trainer.Job(**DETECTION, model="yolov5")),
    "dry run": lambda _: cli.app(
        ["fit", "--task", "object-detection", "--data", "missing", "--model", "yolov5", "--dry-run"],
        exit_on_error=False,
    ),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_job_ends_before_the_data_are_read(entrance: str, without_ultralytics: None, tmp_path: Path) -> None:
    with pytest.raises(JobError) as raised:
        ENTRANCES[entrance](tmp_path)
    (problem,) = raised.value.problems
    names = "yolov5 and yolo11n need" if entrance == "sweep" else "yolov5 needs"
    assert problem.rule == f"{names} ultralytics, which is not installed"
    assert problem.hint.startswith(f"{COMMAND} installs it, under AGPL-3.0; ")
    assert "fasterrcnn_resnet18_fpn (BSD-3-Clause)" in problem.hint
    assert problem.field.endswith("model_name") or problem.where == "model_name"


def test_resumed_run_ends_before_the_data_are_read(without_ultralytics: None, tmp_path: Path) -> None:
    run = Run(tmp_path)
    job = trainer.Job(**{**DETECTION, "model": "yolo11n", "weights": "none"})
    run.write_job(job.to_yaml())
    with pytest.raises(JobError, match="yolo11n needs ultralytics, which is not installed"):
        trainer.resume(tmp_path)


@pytest.mark.parametrize(
    ("model", "task"), [("rtdetr-l", Task.DETECTION), ("yolo11n-seg", Task.SEGMENTATION)]
)
def test_packaged_model_is_rejected_by_its_name(model: str, task: Task, without_ultralytics: None) -> None:
    """Evaluating, predicting, serving and exporting load the network this way."""
    with pytest.raises(JobError) as raised:
        models.create(spec_of(model, task))
    (problem,) = raised.value.problems
    assert problem.rule.startswith(f"{model} needs ultralytics")
    others = {entry.name for entry in catalog.models_for(task) if entry.card.library != "ultralytics"}
    assert any(name in problem.hint for name in others)


@pytest.mark.parametrize("model", [n for n, e in catalog.MODELS.items() if e.card.library == "ultralytics"])
def test_alternatives_are_of_the_task_and_under_other_licences(model: str) -> None:
    (task,) = catalog.MODELS[model].tasks
    entries = libraries.alternatives(model, task)
    assert entries
    assert all(task in entry.tasks for entry in entries)
    assert "deimv2-s" not in [entry.name for entry in entries]  # whose weights are DINOv3's
    licences = [entry.card.licence for entry in entries]
    assert licences == sorted(licences)  # Apache-2.0 first
    assert not any("GPL" in licence for licence in licences)


def test_alternatives_are_of_a_similar_size(without_ultralytics: None) -> None:
    small, large = (
        [entry.name for entry in libraries.alternatives(f"yolo11{size}-seg", Task.SEGMENTATION)][-1]
        for size in "nx"
    )
    assert (small, large) == ("maskrcnn_resnet18_fpn", "maskrcnn_resnet101_fpn")


def test_models_of_the_same_architecture_are_nearest() -> None:
    nearest = [entry.name for entry in libraries.alternatives("rtdetr-x", Task.DETECTION)]
    assert nearest[:2] == ["rtdetrv2-r101", "rtdetrv2-r50"]


def test_apache_library_names_only_its_command(hide_libraries: Callable[..., None]) -> None:
    hide_libraries("transformers")
    with pytest.raises(JobError) as raised:
        libraries.require_library(catalog.MODELS["rfdetr-nano"], Task.DETECTION, "job.yml")
    assert str(raised.value).splitlines()[1].strip() == (
        "job.yml: model_name: rfdetr-nano needs transformers, which is not installed; "
        "pip install transformers"
    )


def test_folder_of_the_librarys_name_is_not_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = replace(catalog.CARDS["rcnn"], library="a_clone_of_a_library")
    (tmp_path / card.library / card.library).mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert not libraries.is_installed(card)
    (tmp_path / card.library / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert libraries.is_installed(card)


def test_other_version_of_a_library_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_family_of_another_version.py").write_text("from timm import no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    card = replace(catalog.CARDS["rcnn"], library="timm", extra="some", module="a_family_of_another_version")
    monkeypatch.setitem(models.CARDS, "rcnn", card)
    with pytest.raises(
        JobError, match=r"fpn cannot use the installed timm: cannot .*; pip install 'image-trainer\[some"
    ):
        models.create(spec_of("fcos_resnet50_fpn", Task.DETECTION))


def test_packaged_model_without_this_project_names_its_requirements(
    hide_libraries: Callable[..., None],
) -> None:
    spec = spec_of("yolo11n", Task.DETECTION)
    files = carried_code(spec).files
    assert Path("trainer/models/libraries.py") in files
    assert Path("trainer/models/published.py") not in files
    hide_libraries("ultralytics", "trainer.models.published")
    with pytest.raises(JobError, match=r"not installed; pip install -r requirements.txt, the model's own"):
        models.create(spec)


def test_weights_of_a_missing_library_are_no_choice_for_automode(
    without_ultralytics: None, tmp_path: Path
) -> None:
    """Of a directory's weights, those of installed libraries are tried; if there are none, it is an error."""
    (tmp_path / "yolo11x.pt").touch()
    automatic = {**DETECTION, "weights": str(tmp_path), "limits": {"max_trials": 2}}
    with pytest.raises(JobError, match="yolo11x needs ultralytics"):
        trainer.fit(trainer.Job(**automatic))
    (tmp_path / published_models()["fcos_resnet50_fpn"].files[0]).touch()
    groups, _ = choose_groups(trainer.Job(**automatic), 100, on_gpu=False)
    assert {name for group in groups for name in group.models} == {"fcos_resnet50_fpn"}
