"""`trainer preview`: what it shows is what the network gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from tests.conformance.conftest import CLASSES, Case, Shapes, make_case, smallest_models
from tests.conftest import needs_library
from tests.training.conftest import job
from trainer.annotations import Classification, Detections
from trainer.data.samples import SampleData
from trainer.errors import JobError
from trainer.models import catalog
from trainer.models.training_items import Draw
from trainer.tasks import Task
from trainer.training.preview import preview

FAMILIES = list(
    {(catalog.find(model, task).family, task): (task, model) for task, model in smallest_models()}.values()
)


def case_of(task: Task, model: str, **settings: Any) -> Case:
    needs_library(catalog.find(model, task).card.library)
    return make_case(task, model, **settings)


@pytest.mark.parametrize(("task", "model"), FAMILIES, ids=[f"{model}-{task}" for task, model in FAMILIES])
def test_training_view_shows_each_object_where_it_is(task: Task, model: str) -> None:
    case = case_of(task, model)
    dataset = case.family.training_dataset(case.examples, case.settings, seed=0)
    views = case.family.training_view(dataset.collate([dataset.item(Draw(0, index)) for index in range(4)]))
    for (image, target), scene in zip(views, Shapes.SCENES, strict=True):
        labels = sorted({label for label, *_ in scene})
        if isinstance(target, Classification):
            present = np.flatnonzero(target.probs == 1).tolist()
            assert present == (labels if task is Task.MULTILABEL else [scene[0][0]])
            assert target.probs.sum() == len(present)
            continue
        assert isinstance(target, Detections)
        assert sorted(target.labels.tolist()) == sorted(label for label, *_ in scene)
        assert (target.masks is not None) == (task is Task.SEGMENTATION)
        height, width = image.shape[:2]
        for row, (box, label) in enumerate(zip(target.boxes, target.labels, strict=True)):
            left, top, right, bottom = (box * [width, height, width, height]).round().astype(int)
            inner = image[top + 2 : bottom - 2, left + 2 : right - 2]
            assert np.abs(inner.mean(axis=(0, 1)) - Shapes.COLOURS[label]).max() < 8
            if target.masks is not None:
                pixels = image[target.masks[row].pixels]
                assert 0.7 < len(pixels) / ((right - left) * (bottom - top)) < 1.3
                assert np.abs(np.median(pixels, axis=0) - Shapes.COLOURS[label]).max() < 8


def test_training_view_of_a_classifier_is_mixed() -> None:
    case = case_of(Task.CLASSIFICATION, "resnet18", mixup_alpha=20.0)
    dataset = case.family.training_dataset(case.examples, case.settings, seed=0)
    batch = dataset.collate([dataset.item(Draw(0, index)) for index in range(4)])
    torch.manual_seed(0)
    views = [view for _ in range(3) for view in case.family.training_view(batch)]
    shares = np.array([target.probs for _, target in views])
    assert ((shares > 0.1) & (shares < 0.9)).any()
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert shares.shape == (12, len(CLASSES))


def test_preview_writes_originals_beside_draws(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("- RandomInvert: {p: 1}\n", encoding="utf-8")
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run")
    made = preview(wanted.model_copy(update={"augmentation": str(own)}), images=2, draws=3)
    assert [len(row) for row in made.rows] == [4, 4]
    assert made.titles[0][1:] == ["epoch 1: 48 × 48", "epoch 2: 48 × 48", "epoch 3: 48 × 48"]
    assert made.summary.endswith("replaces the recipe's augmentation")
    original, first, second = (np.asarray(picture.convert("L"))[:200].mean() for picture in made.rows[0][:3])
    assert abs(original + first - 255) < 60  # inverted
    assert second == first  # the same in each epoch
    made.write(tmp_path / "sheet.png")
    made.write(tmp_path / "sheet.html")
    with PILImage.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 400
    assert (tmp_path / "sheet.html").read_text(encoding="utf-8").count("<img") == 8
    assert not (tmp_path / "run").exists()


def test_same_seed_makes_the_same_preview(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    settings = {"mixup_alpha": 1.0, "random_augment": True}
    pictures = [
        preview(
            job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run", **settings, seed=seed),
            images=1,
            draws=1,
        ).rows[0][1]
        for seed in (1, 1, 2)
    ]
    assert pictures[0] == pictures[1]
    assert pictures[0] != pictures[2]


def test_sweep_cannot_be_shown(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run")
    with pytest.raises(JobError, match="shows a single run, not a sweep"):
        preview(wanted.changed(limits={"max_trials": 2}))
