"""Models of MMDetection that Azure's jobs name, and the models that replace them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import trainer
from trainer.cli import dry_run
from trainer.errors import JobError
from trainer.job import substitutes
from trainer.job.job import Job
from trainer.models import catalog
from trainer.models.spec import Spec
from trainer.scoring import ScoringParameters
from trainer.sweep.search import prepare_search
from trainer.sweep.space.distributions import Choice
from trainer.tasks import Task

SWIN = "mmd-3x-mask-rcnn_swin-t-p4-w7_fpn_1x_coco"
SWIN_BACKBONE = "timm/swin_tiny_patch4_window7_224"
YOLOF = "mmd-3x-yolof_r50_c5_8x8_1x_coco"
# Each by its name in Azure's catalog, and in the catalog's first versions.
DETECTORS = (
    "mmd-3x-deformable-detr_refine_twostage_r50_16xb2-50e_coco",
    "deformable_detr_twostage_refine_r50_16x2_50e_coco",
    "mmd-3x-sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco-800_3x_coco",
    "sparse_rcnn_r50_fpn_300_proposals_crop_mstrain_480-800_3x_coco",
    "mmd-3x-sparse-rcnn_r101_fpn_300-proposals_crop-ms-480-800-3x_coco-800_3x_coco",
    "sparse_rcnn_r101_fpn_300_proposals_crop_mstrain_480-800_3x_coco",
    "mmd-3x-vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco",
    "vfnet_r50_fpn_mdconv_c3-c5_mstrain_2x_coco",
    "mmd-3x-vfnet_x101-64x4d-mdconv-c3-c5_fpn_ms-2x_coco",
    "vfnet_x101_64x4d_fpn_mdconv_c3-c5_mstrain_2x_coco",
    YOLOF,
    "yolof_r50_c5_8x8_1x_coco",
)
SEGMENTERS = (
    SWIN,
    "mask_rcnn_swin-t-p4-w7_fpn_1x_coco",
    "mmd-3x-rtmdet-ins_x_8xb16-300e_coco",
    "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco",  # MMDetection has it, Azure's catalog has not
)
NAMES = [
    *((Task.DETECTION, name) for name in DETECTORS),
    *((Task.SEGMENTATION, name) for name in SEGMENTERS),
]


def make_job(task: Task, model: str | None = None, **more: Any) -> Job:
    return Job(task=task, training_data="train.jsonl", model=model, tracking_uri="none", **more)


@pytest.mark.parametrize(("task", "name"), NAMES)
def test_every_model_of_azures_catalog_has_a_substitute_that_resolves(task: Task, name: str) -> None:
    substitute = substitutes.find(name)
    assert substitute is not None
    job = make_job(task, name, allow_substitute_models=True)
    assert job.model == substitute.model
    assert task in catalog.find(substitute.model, task).tasks
    assert job.resolve_settings().backbone == (substitute.backbone or None)
    assert job.substitutes == {name: substitute.words}
    assert job.substitute_for == name
    (note,) = substitutes.notes(job.substitutes)
    assert note == f"{substitute.words} replaces {name}: {substitute.reason}"


@pytest.mark.parametrize(("task", "name"), NAMES)
def test_another_network_needs_permission(task: Task, name: str) -> None:
    substitute = substitutes.find(name)
    assert substitute is not None
    if substitute.is_same:
        assert make_job(task, name).model == substitute.model
        return
    with pytest.raises(JobError) as caught:
        make_job(task, name)
    said = str(caught.value)
    assert f"{name} is a model of MMDetection, which is not supported" in said
    assert f"the substitute is {substitute.words}: {substitute.reason}" in said
    assert "--allow-substitute-models trains it (in a job file: local: {allow_" in said


def test_a_mask_rcnn_on_a_swin_is_one() -> None:
    job = make_job(Task.SEGMENTATION, SWIN)
    assert (job.model, job.resolve_settings().backbone) == ("maskrcnn_resnet50_fpn", SWIN_BACKBONE)


def test_a_substitute_for_a_segmenter_is_the_nearest_in_accuracy() -> None:
    substitute = substitutes.find("mmd-3x-rtmdet-ins_x_8xb16-300e_coco")
    assert substitute is not None
    assert (substitute.model, substitute.is_same) == ("rfdetr-seg-medium", False)


def test_a_model_without_a_substitute_is_named() -> None:
    with pytest.raises(
        JobError, match="mmd-3x-solo_r50 is a model of MMDetection, which is not supported, and has no"
    ):
        make_job(Task.SEGMENTATION, "mmd-3x-solo_r50", allow_substitute_models=True)


@pytest.mark.parametrize(
    "name", ["maskrcnn_resnet50_fpn", "timm/vfnet_r50", "hf/acme/yolof_r50_coco", "yolof_r50"]
)
def test_other_names_stay(name: str) -> None:
    assert make_job(Task.DETECTION, name).model == name


EXPRESSIONS = [
    (f"choice('fasterrcnn_resnet18_fpn', '{YOLOF}')", ["fasterrcnn_resnet18_fpn", "fcos_resnet50_fpn"]),
    ({"type": "choice", "values": [YOLOF]}, ["fcos_resnet50_fpn"]),
    (YOLOF, ["fcos_resnet50_fpn"]),
    # Two that have one substitute.
    (
        f"choice('{DETECTORS[2]}', '{DETECTORS[4]}', '{YOLOF}')",
        ["fasterrcnn_resnet50_fpn_v2", "fcos_resnet50_fpn"],
    ),
    (
        {"type": "choice", "values": [DETECTORS[2], YOLOF, DETECTORS[4]]},
        ["fasterrcnn_resnet50_fpn_v2", "fcos_resnet50_fpn"],
    ),
]


@pytest.mark.parametrize(("expression", "models"), EXPRESSIONS)
def test_search_spaces_name_substitutes_too(expression: Any, models: list[str]) -> None:
    space = {"model_name": expression, "learning_rate": "uniform(0.001, 0.01)"}
    values = {"search_space": [space], "limits": {"max_trials": 4}}
    with pytest.raises(JobError, match="allow-substitute-models"):
        make_job(Task.DETECTION, **values)
    job = make_job(Task.DETECTION, **values, allow_substitute_models=True)
    (sub_space,) = prepare_search(job).space.sub_spaces
    value = sub_space.parameters["model_name"]
    assert [*(value.values if isinstance(value, Choice) else [value])] == models
    assert job.for_trial({"model_name": "fcos_resnet50_fpn"}).substitute_for == YOLOF
    assert job.for_trial({"model_name": "fasterrcnn_resnet18_fpn"}).substitute_for == ""


def test_a_substitutes_backbone_is_that_of_its_sub_space() -> None:
    space = {"model_name": f"choice('{SWIN}')", "learning_rate": "uniform(0.001, 0.01)"}
    job = make_job(Task.SEGMENTATION, search_space=[space], limits={"max_trials": 4})
    assert job.search_space[0]["backbone"] == SWIN_BACKBONE
    assert "maskrcnn_resnet50_fpn" in job.search_space[0]["model_name"]
    mixed = {"model_name": f"choice('{SWIN}', 'maskrcnn_resnet18_fpn')"}
    with pytest.raises(JobError, match=f"{SWIN} needs a sub-space of its own"):
        make_job(Task.SEGMENTATION, search_space=[mixed], limits={"max_trials": 4})


def test_a_runs_job_keeps_what_was_substituted(tmp_path: Path) -> None:
    job = make_job(Task.DETECTION, YOLOF, allow_substitute_models=True)
    (tmp_path / "job.yaml").write_text(job.to_yaml(), encoding="utf-8")
    content = yaml.safe_load((tmp_path / "job.yaml").read_text("utf-8"))
    assert content["training_parameters"]["model_name"] == "fcos_resnet50_fpn"
    assert content["local"]["substitutes"] == {YOLOF: "fcos_resnet50_fpn"}
    assert Job.of_run(tmp_path / "job.yaml").substitute_for == YOLOF
    assert "substitutes" not in make_job(Task.DETECTION, "fcos_resnet50_fpn").to_dict()["local"]


def test_what_is_substituted_is_told_at_the_start(
    caplog: pytest.LogCaptureFixture, hide_libraries: Callable[..., None]
) -> None:
    job = make_job(Task.DETECTION, YOLOF, allow_substitute_models=True)
    (note,) = substitutes.notes(job.substitutes)
    assert f"model: {note}" in dry_run.preview(job)
    hide_libraries(catalog.MODELS["fcos_resnet50_fpn"].card.library)  # so that the job ends soon
    with pytest.raises(JobError, match="which is not installed"):
        trainer.fit(job)
    assert caplog.messages == [f"model: {note}"]


def test_a_packaged_model_tells_what_it_is_a_substitute_for() -> None:
    spec = Spec(
        family="rcnn", model="fcos_resnet50_fpn", task=Task.DETECTION, classes=("a",), options={},
        parameters=ScoringParameters(), substitute_for=YOLOF,
    )  # fmt: skip
    assert json.loads(spec.to_json())["substitute_for"] == YOLOF
    assert Spec.from_json(spec.to_json()) == spec
    assert "substitute_for" not in json.loads(spec.model_copy(update={"substitute_for": ""}).to_json())


NODE = "mmdetection_image_objectdetection_instancesegmentation_pipeline"
CATALOG = "azureml://registries/azureml"


@pytest.mark.parametrize(
    "model",
    [
        {"model_name": YOLOF},
        {"mlflow_model": {"type": "mlflow_model", "path": f"{CATALOG}/models/{YOLOF}/versions/8"}},
        {"pytorch_model": {"path": f"azureml:{YOLOF}@latest"}},
    ],
)
def test_components_of_azures_notebooks_run_with_permission(tmp_path: Path, model: dict[str, Any]) -> None:
    inputs = {
        "task_name": "image-object-detection",
        "training_data": {"type": "mltable", "path": "t"},
        **model,
    }
    node = {"type": "pipeline", "component": f"{CATALOG}/components/{NODE}/labels/latest", "inputs": inputs}
    path = tmp_path / "pipeline.yml"
    path.write_text(yaml.safe_dump({"type": "pipeline", "jobs": {"finetune": node}}), encoding="utf-8")
    with pytest.raises(JobError, match="the substitute is fcos_resnet50_fpn"):
        Job.read(path)
    job = Job.read(path, allow_substitute_models=True)
    assert (job.task, job.model, job.substitute_for) == (Task.DETECTION, "fcos_resnet50_fpn", YOLOF)
