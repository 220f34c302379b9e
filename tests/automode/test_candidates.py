"""Which models AutoMode tries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.automode import candidates
from trainer.automode.candidates import CPU, GPU, GROUPS, SCRATCH, Group
from trainer.errors import JobError
from trainer.job.job import Job
from trainer.models import catalog
from trainer.tasks import Task


def chosen(
    task: str = "object-detection", images: int = 400, on_gpu: bool = True, **values: Any
) -> tuple[list[Group], list[str]]:
    values = {"training_data": "a", "limits": {"max_trials": 5}, "weights": "pretrained", **values}
    return candidates.choose_groups(Job.of("", task=task, **values), images, on_gpu=on_gpu)


def models(*arguments: Any, **values: Any) -> list[str]:
    return [name for group in chosen(*arguments, **values)[0] for name in group.models]


@pytest.fixture(autouse=True)
def _all_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this environment has; a test may take one away."""
    there = SimpleNamespace(origin="there")
    monkeypatch.setattr("trainer.models.libraries.find_spec", lambda name: there)


def test_all_are_models_of_the_task_and_are_ordered_by_it() -> None:
    for task, tables in GROUPS.items():
        assert tables.keys() == {GPU, SCRATCH, CPU}
        for groups in tables.values():
            for group in groups:
                for name in (*group.models, *group.larger):
                    catalog.find(name, task)
            families = [
                {catalog.find(name, task).family for name in (*group.models, *group.larger)}
                for group in groups
            ]
            assert all(len(each) == 1 for each in families), "what a group searches is one family's"


def test_it_depends_on_machine_and_weights() -> None:
    assert models()[0] == "rfdetr-small"
    assert {"fasterrcnn_resnet50_fpn_v2", "rtdetrv2-r50", "yolo26s", "yolo11m"} <= set(models())
    assert models(on_gpu=False) == ["yolo11n", "yolo26n", "fasterrcnn_resnet18_fpn"]
    scratch = models(weights="none")
    assert scratch[0] == "yolo11s"
    assert not {"rfdetr-small", "rtdetrv2-r50"} & set(scratch)
    assert "vitb16r224" in models("image-classification")
    for on_gpu in (True, False):
        names = models("image-classification", weights="none", on_gpu=on_gpu)
        assert "resnet18" in names
        assert not any(name.startswith(("vit", "timm/convnext")) for name in names)


def test_larger_models_come_first_where_there_are_many_images() -> None:
    (few, *_), (many, *_) = chosen(images=999)[0], chosen(images=1000)[0]
    assert few.models == ("rfdetr-small", "dfine-m", "rfdetr-medium", "dfine-l")
    assert many.models == ("rfdetr-medium", "dfine-l", "rfdetr-small", "dfine-m")


def test_what_is_not_installed_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, hide_libraries: Callable[..., None]
) -> None:
    hide_libraries("ultralytics", "transformers")
    groups, reasons = chosen()
    assert [group.models for group in groups] == [("fasterrcnn_resnet50_fpn_v2",)]
    (reason,) = [reason for reason in reasons if reason.startswith("ultralytics is not installed: ")]
    assert "without yolo26s" in reason
    assert reason.endswith("pip install 'image-trainer[yolo]' adds them")
    monkeypatch.setattr("trainer.models.libraries.find_spec", lambda name: None)
    with pytest.raises(JobError, match="no model for object-detection whose library is installed"):
        chosen()


def test_a_model_of_the_jobs_is_the_only_one() -> None:
    for model in ("yolov5", "rtdetr-x"):
        assert chosen(model=model)[0] == [Group((model,))]
    assert chosen("image-classification", model="timm/x")[0] == [Group(("timm/x",))]
    with pytest.raises(JobError, match="no model is named"):
        chosen(model="yolov6")


@pytest.mark.parametrize(
    ("settings", "recipe"),
    [
        ({}, "modern"),
        ({"recipe": "Reference"}, "reference"),
        ({"optimizer": "adamw"}, "modern"),
        ({"optimizer": "SGD"}, "reference"),
        ({"optimizer": "sgd", "recipe": "modern"}, "modern"),
        ({"momentum": 0.8}, "reference"),
        ({"optimizer": "adamw", "momentum": 0.8}, "modern"),
        ({"recipe": None}, "modern"),
    ],
)
def test_recipe_is_the_jobs_or_goes_with_its_optimizer(settings: dict[str, str], recipe: str) -> None:
    values = {"training_data": "a", "limits": {"max_trials": 5}, "settings": settings}
    assert candidates.recipe_of(Job.of("", task="image-classification", **values)) == recipe


