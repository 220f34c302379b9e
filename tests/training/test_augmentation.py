"""Training with an augmentation file: what the network is given, and what the run keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.conformance.conftest import Case, make_case, smallest_models
from tests.conftest import needs_library
from tests.training.conftest import job, resume
from trainer.annotations import Example, Objects
from trainer.data.samples import SampleData
from trainer.errors import JobError, TrainingError
from trainer.job.job import Job
from trainer.models import catalog
from trainer.models.augmentation.pipeline import load
from trainer.models.defaults import resolve
from trainer.runs import Run
from trainer.tasks import Task
from trainer.training.fit import fit
from trainer.training.loading import Batches

FAMILIES = list(
    {(catalog.find(model, task).family, task): (task, model) for task, model in smallest_models()}.values()
)


@pytest.fixture(params=FAMILIES, ids=[f"{model}-{task}" for task, model in FAMILIES])
def case(request: pytest.FixtureRequest) -> Case:
    task, model = request.param
    needs_library(catalog.find(model, task).card.library)
    return make_case(task, model)


class Mirrored:
    """The case's examples, flipped by hand."""

    def __init__(self, case: Case) -> None:
        self.examples = case.examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return Example(np.ascontiguousarray(self.examples[index].image[:, ::-1]), self.targets[index])

    @property
    def targets(self) -> Any:
        return [self._mirrored(target) for target in self.examples.targets]

    def _mirrored(self, target: Any) -> Any:
        if not isinstance(target, Objects):
            return target
        boxes = target.boxes[:, [2, 1, 0, 3]] * np.float32([-1, 1, -1, 1]) + np.float32([1, 0, 1, 0])
        polygons = target.polygons and tuple(
            tuple(part * np.float32([-1, 1]) + np.float32([1, 0]) for part in each)
            for each in target.polygons
        )
        return Objects(boxes, target.labels, target.crowd, polygons)


def batch_of(case: Case, examples: Any, **options: Any) -> dict[str, Any]:
    """The first training batch, of all four images."""
    settings = case.settings.model_copy(update={"training_batch_size": 4, "number_of_workers": 0})
    batches = Batches(case.family, examples, case.examples, settings, seed=0, **options)
    return dict(next(iter(batches.train_dataloader())))


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for each, same in zip(one, other, strict=True):
            assert_equal(each, same)
    else:
        assert one == other


def test_every_family_is_given_the_augmented_images(case: Case, tmp_path: Path) -> None:
    """Images, boxes and masks are those of data that are flipped already."""
    own = tmp_path / "own.yaml"
    own.write_text("- RandomHorizontalFlip: {p: 1}\n", encoding="utf-8")
    assert_equal(batch_of(case, case.examples, augment=load(own, case.task)), batch_of(case, Mirrored(case)))


def test_every_family_augments_anew_in_each_epoch(case: Case, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("- ColorJitter: {brightness: 0.9}\n", encoding="utf-8")
    settings = case.settings.model_copy(update={"training_batch_size": 4, "number_of_workers": 0})
    augment = load(own, case.task)
    batches = Batches(case.family, case.examples, case.examples, settings, seed=0, augment=augment)
    loader = batches.train_dataloader()
    images = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        images.append(sorted(float(image.float().mean()) for image in next(iter(loader))["images"]))
    assert images[0] == images[2]
    assert images[0] != images[1]


@pytest.mark.parametrize(
    "model", ["resnet18", "yolo11n", "fasterrcnn_resnet50_fpn", "rtdetr-l", "rfdetr-nano"]
)
def test_replacing_turns_the_recipes_augmentation_off(model: str) -> None:
    task = Task.CLASSIFICATION if model == "resnet18" else Task.DETECTION
    settings = resolve(task, model, {"recipe": "modern"}, augments_itself=False)
    advanced = settings.advanced_settings
    switches = (advanced.apply_automl_train_augmentations, advanced.apply_mosaic_for_yolo)
    assert not any((*switches, settings.random_augment, settings.mixup_alpha, settings.cutmix_alpha))
    assert not settings.large_scale_jitter


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"mixup_alpha": 0.2}, "mixup_alpha"),
        ({"random_augment": True}, "random_augment"),
        (
            {"advanced_settings": {"apply_automl_train_augmentations": True}},
            "advanced_settings.apply_automl_train_augmentations",
        ),
    ],
)
def test_what_the_file_replaces_cannot_be_turned_on(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(JobError, match=rf"{field}: must be off.*write `extends: recipe`"):
        resolve(Task.CLASSIFICATION, "resnet18", settings, augments_itself=False)
    assert resolve(Task.CLASSIFICATION, "resnet18", settings)


def test_pipeline_sets_the_size_of_a_classifiers_images(tmp_path: Path) -> None:
    """An image that comes in the training size is not cropped again; any other one is."""
    case = make_case(Task.CLASSIFICATION, "resnet18", training_crop_size=96)
    own = tmp_path / "own.yaml"
    own.write_text("- Resize: {size: [96, 96]}\n", encoding="utf-8")
    resized = load(own, Task.CLASSIFICATION)(case.examples[0]).image
    images = batch_of(case, case.examples, augment=load(own, Task.CLASSIFICATION))["images"]
    assert any((image.permute(1, 2, 0).numpy() == resized).all() for image in images)
    own.write_text("- RandomHorizontalFlip\n", encoding="utf-8")
    assert batch_of(case, case.examples, augment=load(own, Task.CLASSIFICATION))["images"].shape[2:] == (
        96,
        96,
    )


def test_run_keeps_the_file_and_resumes_with_it(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    own = tmp_path / "own.yml"
    own.write_text("replaces: recipe\ntransforms:\n  - RandomInvert: {p: 1}\n", encoding="utf-8")
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run", number_of_epochs=1)
    run = fit(wanted.model_copy(update={"augmentation": str(own)}), packages=False)
    assert "own.yml (torchvision) replaces the recipe's augmentation" in run.log.read_text(encoding="utf-8")
    content = yaml.safe_load(run.job.read_text(encoding="utf-8"))
    assert content["local"]["augmentation"] == "augmentation.yaml"
    assert content["training_parameters"]["advanced_settings"]["apply_automl_train_augmentations"] is False
    own.unlink()
    moved = Run(run.directory.rename(tmp_path / "moved"))
    assert Job.read(moved.job).augmentation == str(moved.directory / "augmentation.yaml")
    assert resume(moved.directory, {"number_of_epochs": 2}).read_result().epochs == 2


def test_file_that_does_not_suit_the_images_fails_before_training(
    digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run")
    for text, error in (("- RandomCrop: {size: 900}\n", TrainingError), ("- RandomCrops\n", JobError)):
        own.write_text(text, encoding="utf-8")
        with pytest.raises(error, match=r"own.yaml"):
            fit(wanted.model_copy(update={"augmentation": str(own)}))
        assert not (tmp_path / "run").exists()
