"""The models by name: those of the reference, for the tasks that they are made for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trainer.errors import JobError
from trainer.models import catalog
from trainer.settings import Settings
from trainer.tasks import Task

CLASSIFIERS = {
    "mobilenetv2", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnest50", "resnest101",
    "seresnext", "vits16r224", "vitb16r224", "vitl16r224",
}  # fmt: skip
DEPTHS = (18, 34, 50, 101, 152)
REFERENCE = {
    Task.CLASSIFICATION: CLASSIFIERS,
    Task.MULTILABEL: CLASSIFIERS,
    Task.DETECTION: {"yolov5", *(f"fasterrcnn_resnet{depth}_fpn" for depth in DEPTHS)},
    Task.SEGMENTATION: {f"maskrcnn_resnet{depth}_fpn" for depth in DEPTHS},
}


@pytest.mark.parametrize("task", Task)
def test_a_task_has_the_models_of_the_reference(task: Task) -> None:
    names = [entry.name for entry in catalog.models_for(task)]
    assert set(names) >= REFERENCE[task]
    assert len(names) == len(set(names))


def test_todays_yolo_is_there_in_all_its_sizes() -> None:
    assert {f"yolo11{size}" for size in "nsmlx"} <= {e.name for e in catalog.models_for(Task.DETECTION)}


def test_what_differs_by_model_is_a_setting_of_one_of_the_models_tasks() -> None:
    for entry in catalog.MODELS.values():
        assert set(entry.defaults) <= set(entry.tasks), entry.name
        for defaults in entry.defaults.values():
            assert defaults.keys() <= Settings.model_fields.keys(), entry.name


def test_a_model_for_another_task_is_refused_with_the_tasks_own_models() -> None:
    with pytest.raises(JobError) as caught:
        catalog.find("yolo11n", Task.SEGMENTATION)
    (problem,) = caught.value.problems
    assert problem.rule == "yolo11n is a model for object-detection, not for instance-segmentation"
    assert "maskrcnn_resnet50_fpn" in problem.hint
    with pytest.raises(
        JobError, match="for image-classification and image-classification-multilabel, not for"
    ):
        catalog.find("resnet18", Task.DETECTION)


@pytest.mark.parametrize(
    ("typo", "task", "meant"),
    [
        ("resnet-18", Task.CLASSIFICATION, "resnet18"),
        ("vitb16", Task.MULTILABEL, "vitb16r224"),
        ("yolov11n", Task.DETECTION, "yolo11n"),
        ("fasterrcnn_resnet50", Task.DETECTION, "fasterrcnn_resnet50_fpn"),
        ("mask_rcnn_resnet50_fpn", Task.SEGMENTATION, "maskrcnn_resnet50_fpn"),
        ("ResNet50", Task.CLASSIFICATION, "resnet50"),
    ],
)
def test_a_misspelt_model_gets_a_near_name_of_the_same_task(typo: str, task: Task, meant: str) -> None:
    with pytest.raises(JobError) as caught:
        catalog.find(typo, task)
    (problem,) = caught.value.problems
    assert repr(typo) in problem.rule
    assert meant in problem.hint


def test_a_name_like_no_other_gets_the_command_that_lists_them() -> None:
    with pytest.raises(JobError, match="`trainer models --task object-detection` lists the names"):
        catalog.find("가나다", Task.DETECTION)


def test_the_catalog_the_settings_and_jobs_need_no_model_library() -> None:
    code = (
        "import sys; import trainer.job.job, trainer.models.catalog, trainer.settings\n"
        "print([name for name in ('torch', 'timm', 'torchvision', 'ultralytics', 'lightning', 'mlflow') "
        "if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
