"""`--recipe modern`: its defaults, who may override them, and training runs with it."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer
from trainer.data.samples import make
from trainer.errors import JobError
from trainer.job.job import Job
from trainer.models import catalog
from trainer.models.card import ModelEntry
from trainer.models.defaults import default_in_words, resolve, takes, values_for_images
from trainer.tasks import Task

CLASSIFICATION, MULTILABEL, DETECTION, SEGMENTATION = Task


def test_without_being_asked_for_nothing_is_modern() -> None:
    settings = resolve(CLASSIFICATION, "resnet18", {})
    assert settings.recipe == "reference"
    assert (settings.optimizer, settings.average_weights, settings.mixup_alpha) == ("sgd", False, 0)
    assert settings == resolve(CLASSIFICATION, "resnet18", {"recipe": "reference"})


@pytest.mark.parametrize(
    ("task", "model", "expected"),
    [
        (CLASSIFICATION, "resnet18", {"learning_rate": 5e-4, "label_smoothing": 0.1, "weighted_loss": 1}),
        (MULTILABEL, "resnet18", {"learning_rate": 1e-3, "label_smoothing": 0.0, "weighted_loss": 1}),
        (CLASSIFICATION, "vitb16r224", {"learning_rate": 2e-4, "layer_decay": 0.75, "mixup_alpha": 0.0}),
        (MULTILABEL, "vitl16r224", {"learning_rate": 4e-5, "layer_decay": 0.75, "random_augment": False}),
        (CLASSIFICATION, "timm/swin_tiny_patch4_window7_224", {"layer_decay": 0.75, "learning_rate": 3e-4}),
        (CLASSIFICATION, "timm/mobilevit_xs", {"layer_decay": 0.75, "learning_rate": 3e-4}),
        (CLASSIFICATION, "timm/resnet10t", {"layer_decay": 1.0, "interpolation": "published"}),
        (DETECTION, "fasterrcnn_resnet50_fpn", {"learning_rate": 1e-4, "large_scale_jitter": True}),
        (SEGMENTATION, "maskrcnn_resnet18_fpn", {"weight_decay": 0.05, "average_weights": True}),
        (DETECTION, "retinanet_resnet50_fpn", {"large_scale_jitter": True, "layers_to_freeze": 2}),
        (DETECTION, "yolo11n", {"learning_rate": 1e-3, "gradient_clip_norm": 10.0, "number_of_epochs": 30}),
        (SEGMENTATION, "yolo26n-seg", {"weight_decay": 5e-4, "average_weights": True}),
    ],
)
def test_each_kind_of_model_has_its_own(task: Task, model: str, expected: dict[str, Any]) -> None:
    settings = resolve(task, model, {"recipe": "modern"})
    assert settings.optimizer == "adamw"
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize("entry", catalog.MODELS.values(), ids=lambda entry: entry.name)
def test_no_model_is_given_what_means_nothing_to_it(entry: ModelEntry) -> None:
    for task in entry.tasks:
        assert all(takes(entry, name) for name in entry.modern_for(task))


def test_what_the_user_gives_goes_before_the_recipe() -> None:
    given = {"recipe": "modern", "optimizer": "sgd", "weighted_loss": 0, "gradient_clip_value": 2}
    settings = resolve(CLASSIFICATION, "resnet18", given)
    assert (settings.optimizer, settings.weighted_loss, settings.label_smoothing) == ("sgd", 0, 0.1)
    assert (settings.gradient_clip_value, settings.gradient_clip_norm) == (2, None)


@pytest.mark.parametrize(
    ("model", "images", "epochs", "batch", "rate"),
    [
        ("resnet18", 4, 30, 8, 5e-4),
        ("resnet18", 50, 15, 8, 5e-4),
        ("resnet18", 108, 15, 8, 5e-4),
        ("resnet18", 238, 15, 16, 5e-4),
        ("resnet18", 1000, 15, 64, 5e-4),
        ("resnet18", 5000, 15, 64, 5e-4),
        ("vitl16r224", 5000, 15, 8, 4e-5),
        ("fasterrcnn_resnet50_fpn", 100, 20, 2, 1e-4),
        ("fasterrcnn_resnet50_fpn", 5000, 15, 2, 1e-4),
        ("yolo11n", 50, 100, 8, 1e-3),
        ("yolo11n", 2000, 48, 16, 0.001),
        ("yolo11n", 20_000, 30, 16, 0.001),
    ],
)
def test_batch_comes_down_with_the_images(
    model: str, images: int, epochs: int, batch: int, rate: float
) -> None:
    task = catalog.MODELS[model].tasks[0]
    job = Job(task=task, training_data=("a",), model=model, settings={"recipe": "modern"})
    expected = {"number_of_epochs": epochs, "training_batch_size": batch, "learning_rate": rate}
    settings = job.for_images(images).resolve_settings()
    assert {name: getattr(settings, name) for name in expected} == expected


def test_accumulated_batches_count_as_one_step() -> None:
    values = {"recipe": "modern", "gradient_accumulation_step": 2}
    job = Job(task=CLASSIFICATION, training_data=("a",), model="resnet18", settings=values)
    assert job.for_images(238).resolve_settings().training_batch_size == 8


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"number_of_epochs": 3}, (3, 8, 5e-4)),
        ({"training_batch_size": 39}, (30, 39, 5e-4)),
        ({"learning_rate": 0.01, "training_batch_size": 78}, (30, 78, 0.01)),
        ({"grad_accumulation_step": 2}, (15, 8, 5e-4)),
        ({"training_batch_size": "auto"}, (15, "auto", 5e-4)),
        ({"recipe": "reference"}, (15, 78, 0.01)),
    ],
)
def test_what_the_user_gives_stays_for_few_images(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    settings = {"recipe": "modern", **given}
    job = Job(task=CLASSIFICATION, training_data=("a",), model="resnet18", settings=settings)
    resolved = job.for_images(108).resolve_settings()
    names = ("number_of_epochs", "training_batch_size", "learning_rate")
    assert tuple(getattr(resolved, name) for name in names) == expected


@pytest.mark.parametrize(
    ("task", "model", "changes", "recipe"),
    [
        (CLASSIFICATION, "resnet18", {}, "modern"),
        (MULTILABEL, "timm/resnet10t", {}, "modern"),
        (CLASSIFICATION, "resnet18", {"weights": "none"}, "reference"),
        (CLASSIFICATION, "resnet18", {"settings": {"recipe": "reference"}}, "reference"),
        (CLASSIFICATION, "resnet18", {"settings": {"optimizer": "SGD"}}, "reference"),
        (CLASSIFICATION, "resnet18", {"settings": {"momentum": 0.8}}, "reference"),
        (CLASSIFICATION, "resnet18", {"settings": {"nesterov": False}}, "reference"),
        (CLASSIFICATION, "resnet18", {"settings": {"momentum": None, "recipe": None}}, "modern"),
        (CLASSIFICATION, "resnet18", {"settings": {"momentum": 0.8, "optimizer": "adam"}}, "modern"),
        (DETECTION, "fasterrcnn_resnet50_fpn", {}, "reference"),
        (DETECTION, "yolo11n", {}, "reference"),
        (DETECTION, "yolo11n", {"settings": {"recipe": "modern"}}, "modern"),
        (DETECTION, "rtdetr-l", {}, "reference"),
    ],
)
def test_usual_recipe_of_flags_and_python(
    task: Task, model: str, changes: dict[str, Any], recipe: str
) -> None:
    job = Job(task=task, training_data=("a",), model=model, **changes)
    assert job.resolve_settings().recipe == recipe
    assert job.to_dict()["training_parameters"]["recipe"] == recipe


def test_null_leaves_a_setting_to_its_default_everywhere() -> None:
    null = {"recipe": None, "number_of_epochs": None, "lr_scheduler": "none", "layers_to_freeze": None}
    job = Job(task=CLASSIFICATION, training_data=("a",), model="resnet18", settings=null)
    assert job.settings == {"layers_to_freeze": None}  # whose null is a value of its own
    assert job.left_to_images() == ("number_of_epochs", "training_batch_size")
    changed = Job(task=CLASSIFICATION, training_data=("a",), settings={"recipe": "reference", "seed": 3})
    assert changed.changed(settings={"recipe": None}).resolve_settings().recipe == "modern"
    trial = job.model_copy(update={"limits": {"max_trials": 2}}).for_trial({"recipe": None})
    assert trial.resolve_settings().recipe == "reference"


def test_asking_for_early_stopping_turns_it_on() -> None:
    for name in ("early_stopping_patience", "early_stopping_delay"):
        values = {"recipe": "modern", name: 3}
        assert resolve(CLASSIFICATION, "resnet18", values).early_stopping
        assert not resolve(CLASSIFICATION, "resnet18", {**values, "early_stopping": False}).early_stopping
    assert not resolve(CLASSIFICATION, "resnet18", {"recipe": "modern"}).early_stopping


def test_usual_recipe_in_words_names_a_kind_of_model_once() -> None:
    assert default_in_words("recipe") == "reference; modern for classifiers, except in job files"


def test_job_files_follow_the_reference_recipe(tmp_path: Path) -> None:
    file = tmp_path / "job.yml"
    file.write_text("type: automl\ntask: image_classification\ntraining_data: {path: a, type: mltable}\n")
    job = Job.read(file)
    assert job.resolve_settings().recipe == "reference"
    assert job.changed(settings={"learning_rate": 0.1}).resolve_settings().optimizer == "sgd"
    assert Job.read(file, settings={"recipe": "modern"}).resolve_settings().optimizer == "adamw"


def test_trials_of_a_search_space_follow_the_reference_recipe() -> None:
    space = ({"model_name": "resnet18", "learning_rate": "uniform(0.001, 0.1)"},)
    job = Job(task=CLASSIFICATION, training_data=("a",), search_space=space, limits={"max_trials": 2})
    assert job.for_trial({"learning_rate": 0.1}).resolve_settings().recipe == "reference"
    assert job.for_trial({"recipe": "modern"}).resolve_settings().recipe == "modern"


def test_job_file_leaves_to_the_images_what_the_recipe_chooses_by_them(tmp_path: Path) -> None:
    job = Job(task=CLASSIFICATION, training_data=("a",), settings={"recipe": "modern", "learning_rate": 0.1})
    assert job.left_to_images() == ("number_of_epochs", "training_batch_size")
    written = job.to_dict()["training_parameters"]
    assert written["learning_rate"] == 0.1
    assert not {"number_of_epochs", "training_batch_size"} & set(written)
    (tmp_path / "job.yaml").write_text(job.for_images(60).to_yaml())
    again = Job.read(tmp_path / "job.yaml")  # as `trainer fit --resume` does
    assert again.left_to_images() == ()
    assert again.for_images(6000).resolve_settings().training_batch_size == 8


@pytest.mark.parametrize("spelled", ["Modern", "MODERN", "modern"])
def test_the_spelling_of_sweeps_is_read(spelled: str) -> None:
    settings = resolve(CLASSIFICATION, "resnet18", {"recipe": spelled})
    assert settings == resolve(CLASSIFICATION, "resnet18", {"recipe": "modern"})


@pytest.mark.parametrize(
    ("task", "model", "small"),
    [
        (CLASSIFICATION, "resnet18", {"training_crop_size": 32, "validation_crop_size": 32}),
        (MULTILABEL, "resnet18", {"training_crop_size": 32, "validation_crop_size": 32, "mixup_alpha": 0.2}),
        (
            CLASSIFICATION,
            "timm/vit_tiny_patch16_224",
            {"training_crop_size": 32, "validation_crop_size": 32, "cutmix_alpha": 1.0, "weighted_loss": 1},
        ),
        (DETECTION, "fasterrcnn_resnet18_fpn", {"min_size": 64, "max_size": 96}),
        (DETECTION, "yolo11n", {"image_size": 64}),
    ],
)
def test_a_modern_training_runs_and_packages_its_averaged_weights(
    task: Task, model: str, small: dict[str, Any], tmp_path: Path
) -> None:
    data = make(task, tmp_path / "data", images=7, seed=1)
    # The reference's warm-up is longer than this training.
    settings = {
        "recipe": "modern",
        "number_of_epochs": 1,
        "warmup_cosine_lr_warmup_epochs": 0,
        "training_batch_size": 2,
        "number_of_workers": 0,
    }
    job = Job(
        task=task,
        training_data=(str(data.train),),
        validation_data=(str(data.validation),),
        model=model,
        weights="none",
        gpus=0,
        output=tmp_path / "run",
        settings={**settings, "seed": 7, **small},
    )
    run = trainer.fit(job)
    with run.metrics.open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert math.isfinite(float(row["train_loss"]))
    first = run.log.read_text("utf-8").splitlines()[0]
    assert "recipe: modern, for 6 training images; --recipe reference has" in first
    trained = torch.load(run.best_checkpoint, weights_only=True)["state_dict"]
    packaged = torch.load(run.model / "artifacts" / "weights.pt", weights_only=True)
    averaged = {name: trained[f"average.network.{name}"] for name in packaged}
    assert all(torch.equal(packaged[name], averaged[name]) for name in packaged)
    assert any(not torch.equal(packaged[name], trained[f"network.{name}"]) for name in packaged)


def test_probe_may_be_all_there_is() -> None:
    alone = resolve(CLASSIFICATION, "resnet18", {"number_of_epochs": 0})
    assert (alone.number_of_epochs, alone.probe_first, alone.layers_to_freeze) == (0, True, None)
    match = "number_of_epochs: input should be greater than 0, got 0; 0 is a probe alone"
    with pytest.raises(JobError, match=match):
        resolve(CLASSIFICATION, "resnet18", {"number_of_epochs": 0, "probe_first": False})
    with pytest.raises(JobError, match=match):
        resolve(CLASSIFICATION, "resnet18", {"number_of_epochs": 0}, from_scratch=True)
    with pytest.raises(JobError, match=r"number_of_epochs: input should be greater than 0, got 0$"):
        resolve(DETECTION, "yolov5", {"number_of_epochs": 0})
    with pytest.raises(JobError, match="probe_first: applies only to classifiers"):
        resolve(DETECTION, "yolov5", {"probe_first": True})


@pytest.mark.parametrize(
    ("values", "probes", "epochs"),
    [
        ({}, True, 0),
        ({"number_of_epochs": 4}, True, 4),
        ({"probe_first": False}, False, 15),
        ({"recipe": "modern"}, True, 0),
    ],
)
def test_head_alone_is_a_probe_unless_the_user_says_otherwise(
    values: dict[str, Any], probes: bool, epochs: int
) -> None:
    resolved = resolve(CLASSIFICATION, "resnet18", {"freeze": "backbone", **values})
    assert (resolved.layers_to_freeze, resolved.probe_first) == ("backbone", probes)
    assert resolved.number_of_epochs == epochs
    assert (
        values_for_images(CLASSIFICATION, "resnet18", resolved, values, 100).get("number_of_epochs", epochs)
        == epochs
    )


def test_probe_needs_weights_to_start_from() -> None:
    with pytest.raises(JobError, match="probe_first: needs weights to start from"):
        resolve(CLASSIFICATION, "resnet18", {"probe_first": True}, from_scratch=True)
    head = resolve(CLASSIFICATION, "resnet18", {"freeze": "backbone"}, from_scratch=True)
    assert (head.probe_first, head.number_of_epochs) == (False, 15)


@pytest.mark.parametrize(("given", "frozen"), [({}, None), ({"layers_to_freeze": 1}, 1)])
def test_layers_from_scratch_are_trained_unless_the_user_freezes_them(
    given: dict[str, Any], frozen: int | None
) -> None:
    settings = resolve(DETECTION, "fasterrcnn_resnet50_fpn", given, from_scratch=True)
    assert (settings.layers_to_freeze, settings.freeze_batch_norm) == (frozen, False)