def test_no_model_is_tried_twice() -> None:
    names = models("image-classification", objective="latency", weights="none")
    assert len(names) == len(set(names))


def test_models_that_do_not_take_the_jobs_settings_are_left_out() -> None:
    settings = {"training_crop_size": 160, "validation_crop_size": 192}
    groups, reasons = chosen("image-classification", settings=settings)
    names = {name for group in groups for name in group.models}
    assert "timm/convnext_tiny.in12k_ft_in1k" in names
    assert not {"vitb16r224", "vits16r224"} & names
    assert any("without vits16r224: training_crop_size: must equal" in reason for reason in reasons)
    # RF-DETRs take multiples of a number of their own.
    assert not any(name.startswith("rfdetr") for name in models(settings={"image_size": 640}))
    # What does not apply to one model is left out for it alone.
    assert len(models(settings={"min_size": 500})) == len(models())
    with pytest.raises(JobError) as caught:
        chosen(settings={"number_of_epochs": 0, "learning_rat": 1})
    assert {problem.field for problem in caught.value.problems} == {"number_of_epochs", "learning_rat"}


def test_a_backbone_is_tried_with_the_models_that_can_have_it(tmp_path: Path) -> None:
    settings = {"backbone": "timm/convnext_tiny"}
    for weights in (None, str(tmp_path)):  # whose files are the backbone's
        groups, reasons = chosen(settings=settings, weights=weights)
        assert {name for group in groups for name in group.models} == {"fasterrcnn_resnet50_fpn_v2"}
        assert "only fasterrcnn_resnet50_fpn_v2 can have the backbone timm/convnext_tiny" in reasons
    with pytest.raises(JobError, match="backbone: applies only to R-CNNs, of which there is none for"):
        chosen("image-classification", settings=settings)


def test_a_directory_of_weights_decides_what_can_be_tried(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="must hold the published weights of a model for object-detection"):
        chosen(weights=str(tmp_path))
    (tmp_path / "yolo11x.pt").touch()
    groups, reasons = chosen(weights=str(tmp_path))
    assert groups == [Group(("yolo11x",))]
    assert f"{tmp_path} only has the weights of yolo11x" in reasons
    for file in ("yolo11m.pt", "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"):
        (tmp_path / file).touch()
    assert models(weights=str(tmp_path)) == ["yolo11m", "fasterrcnn_resnet50_fpn_v2"]
    hub = tmp_path / "convnext_tiny.in12k_ft_in1k"
    hub.mkdir()
    (hub / "model.safetensors").touch()
    (tmp_path / "seresnext50_32x4d.racm_in1k.safetensors").touch()
    assert models("image-classification", weights=str(tmp_path)) == [
        "timm/convnext_tiny.in12k_ft_in1k",
        "seresnext",
    ]
    for place in ("Roboflow/rf-detr-seg-small", "models--Roboflow--rf-detr-seg-medium/snapshots/0123"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "model.safetensors").touch()
    (tmp_path / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
    assert models("instance-segmentation", weights=str(tmp_path)) == ["rfdetr-seg-small", "rfdetr-seg-medium"]


def test_weights_of_a_run_or_a_file_are_of_one_model(tmp_path: Path) -> None:
    spec = tmp_path / "run/model/artifacts/spec.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"model": "yolo11l"}), encoding="utf-8")
    assert set(models(weights=str(tmp_path / "run"))) == {"yolo11l"}
    assert set(models(weights=None, settings={"checkpoint_run_id": str(tmp_path / "run")})) == {"yolo11l"}
    file = tmp_path / "mine.pt"
    file.touch()
    assert set(models(weights=str(file))) == {Task.DETECTION.default_model}
    assert set(models(weights="runs:/0123/model", model="yolo11s")) == {"yolo11s"}


def test_where_the_time_for_an_answer_counts_small_models_are_tried_too() -> None:
    groups, reasons = chosen(objective="latency")
    assert {"yolo11n", "rtdetrv2-r50"} <= {name for group in groups for name in group.models}
    assert any("small models" in reason for reason in reasons)
    assert "yolo11n" in models(max_latency_ms=20.0)
